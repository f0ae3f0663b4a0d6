"""The rooms as processes of whoever started them, with a log each in a folder.

Decides how a room is started, that it ends with its starter, and who is to blame when it ends by itself. Knows nothing
of what rooms do.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.process import die_with_parent

log = logging.getLogger(__name__)

STOP_MAX_S = 10.0
"""How long a room may take to end before it is killed."""
BLAME_LINES_MAX = 15


class ReplayFailed(RuntimeError):
    """A replay without a result, in words for the person who asked for it. `code`: 2 if it is the input's fault."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Rooms:
    def __init__(self) -> None:
        self._outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("KLAGG_", "SUPERVISOR_"))
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}

    def start(self, room: str, folder: Path, config: Path) -> None:
        """Start a room, or start it again; its log is in `folder`."""
        self._logs[room] = folder / f"{room}.log"
        with self._logs[room].open("wb") as output:
            self._processes[room] = subprocess.Popen(
                [sys.executable, "-m", f"services.{room}"],
                cwd=Path(__file__).resolve().parents[1],
                env=self._outside | {"KLAGG_CONFIG": str(config)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which then ends them in order.
                process_group=0,
                # They do it themselves, but not before Python has loaded what they need.
                preexec_fn=die_with_parent,
            )

    def stop(self, room: str) -> None:
        """End a room that runs, gracefully if it can be."""
        process = self._processes.pop(room, None)
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end; killing it", room)
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raises ReplayFailed if a room has ended by itself."""
        for room, process in self._processes.items():
            code = process.poll()
            if code is not None:
                # The simulator reads the files; what it needs besides, a port, was free a moment ago.
                exit_code = 2 if room == "simulator" and code in (2, 3) else 1
                raise ReplayFailed(f"{room} ended with exit code {code}:\n{self.last_lines(room)}", code=exit_code)

    def last_line(self, room: str) -> str:
        """Return what a room has said last, without the time and its name."""
        words = self.last_lines(room).rpartition("\n")[2].split(maxsplit=3)
        return words[3] if len(words) == 4 else ""

    def last_lines(self, room: str) -> str:
        lines = self._logs[room].read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-BLAME_LINES_MAX:])


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process the way Ctrl-C does: with everything tidied up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, what in before.items():
            signal.signal(number, what)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let nothing of that happen meanwhile."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, what in zip(numbers, before, strict=True):
            signal.signal(number, what)
