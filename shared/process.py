"""What every klagg process does around its own work: say what it does, end when asked, and never outlive its parent."""

import ctypes
import gc
import logging
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from shared.config import Config, ConfigError, load
from shared.private import NotPrivate
from shared.sockets import PortTaken

PR_SET_PDEATHSIG, PR_SET_THP_DISABLE = 1, 41
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""The number of the system call, which Python and its C library have no name for."""
SHORT_TURN_NS = 100_000
"""The shortest that Linux gives."""
MODEST_NICE = 5
"""A quarter of a core that it shares with somebody, instead of half; it has all of one that nobody wants."""
LINE_MAX = 2_000
"""Characters of a line of the log. Some are somebody else's: an exchange's reasons, a database's, a name."""
RETRY_S = 5.0
"""How long a process that cannot run stays before it ends under supervisord, which starts it again at once."""

log = logging.getLogger(__name__)


class Unavailable(RuntimeError):
    """Something that the process needs is not there, in words for the person who runs it."""


class Formatter(logging.Formatter):
    """Lines that begin as `2026-11-23T12:34:56.789Z`: one clock for all rooms, wherever the machine stands.

    What is told is one line of characters that can be seen: nobody outside writes another one, or moves the cursor.
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


def run(room: str, body: Callable[[Config], int | None]) -> NoReturn:
    """Run a room's loop as this process: configuration, logging, and clear last words instead of a traceback.

    Exit codes: what `body` returns or 0; 2 for a wrong configuration; 3 for something that is not there or taken.
    supervisord (which sets SUPERVISOR_ENABLED) gets 2 and 3 after `RETRY_S`, so that the message does not rush by.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(Formatter(f"%(asctime)s {room:9} %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    die_with_parent()
    take_descriptors()
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
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(RETRY_S)
    logging.shutdown()
    sys.exit(code)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies: a killed supervisord must not leave its children behind."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent or _unheard():
            os.kill(os.getpid(), signal.SIGTERM)


def take_descriptors() -> None:
    """Take as many descriptors as this process may have. ZeroMQ ends a process that is out of them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # Some systems promise more than they give.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def be_modest(pid: int) -> None:
    """Ask Linux to let others go first: a process of this user that is the first of its session.

    Linux gives cores to sessions first (autogroup), and niceness alone counts within one only. Each of PostgreSQL's
    processes is a session: as much of the machine is one's as is all of klagg's, unless it is told otherwise.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, MODEST_NICE)
        Path(f"/proc/{pid}/autogroup").write_text(str(MODEST_NICE), encoding="ascii")


def take_short_turns() -> bool:
    """Ask Linux to let this process, and the threads it will start, run as soon as they wake up, in short turns.

    Otherwise whoever wakes up for a trade may wait some 3 ms until the database has had its turn. It gives no process
    more of the machine, and needs no privilege. Return whether the kernel took it; from 6.12 on it also heeds it.
    """
    number = SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return False
    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
    its = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, SHORT_TURN_NS, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, its, 0) == 0)


def take_small_pages() -> None:
    """Ask Linux for memory in pages of 4 KB, one after the other as they are written.

    NumPy asks for pages of 2 MB for what is large. To have one made takes 4 to 6 ms where memory is in pieces, in which
    no trade is applied, and it takes memory for symbols that nobody has. What is in use fits the caches either way.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def spare_garbage_collection() -> None:
    """Take all that has been made so far for permanent. With numba loaded, to look through it takes 64 to 150 ms."""
    gc.collect()
    gc.freeze()


def _unheard() -> bool:
    """Say whether whom the log goes to is gone: a parent that died while this process was still being loaded."""
    ears = select.poll()
    ears.register(2, 0)
    return any(event & select.POLLERR for _, event in ears.poll(0))


class StopSignal:
    """SIGTERM and SIGINT as a readable file descriptor, because a signal alone does not wake a ZeroMQ poll."""

    def __init__(self) -> None:
        self.asked = False
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        self.asked = True
        os.write(self._write_fd, b"!")
