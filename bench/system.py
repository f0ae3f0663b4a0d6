"""The whole system as real processes, for a while, at a steady rate: does it keep up, and what does it cost?

Shows two things: that so many trades a second over so many symbols and all intervals run without falling behind, the
simulator and PostgreSQL on the same machine; and how much memory it takes, in the beginning and in the end.
"""

import json
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgpack
import psycopg
import zmq

from bench.processes import cpu_seconds, memory_mib
from shared.config import Config, load
from shared.postgres import database_url
from shared.wire import HEALTH_TOPIC
from tests.support import Room, running, wait_for, write_config

ROOMS = ("postgres", "persist", "engine", "simulator", "ingest", "viz")
START_MAX_S = 300.0
SETTLE_MAX_S = 30.0
SETTLE_S = 10.0
"""After the last symbol is live, until what piled up at the start is done."""
SAMPLE_S = 5.0


def run(symbols: int, trades_per_second: float, seconds: float) -> dict[str, Any]:
    """Run the system and return what was measured."""
    with tempfile.TemporaryDirectory(prefix="klagg-bench-") as folder:
        path = write_config(
            Path(folder),
            simulator={
                "symbols": symbols,
                "trades_per_second": trades_per_second,
                "history_days": 3,
                "weight_limit": 1_000_000,
            },
        )
        config = load({"KLAGG_CONFIG": str(path)})
        with running(*ROOMS, config=path) as rooms, _Health(config) as health:
            began = time.monotonic()
            wait_for(
                "all symbols to be live",
                lambda: health.now().get("symbols", 0) >= symbols and not health.now().get("missing_ids", 1),
                START_MAX_S,
                every=0.5,
            )
            live_s = time.monotonic() - began
            time.sleep(SETTLE_S)
            return {"live_s": round(live_s, 1)} | _measure(config, rooms, health, seconds)


def _measure(config: Config, rooms: dict[str, Room], health: "_Health", seconds: float) -> dict[str, Any]:
    pids = {name: room.process.pid for name, room in rooms.items()}
    first, began = health.now(), time.monotonic()
    cpu = {name: cpu_seconds(pid) for name, pid in pids.items()}
    memory: list[dict[str, float]] = []
    missing_max = 0
    while time.monotonic() < began + seconds:
        memory.append({name: memory_mib(pid) for name, pid in pids.items()})
        missing_max = max(missing_max, health.now()["missing_ids"])
        time.sleep(SAMPLE_S)
    last, elapsed = health.now(), time.monotonic() - began
    spent = {name: (cpu_seconds(pid) - cpu[name]) / elapsed for name, pid in pids.items()}
    caught_up_s = _settle(config)
    trades = last["applied"] - first["applied"]
    return {
        "seconds": round(elapsed, 1),
        "trades a second": round(trades / elapsed),
        "caught up after s": round(caught_up_s, 2),
        "missing ids at most": missing_max,
        "batches": last["batches"] - first["batches"],
        "rows overwritten unsaved": last["unsaved_overwritten"],
        "CPU, cores": {name: round(share, 3) for name, share in spent.items()} | {"all": round(sum(spent.values()), 2)},
        "memory at first, MiB": _rounded(memory[0]),
        "memory at last, MiB": _rounded(memory[-1]),
    }


def _rounded(memory: dict[str, float]) -> dict[str, int]:
    return {name: round(size) for name, size in memory.items()} | {"all": round(sum(memory.values()))}


def _settle(config: Config) -> float:
    """Stop the market and return how long it takes until its last trade is in the database."""
    base = f"http://{config.simulator.host}:{config.simulator.port}/simulator"
    with urllib.request.urlopen(urllib.request.Request(f"{base}/pause", method="POST"), timeout=10):
        pass
    began = time.monotonic()
    with urllib.request.urlopen(f"{base}/status", timeout=10) as answer:
        wanted = {symbol: ids[config.exchange.stream] for symbol, ids in json.load(answer)["last_ids"].items()}

    def saved() -> bool:
        with psycopg.connect(database_url(config)) as connection:
            rows = connection.execute("SELECT symbol, last_id, isempty(gaps) FROM symbols").fetchall()
        known = {symbol: (last_id, whole) for symbol, last_id, whole in rows}
        return all(known.get(symbol) == (last_id, True) for symbol, last_id in wanted.items() if last_id is not None)

    wait_for("the database to have it all", saved, SETTLE_MAX_S)
    return time.monotonic() - began


class _Health:
    """The engine's figures, as any subscriber gets them."""

    def __init__(self, config: Config) -> None:
        self._endpoint = config.engine.snapshots
        self._last: dict[str, Any] = {}

    def __enter__(self) -> "_Health":
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, HEALTH_TOPIC.encode())
        self._socket.connect(self._endpoint)
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def now(self) -> dict[str, Any]:
        """Return the newest figures; empty before the first."""
        while self._socket.poll(0):
            self._last = msgpack.unpackb(self._socket.recv_multipart()[1])
        return self._last
