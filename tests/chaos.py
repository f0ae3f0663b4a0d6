"""Chaos: the whole system on the generated market under load, while its processes are killed, stopped and restarted.

    python -m tests.chaos --seconds 600 --every 3 --symbols 300 --rate 5000

Afterwards it is left alone, the market stands still, and every kline in PostgreSQL is compared with the simulator's
truth, and `klagg verify` must hold.
Prints its seed, what it did and how long each room took to be live again; ends with 1 if anything differs.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgpack
import psycopg
import zmq

from shared.config import Config, load
from shared.postgres import database_url
from shared.wire import HEALTH_TOPIC
from tests.pipeline.truth import ask, differences, settle, unproven
from tests.support import Room, wait_for, write_config

ROOMS = ("postgres", "persist", "engine", "ingest", "viz")
"""The simulator is the exchange: it stays."""
STOPPED_S = (0.2, 4.0)
LIVE_MAX_S = 60.0
SETTLE_MAX_S = 180.0


class House:
    """Rooms as processes; one that has ended is started again, as supervisord does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = load({"KLAGG_CONFIG": str(path)})
        self.simulator = Room("simulator", path)
        self.rooms = {name: Room(name, path) for name in ROOMS}
        self.starts: dict[str, int] = defaultdict(int)

    def mend(self) -> None:
        for name, room in self.rooms.items():
            if room.process.poll() is not None:
                self.starts[name] += 1
                self.rooms[name] = Room(name, self.path)
        assert self.simulator.process.poll() is None, self.simulator.log[-2000:]

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.mend()
            time.sleep(0.05)

    def stop(self) -> None:
        for name in reversed(ROOMS):
            self.rooms[name].stop(timeout=30)
        self.simulator.stop()

    def kill(self) -> None:
        for room in [*self.rooms.values(), self.simulator]:
            if room.process.poll() is None:
                room.process.send_signal(signal.SIGCONT)
                room.stop(signal.SIGKILL)


class Health:
    """The engine's figures, as any subscriber gets them."""

    def __init__(self, config: Config) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, HEALTH_TOPIC.encode())
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.connect(config.engine.snapshots)
        self.last: dict[str, Any] = {}

    def fresh(self) -> dict[str, Any]:
        """Return figures that arrived since the last call; empty if none did."""
        newest: dict[str, Any] = {}
        while self._socket.poll(0):
            newest = msgpack.unpackb(self._socket.recv_multipart()[1])
        self.last = newest or self.last
        return newest

    def close(self) -> None:
        self._context.destroy(linger=0)


def torment(house: House, source: random.Random) -> str:
    """Do something bad to the system and return its name."""
    name = source.choice(ROOMS)
    room = house.rooms[name]
    act = source.choice(("kill", "kill", "kill", "stop", "restart"))
    if act == "stop":
        seconds = source.uniform(*STOPPED_S)
        room.process.send_signal(signal.SIGSTOP)
        house.wait(seconds)
        if room.process.poll() is None:
            room.process.send_signal(signal.SIGCONT)
    else:
        room.process.send_signal(signal.SIGKILL if act == "kill" else signal.SIGTERM)
    return f"{act} {name}"


def run(folder: Path, seed: int, seconds: float, every: float, symbols: int, rate: float, resume_s: float) -> list[str]:
    """Run, torment, settle, and return what differs from the truth."""
    source = random.Random(seed)
    path = write_config(
        folder,
        simulator={
            "seed": seed % 1_000,
            "symbols": symbols,
            "trades_per_second": rate,
            "history_days": 5,
            "quirks": False,
            "weight_limit": 1_000_000,
        },
        engine={"silence_ask_ms": 3_000, "gap_retry_ms": 2_000, "resume_max_ms": int(resume_s * 1000)},
    )
    house = House(path)
    health = Health(house.config)
    try:
        _all_live(house, health, symbols, LIVE_MAX_S * 3)
        print(f"all {symbols} symbols are live; chaos for {seconds:.0f} s", flush=True)
        end, acts = time.monotonic() + seconds, defaultdict[str, int](int)
        while time.monotonic() < end:
            acts[torment(house, source)] += 1
            house.wait(source.uniform(0.3, 2 * every - 0.3))
        print("did:", ", ".join(f"{count} × {act}" for act, count in sorted(acts.items())), flush=True)
        for name in ROOMS:
            _all_live(house, health, symbols, SETTLE_MAX_S)
            print(f"kill {name:9} live again after {_killed(house, health, name):.1f} s", flush=True)
        house.wait(5.0)
        _all_live(house, health, symbols, SETTLE_MAX_S)
        settle(house.config, SETTLE_MAX_S)
        found, compared = differences(house.config)
        print(f"{compared} klines compared, {len(found)} differ; engine: {_told(health.last)}", flush=True)
        holes = unproven(house.config)
        print(f"klagg verify: {len(holes)} places do not hold", flush=True)
        house.stop()
        return found + holes
    finally:
        health.close()
        house.kill()


def _killed(house: House, health: Health, name: str) -> float:
    """Kill a room and return how long it takes until its work is done again.

    That is: trades are applied and none is missing; for whoever saves them, that they are saved.
    """
    house.wait(1.0)
    saves = name in ("postgres", "persist")
    before, figures = _newest(house.config), health.last
    began = time.monotonic()
    house.rooms[name].process.send_signal(signal.SIGKILL)
    house.rooms[name].process.wait()
    traded = ask(house.config, "status")["time"]
    while time.monotonic() < began + LIVE_MAX_S:
        house.mend()
        figures = health.fresh() or figures
        whole = figures.get("connected") and not figures.get("missing_ids") and figures.get("applied")
        if whole and figures["exchange_time"] >= traded and (not saves or _newest(house.config) > before):
            break
        time.sleep(0.02)
    return time.monotonic() - began


def _newest(config: Config) -> int:
    """Return the sum of all frontiers in the database."""
    try:
        with psycopg.connect(database_url(config), connect_timeout=2) as connection:
            row = connection.execute("SELECT coalesce(sum(last_id), 0)::int8 FROM symbols").fetchone()
    except psycopg.Error:
        return 0
    return int(row[0]) if row else 0


def _all_live(house: House, health: Health, symbols: int, timeout: float) -> None:
    def live() -> bool:
        house.mend()
        figures = health.fresh()
        return figures.get("symbols", 0) >= symbols and figures.get("missing_ids") == 0

    wait_for("all symbols to be live without a gap", live, timeout, every=0.2)


def _told(figures: dict[str, Any]) -> str:
    names = ("applied", "duplicates", "late", "refused", "beyond_window", "unsaved_overwritten", "missing_ids")
    return ", ".join(f"{name} {figures.get(name)}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two acts, on average")
    parser.add_argument("--symbols", type=int, default=300)
    parser.add_argument("--rate", type=float, default=5_000.0, help="trades a second of the whole market")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--resume", type=float, default=3_600.0, help="engine.resume_max_ms, in seconds")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="klagg-chaos-"))
    found = run(
        folder,
        arguments.seed,
        arguments.seconds,
        arguments.every,
        arguments.symbols,
        arguments.rate,
        arguments.resume,
    )
    for line in found[:20]:
        print(line)
    if found:
        print(f"logs and database are kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
