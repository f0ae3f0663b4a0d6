"""The whole system as real processes: started, asked, and held to what the simulator sent.

What it measures with is a subscriber like any other, the simulator's own figures, and /proc.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import zmq

from harness.figures import cpu_seconds, memory_mib
from harness.processes import Room, wait_for, write_config
from harness.truth import ask
from shared.config import Config, load
from shared.snapshot import HEALTH_TOPIC, kline_topic

ROOMS = ("postgres", "persist", "engine", "simulator", "ingest")
SAVING_NEVER = {"save_interval_ms": 600_000, "save_rows": 1_000_000}
"""Persist stands by with nothing to do: the engine needs it to begin, and keeps its rows longer than a run lasts."""
LIVE_MAX_S = 300.0
BUSY_MS = 1_790_172_720_000 + 3_200
"""2026-09-23 14:12 UTC: a busy hour, the same one each time. Its minute began as many ms ago as ingest waits for klines
to settle, so little of it is to be asked for."""
SINGLE_TRADES = 1.612 / 1.55
"""Single trades/s of an average minute for each aggregate/s of that hour."""


class Whole:
    """A running system; what it costs is asked room by room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Config = load({"KLAGG_CONFIG": str(path)})
        self.rooms: dict[str, Room] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._health = self.subscriber([HEALTH_TOPIC])
        self._figures: dict[str, Any] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self.rooms[name] = Room(name, self.path)

    def stop(self, *names: str) -> None:
        """Stop rooms in the reverse order of their start."""
        for name in reversed([name for name in self.rooms if name in names]):
            self.rooms.pop(name).stop(timeout=60)

    def close(self) -> None:
        self.stop(*self.rooms)
        self._context.destroy(linger=0)

    def subscriber(self, topics: list[str]) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.SUB)
        for option, value in ((zmq.RCVHWM, 1_000_000), (zmq.RECONNECT_IVL, 20), (zmq.RECONNECT_IVL_MAX, 100)):
            socket.setsockopt(option, value)
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(self.config.engine.snapshots)
        return socket

    def health(self) -> dict[str, Any]:
        """Return the engine's newest figures; empty before the first."""
        while self._health.poll(0):
            self._figures = msgpack.unpackb(self._health.recv_multipart()[1])
        return self._figures

    def forget(self) -> None:
        """Take no figures for new that came before this."""
        self.health()
        self._figures = {}

    def live(self) -> bool:
        """Say whether every symbol is there without a gap. Raises RuntimeError if a room has ended."""
        for name, room in self.rooms.items():
            if room.process.poll() is not None:
                raise RuntimeError(f"{name} has ended:\n{room.log[-2000:]}")
        figures, wanted = self.health(), self.config.simulator.symbols
        return bool(figures) and figures["connected"] and figures["symbols"] >= wanted and not figures["missing_ids"]

    def wait_live(self) -> float:
        """Wait until it is live; return how many seconds that took."""
        began = time.monotonic()
        wait_for("all symbols to be live", self.live, LIVE_MAX_S, every=0.02)
        return time.monotonic() - began

    def pace(self, speed: float) -> None:
        ask(self.config, "speed", "POST", value=speed)

    def last_ids(self) -> dict[str, int]:
        """Return the last aggregate that left the exchange, of every symbol."""
        return {symbol: ids["aggTrade"] for symbol, ids in ask(self.config, "status")["last_ids"].items()}

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds of each room so far."""
        return {name: cpu_seconds(room.process.pid) for name, room in self.rooms.items()}

    def memory(self) -> dict[str, int]:
        """Return MiB of each room; a page that several share counts once in all (PSS)."""
        sizes = {name: round(memory_mib(room.process.pid)) for name, room in self.rooms.items()}
        return sizes | {"all": sum(sizes.values())}

    def unapplied(self, last_ids: dict[str, int], seconds: float) -> dict[str, int]:
        """Return the symbols of which no snapshot has shown the last id after so many seconds, and what one has shown.

        Subscribing brings the current rows; a day's row has the last id of its symbol.
        """
        shown = dict.fromkeys(last_ids, -1)
        # In the first minutes of a day a quiet symbol has its last id in the week's row.
        socket = self.subscriber([kline_topic(symbol, interval) for symbol in shown for interval in ("1d", "1w")])
        waiting, deadline = set(shown), time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            if socket.poll(int(left * 1000) + 1):
                row = msgpack.unpackb(socket.recv_multipart()[1])
                symbol = row["symbol"]
                shown[symbol] = max(shown[symbol], row["last_id"])
                if shown[symbol] >= last_ids[symbol]:
                    waiting.discard(symbol)
        socket.close(linger=0)
        return {symbol: shown[symbol] for symbol in waiting}


@contextmanager
def whole(**sections: dict[str, Any]) -> Iterator[Whole]:
    """Have a system that has not been started in a folder of its own; `sections` are its configuration's."""
    simulator = {"history_days": 2, "weight_limit": 1_000_000_000, "symbols": 500}
    with TemporaryDirectory(prefix="klagg-bench-") as folder:
        path = write_config(Path(folder), **(sections | {"simulator": simulator | sections.get("simulator", {})}))
        system = Whole(path)
        try:
            yield system
        finally:
            system.close()


def shares(before: dict[str, float], after: dict[str, float], by: float) -> dict[str, float]:
    """Return what each room has spent between two looks, divided by something, and all of them together."""
    spent = {name: round((after[name] - before[name]) / by, 3) for name in before}
    return spent | {"all": round(sum(spent.values()), 3)}
