"""Chaos: the whole system on the generated market under load, while its processes are killed, stopped and restarted.

    python -m tests.chaos --seconds 600 --every 3 --symbols 300 --rate 5000

Meanwhile the exchange fails too: it breaks connections, loses, repeats and reorders trades, and REST answers late or
not at all; the database's disk is full, the page is asked nonsense, and somebody subscribes everything 10,000 times
(system_faults.py). Afterwards all is left alone, the market stands still, every kline in PostgreSQL is compared with
the simulator's truth, `klagg verify` must hold, and the exchange must have had nothing to refuse.

Prints its seed, what it did and how long each room took to be live again; ends with 1 if anything differs.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import psycopg
import zmq

from harness.processes import Room, wait_for, write_config
from harness.truth import ask, audited, differences, settle, unproven
from shared.config import Config, load
from shared.interval import utc
from shared.snapshot import HEALTH_TOPIC, kline_topic
from tests import store_faults
from tests.disk import Disk
from tests.hostile import Peer
from tests.seeds.starts import ROWS_MAX, ROWS_MIN
from tests.system_faults import HOSTILE, LATE, ROOMS, inject_fault

BUSY = "BTCUSDT"
"""A symbol that trades many times a second."""
FROZEN = ("persist", "engine", "ingest")
"""Rooms of which it must be reported that they are stopped, ..."""
REPORTED_MAX_S = 15.0
"""... and how soon."""
ENDS = (1_795_626_000_000, 1_795_651_200_000, 1_796_083_200_000)
"""Of an hour, a day and a month: 2026-11-25 17:00, 2026-11-26 and 2026-12-01, UTC, ..."""
BEFORE_END_MS = 20_000
"""... and how long before that the exchange begins, and soon all rooms."""
MUTE_MAX_S = 15.0
"""How long a stream that is acknowledged and silent may stay unnoticed, and then some: three silences."""
LIVE_MAX_S = 60.0
SETTLE_MAX_S = 180.0
EXPLAINED_MAX_S = 360.0
"""The exchange's klines are asked two minutes after their end, and every 30 s until they come."""


class System:
    """Rooms as processes; one that has ended is started again, as supervisord does."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """`disk`: the database's own, if it has one."""
        self.path = path
        self.disk = disk
        self.peers: list[Peer] = []
        """Hostile subscribers, which stay."""
        self.wrong: list[str] = []
        """What must not be and was seen meanwhile."""
        self.config = load({"KLAGG_CONFIG": str(path)})
        self.simulator = Room("simulator", path)
        wait_for("the exchange", lambda: "listening" in self.simulator.log)
        self.rooms = {name: Room(name, path) for name in ROOMS}
        self.starts: dict[str, int] = defaultdict(int)
        self.down: set[str] = set()
        """Rooms that are not to be started again."""

    def mend(self) -> None:
        for name, room in self.rooms.items():
            if room.process.poll() is not None and name not in self.down:
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
        for peer in self.peers:
            peer.socket.close()
        for room in [*self.rooms.values(), self.simulator]:
            if room.process.poll() is None:
                room.process.send_signal(signal.SIGCONT)
                room.stop(signal.SIGKILL)


class Health:
    """The engine's figures and the newest trade of a busy symbol, as any subscriber gets them."""

    def __init__(self, config: Config) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for topic in (HEALTH_TOPIC, kline_topic(BUSY, "1m")):
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.connect(config.engine.snapshots)
        self.last: dict[str, Any] = {}
        self.newest_id = -1
        """The highest id that was published."""

    def fresh(self) -> dict[str, Any]:
        """Return figures that arrived since the last call; empty if none did."""
        newest: dict[str, Any] = {}
        while self._socket.poll(0):
            topic, message = self._socket.recv_multipart()
            content = msgpack.unpackb(message)
            if topic == HEALTH_TOPIC.encode():
                newest = content
            else:
                self.newest_id = max(self.newest_id, content["last_id"])
        self.last = newest or self.last
        return newest

    def close(self) -> None:
        self._context.destroy(linger=0)


class Plan(NamedTuple):
    seed: int
    seconds: float = 600.0
    every: float = 3.0
    """Seconds between two acts, on average."""
    symbols: int = 300
    rate: float = 5_000.0
    """Trades a second of the whole market."""
    resume: float = 3_600.0
    """engine.resume_max_ms, in seconds."""
    kills: int = 1
    """How often each room is killed in the end, to see how long it takes to be live again."""
    weight: int = 1_000_000
    """The exchange's REST limit a minute: the real one makes 300 symbols wait for minutes."""
    start_time: int = 0
    """The exchange's time at the start, ms; 0: shortly before the end of an hour, a day or a month.

    Minutes of the market differ by more than half.
    """


def prepare(folder: Path, plan: Plan) -> Path:
    """Write the configuration and return its path."""
    source = random.Random(plan.seed)
    rows = source.randint(ROWS_MIN, ROWS_MAX)
    start_time = plan.start_time or source.choice(ENDS) - BEFORE_END_MS
    print(f"a first start at {utc(start_time)} with {rows} klines an interval", flush=True)
    return write_config(
        folder,
        simulator={
            "seed": plan.seed % 1_000,
            "symbols": plan.symbols,
            "trades_per_second": plan.rate,
            "history_days": 5,
            "quirks": False,
            "weight_limit": plan.weight,
            "start_time": start_time,
        },
        exchange={"silence_ms": 3_000, "backfill_rows": rows},
        audit={"every_minutes": 1},
        engine={
            "save_interval_ms": 1_000,
            "silence_ask_ms": 3_000,
            "gap_retry_ms": 2_000,
            "resume_max_ms": int(plan.resume * 1000),
        },
    )


def run(folder: Path, plan: Plan) -> list[str]:
    """Run, inject faults, settle, and return what differs from the truth."""
    source = random.Random(plan.seed)
    path = prepare(folder, plan)
    disk = own_disk(load({"KLAGG_CONFIG": str(path)}).postgres_path)
    system = System(path, disk)
    health = Health(system.config)
    try:
        wait_until_live(system, health, LIVE_MAX_S * 3)
        print(f"all {plan.symbols} symbols are live; chaos for {plan.seconds:.0f} s", flush=True)
        wait_for("the tables", lambda: store_faults.saved_id(system.config, BUSY) >= 0, SETTLE_MAX_S)
        wait_for("the page", lambda: _page_is_live(system.config), LIVE_MAX_S)
        store_faults.watch_finals(system.config)
        end, acts = time.monotonic() + plan.seconds, defaultdict[str, int](int)
        for act in HOSTILE:
            acts[act(system, random.Random(plan.seed))] += 1
        while time.monotonic() < end:
            acts[inject_fault(system, source)] += 1
            system.wait(source.uniform(0.3, 2 * plan.every - 0.3))
        wait_for("the tables to take all", lambda: _take_all(system), LIVE_MAX_S)
        print("did:", ", ".join(f"{count} × {act}" for act, count in sorted(acts.items())), flush=True)
        system.wait(MUTE_MAX_S)
        for name in ROOMS * plan.kills:
            wait_until_live(system, health, SETTLE_MAX_S)
            system.wait(1.0)
            seconds, last = _killed(system, health, name)
            print(f"kill {name:9} live again after {seconds:.1f} s, last waiting for {last}", flush=True)
        wait_until_live(system, health, SETTLE_MAX_S)
        silent = [] if is_reported(system, source.choice(FROZEN)) else ["nobody told that a room was stopped"]
        system.wait(5.0)
        wait_until_live(system, health, SETTLE_MAX_S)
        # That ids have restarted shows by a trade: a market that stands still has none.
        wait_for("the ids of now", lambda: _ids_are_of_now(system), SETTLE_MAX_S)
        wait_for("what is unexplained to be settled", lambda: _is_explained(system), EXPLAINED_MAX_S, every=0.5)
        settle(system.config, SETTLE_MAX_S)
        found, compared = differences(system.config)
        print(f"{compared} klines compared, {len(found)} differ; engine: {_told(health.last)}", flush=True)
        broken = store_faults.broken_finals(system.config, LATE)
        print(f"{len(broken)} klines were final and changed", flush=True)
        holes = silent + broken + unproven(system.config) + system.wrong
        holes += ["the page had an error of its own"] if "Traceback" in system.rooms["viz"].log else []
        print(f"klagg verify and health: {len(holes)} places do not hold", flush=True)
        audit = audited(system.config)
        print(f"the standing audit: {audit}", flush=True)
        holes += [f"the audit found {audit['mismatched']} minutes"] if audit.get("mismatched") else []
        refused = {kind: n for kind, n in ask(system.config, "status")["refused"].items() if kind != "slow readers"}
        print(f"the exchange refused: {refused}", flush=True)
        system.stop()
        return found + holes + [f"refused by the exchange: {n} {kind}" for kind, n in refused.items()]
    finally:
        health.close()
        system.kill()
        if disk is not None:
            disk.keep()


def own_disk(folder: Path) -> Disk | None:
    """Return a disk that can be filled, or say why there is none."""
    try:
        return Disk(folder)
    except OSError as error:
        print(f"no disk will be full: {error}", flush=True)
        return None


def _killed(system: System, health: Health, name: str) -> tuple[float, str]:
    """Kill a room and return how long it takes until its work is done again, and what was waited for last.

    That is: a trade that was made after the kill is published, and the engine says later than that that the feed is
    there and nothing is missing. Whoever saves has saved such a trade; the page is live.
    """
    began = time.monotonic()
    system.rooms[name].process.send_signal(signal.SIGKILL)
    system.rooms[name].process.wait()
    last_id = last_id_traded(system.config)
    figures: dict[str, Any] = {}
    last = ""
    while time.monotonic() < began + LIVE_MAX_S:
        system.mend()
        was_published = health.newest_id > last_id
        fresh = health.fresh()
        if was_published:
            figures = fresh or figures
        conditions = {
            "trades": was_published,
            "the feed": figures.get("connected"),
            "missing trades": figures.get("missing_ids") == 0,
            "saving": name not in ("postgres", "persist") or store_faults.saved_id(system.config, BUSY) > last_id,
            "the page": name != "viz" or _page_is_live(system.config),
        }
        lacking = [what for what, is_true in conditions.items() if not is_true]
        if not lacking:
            break
        last = ", ".join(lacking)
        time.sleep(0.02)
    return time.monotonic() - began, last


def is_reported(system: System, name: str) -> bool:
    """Stop a room for a while, and say whether health was not well meanwhile."""
    began = time.monotonic()
    room = system.rooms[name]
    room.process.send_signal(signal.SIGSTOP)
    while (ok := _is_ok(system.config)) and time.monotonic() < began + REPORTED_MAX_S:
        time.sleep(0.1)
    stopped_s = time.monotonic() - began
    room.process.send_signal(signal.SIGCONT)
    wait_for("health to be well again", lambda: _is_ok(system.config, system), SETTLE_MAX_S)
    back_s = time.monotonic() - began - stopped_s
    print(f"stop {name:9} told after {stopped_s:.1f} s: {not ok}; well again after {back_s:.1f} s", flush=True)
    return not ok


def _is_ok(config: Config, mended: System | None = None) -> bool:
    if mended is not None:
        mended.mend()
    try:
        with urllib.request.urlopen(f"http://{config.viz.host}:{config.viz.port}/health", timeout=2) as answer:
            return bool(json.load(answer)["ok"])
    except OSError:
        return False


def _take_all(system: System) -> bool:
    system.mend()
    try:
        store_faults.take_all(system.config)
    except psycopg.Error:
        return False
    return True


def _page_is_live(config: Config) -> bool:
    """Say whether viz serves, and receives the engine."""
    try:
        with urllib.request.urlopen(f"http://{config.viz.host}:{config.viz.port}/health", timeout=2) as answer:
            return bool(json.load(answer)["engine"]["state"] == "live")
    except OSError:
        return False


def last_id_traded(config: Config) -> int:
    """Return the newest trade that the exchange has made of the busy symbol."""
    return int(ask(config, "status")["last_ids"][BUSY]["aggTrade"])


def _ids_are_of_now(system: System) -> bool:
    """Say whether no symbol has saved ids that the exchange has not made since it was listed last."""
    system.mend()
    saved, last_ids = store_faults.last_ids(system.config), ask(system.config, "status")["last_ids"]
    return bool(saved) and all(last_id <= last_ids[symbol]["aggTrade"] for symbol, last_id in saved.items())


def _is_explained(system: System) -> bool:
    system.mend()
    return store_faults.is_explained(system.config)


def wait_until_live(system: System, health: Health, timeout: float) -> None:
    """Wait until every symbol is there, nothing is missing, and trades go on."""
    last_id = last_id_traded(system.config)

    def live() -> bool:
        system.mend()
        is_published = health.newest_id > last_id
        figures = health.fresh()
        symbols = ask(system.config, "status")["symbols"] if figures else 0
        return (
            is_published
            and bool(figures)
            and figures["connected"]
            and figures["symbols"] >= symbols
            and figures["missing_ids"] == 0
        )

    wait_for("all symbols to be live without a gap", live, timeout, every=0.2)


def _told(figures: dict[str, Any]) -> str:
    names = ("applied", "duplicates", "late", "refused", "beyond_window", "unsaved_overwritten", "missing_ids")
    return ", ".join(f"{name} {figures.get(name)}" for name in names)


def main() -> None:
    play("chaos", __doc__, run)


def play(name: str, says: str, run: Callable[[Path, Plan], list[str]]) -> None:
    """Read a plan from the command line, run it, and end with 1 and everything kept if anything is wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.{name}", description=says.split("\n\n")[0])
    for option, value in Plan(random.randrange(2**32))._asdict().items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    plan = Plan(**vars(parser.parse_args()))
    print(f"seed {plan.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"klagg-{name}-"))
    found = run(folder, plan)
    for line in found[:20]:
        print(line)
    if found:
        print(f"logs and database are kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
