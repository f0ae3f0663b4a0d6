"""What every process of klagg does around its own work: configuration, logging, exit codes, signals, and its end."""

import ctypes
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from shared.config import Config, ConfigError, load
from shared.private import NotPrivate
from shared.sockets import PortTaken
from shared.tuning import raise_descriptor_limit

PR_SET_PDEATHSIG = 1
LINE_MAX = 2_000
"""Characters of a line of the log. Some come from outside: an exchange's reasons, a database's, a name."""
RETRY_S = 5.0
"""How long a process that cannot run waits before it ends under supervisord, which starts it again at once."""

log = logging.getLogger(__name__)


class Unavailable(RuntimeError):
    """Something that the process needs is not there, in words for the person who runs it."""


class Formatter(logging.Formatter):
    """Lines that begin as `2026-11-23T12:34:56.789Z`: UTC in all services, whatever the machine's time zone.

    A message is one line of printable characters: no text from outside begins another line, or moves the cursor.
    """

    converter = time.gmtime  # type: ignore[assignment]  # typeshed has it without its argument
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # The library's name for it.
        told = record.message
        if len(told) > LINE_MAX:
            told = f"{told[:LINE_MAX]}... ({len(told)} characters)"
        if not told.isprintable():
            told = "".join(each if each.isprintable() else repr(each)[1:-1] for each in told)
        record.message = told
        return super().formatMessage(record)


def run(service: str, body: Callable[[Config], int | None]) -> NoReturn:
    """Run a service as this process: configuration, logging, and an error message instead of a traceback.

    Exit codes: what `body` returns or 0; 2 for a wrong configuration; 3 for something that is missing or taken.
    supervisord (which sets SUPERVISOR_ENABLED) gets 2 and 3 after `RETRY_S`, so that the message can be read.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(Formatter(f"%(asctime)s {service:9} %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    die_with_parent()
    raise_descriptor_limit()
    try:
        config = load()
        logging.getLogger().setLevel(config.log_level.upper())
        code = body(config) or 0
    except ConfigError as error:
        log.error("configuration: %s", error)
        code = 2
    except (PortTaken, Unavailable, NotPrivate) as error:
        log.error("%s", error)
        code = 3
    except KeyboardInterrupt:
        code = 0
    if code in (2, 3) and "SUPERVISOR_ENABLED" in os.environ:
        for stop_signal in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop_signal, signal.SIG_DFL)
        time.sleep(RETRY_S)
    logging.shutdown()
    sys.exit(code)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies: the children of a supervisord that is killed end too."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent or _log_reader_gone():
            os.kill(os.getpid(), signal.SIGTERM)


def _log_reader_gone() -> bool:
    """Say whether the reader of the log is gone: a parent that died while this process was still being loaded."""
    poll = select.poll()
    poll.register(2, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class StopSignal:
    """SIGTERM and SIGINT as a readable file descriptor, because a signal alone does not wake a ZeroMQ poll."""

    def __init__(self) -> None:
        self.asked = False
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        for stop_signal in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop_signal, self._take)

    def _take(self, _number: int, _frame: object) -> None:
        self.asked = True
        os.write(self._write_fd, b"!")
