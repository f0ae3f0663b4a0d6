"""The system as real processes: rooms, a configuration with free ports in a folder of its own, waiting."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
"""Recordings of some twenty lines, written by hand: the form is the exchange's, the market is none."""
RECORDINGS = ROOT.parent / "shared" / "data"
"""Real recordings, beside the project; tests of these skip where they are absent."""


def recording(name: str) -> Path:
    """Return where a recording is, written by hand or real. Skips the test that asks if it is nowhere."""
    for folder in (DATA, RECORDINGS):
        if (folder / name).exists():
            return folder / name
    import pytest  # Here, because bench has no tests to skip.

    raise pytest.skip.Exception(f"there is no {name} in {RECORDINGS}")


def unpacked(path: Path) -> bytes:
    """Return what is in a file, packed or not."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write a klagg.toml whose data and ports are the caller's own; `sections` add to it and win."""
    values: dict[str, dict[str, Any]] = {
        "exchange": {},
        "engine": {"snapshots": f"tcp://127.0.0.1:{free_port()}"},
        "viz": {"port": free_port()},
        "simulator": {"port": free_port(), "listing_interval_s": 0.0},
    }
    for name, section in sections.items():
        values.setdefault(name, {}).update(section)
    lines = ['data_dir = "data"']
    for name, section in values.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in section.items()]
    path = folder / "klagg.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


class Room:
    """A room as the process that supervisord would start."""

    def __init__(self, name: str, config: Path, **environ: str) -> None:
        self.name = name
        self.log_path = config.parent / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("KLAGG_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}"],
                cwd=ROOT,
                env=clean | {"KLAGG_CONFIG": str(config)} | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Signal it and return its exit code; one that does not end in time is killed and fails the test."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end within {timeout} s:\n{self.log[-3000:]}") from None


@contextmanager
def running(*names: str, config: Path) -> Iterator[dict[str, Room]]:
    """Run rooms until the block ends; they stop in the reverse order."""
    rooms: dict[str, Room] = {}
    try:
        for name in names:
            rooms[name] = Room(name, config)
        yield rooms
    finally:
        for room in reversed(rooms.values()):
            room.stop()


def wait_for(what: str, ask: Callable[[], Answer | None], timeout: float = 60.0, every: float = 0.05) -> Answer:
    """Ask until the answer is true and return it. Raises AssertionError with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain for {what}; last answer: {answer!r}")
        time.sleep(every)
