"""All rooms asked to end at once, in any order: what was traded is in the database when they have ended."""

import random
import signal
import time
from pathlib import Path

import psycopg
import pytest

from harness.processes import Room, running, wait_for, write_config
from harness.truth import ask, differences
from shared.client import Snapshots
from shared.config import Config, load
from shared.postgres import database_url
from shared.snapshot import Snapshot, kline_topic

pytestmark = pytest.mark.pipeline

ROOMS = ("postgres", "persist", "engine", "ingest")
STOP_MAX_S = 8.0


def test_the_last_rows_are_saved_in_whatever_order_the_rooms_are_stopped(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    source = random.Random(seed)
    path = write_config(
        tmp_path,
        # Few and busy: what was traded in a pause of klagg is noticed by the next trade.
        simulator={"symbols": 3, "trades_per_second": 300.0, "history_days": 2, "quirks": False},
        # Nothing is saved by the clock in the time that this takes.
        engine={"save_interval_ms": 60_000, "save_rows": 1_000_000, "silence_ask_ms": 1_000},
    )
    config = load({"KLAGG_CONFIG": str(path)})
    with running("simulator", config=path):
        for round_ in range(3):
            rooms = {name: Room(name, path) for name in ROOMS}
            try:
                wait_for("the engine", lambda: rooms["engine"].log.count("live with") == round_ + 1, 60)  # noqa: B023
                time.sleep(4.0)
                ask(config, "pause", "POST")
                _all_applied(config)
                order = list(ROOMS)
                source.shuffle(order)
                print("order", order)
                began = time.monotonic()
                for name in order:
                    rooms[name].process.send_signal(signal.SIGTERM)
                for name in order:
                    assert rooms[name].process.wait(STOP_MAX_S) == 0, rooms[name].log
                assert time.monotonic() - began < STOP_MAX_S
            finally:
                for room in rooms.values():
                    room.stop(signal.SIGKILL)
            traded = _traded(config)
            with running("postgres", config=path) as only:
                wait_for("PostgreSQL", lambda: only["postgres"].log.count("is ready in") == 2 * round_ + 2, 60)  # noqa: B023
                with psycopg.connect(database_url(config)) as connection:
                    saved: dict[str, int] = dict(connection.execute("SELECT symbol, last_id FROM symbols").fetchall())
                    unfinished = connection.execute("SELECT count(*) FROM symbols WHERE NOT isempty(gaps)").fetchone()
                assert saved == traded
                assert unfinished == (0,)
                assert differences(config)[0][:5] == []
            ask(config, "resume", "POST")


def _traded(config: Config) -> dict[str, int]:
    """Return the last id of every symbol that has traded."""
    last_ids = {name: ids["aggTrade"] for name, ids in ask(config, "status")["last_ids"].items()}
    return {name: last_id for name, last_id in last_ids.items() if last_id is not None}


def _all_applied(config: Config) -> None:
    """Wait until the engine has applied everything that was traded, whether or not it is saved."""
    traded = _traded(config)
    with Snapshots(config.engine.snapshots, [kline_topic(name, "1M") for name in traded]) as snapshots:
        applied: dict[str, int] = {}

        def all_there() -> bool:
            message = snapshots.receive(timeout_ms=200)
            row = message[1] if message else None
            if isinstance(row, Snapshot) and row.id_count == row.last_id - row.first_id + 1:
                applied[row.symbol] = row.last_id
            return applied == traded

        wait_for("the engine to apply everything", all_there)
