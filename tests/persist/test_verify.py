"""`klagg verify`: silent on a history that the engine made, and exact about every way to spoil it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.database import database
from harness.processes import write_config
from services.persist import store
from services.persist.checks import CHECKS
from services.persist.verify import verify
from shared.config import load
from shared.postgres import database_url
from shared.wire import Unexplained
from tests.engine.played import MINUTE, START, PlayedEngine, Trade, batch, market


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = write_config(tmp_path_factory.mktemp("database"))
    with database(path):
        yield path


@pytest.fixture
def connection(config: Path) -> Iterator[store.Connection]:
    """A database with what an engine made of two symbols' trades."""
    played = PlayedEngine(START + 8 * MINUTE)
    with store.connect(database_url(load({"KLAGG_CONFIG": str(config)}))) as connection:
        connection.execute("TRUNCATE klines, symbols, engine_state")
        for index, symbol in enumerate(("BTCUSDT", "ETHUSDT")):
            played.add(symbol)
            played.apply(batch(market(index, 80), symbol=symbol, covered=[(0, 99)]))
        played.until(START + 9 * MINUTE)
        saved = played.save()
        assert saved is not None
        store.save(connection, saved)
        yield connection


def failed(connection: store.Connection) -> dict[str, list[str]]:
    return {result.check.name: result.examples for result in verify(connection, lambda *_: None) if result.failures}


def test_what_the_engine_made_holds(connection: store.Connection) -> None:
    steps: list[tuple[str, int, int]] = []
    results = verify(connection, lambda *step: steps.append(step))
    assert [(result.check, result.failures) for result in results] == [(check, 0) for check in CHECKS]
    assert [step[0] for step in steps] == [check.name for check in CHECKS]


THIRD = "symbol = 'ETHUSDT' AND interval = '1m' AND open_time = (SELECT open_time FROM klines WHERE symbol = 'ETHUSDT' "
THIRD += "AND interval = '1m' AND trade_count > 1 AND id_count > 1 ORDER BY open_time OFFSET 1 LIMIT 1)"


@pytest.mark.parametrize(
    ("spoil", "checks"),
    [
        (f"UPDATE klines SET low = close + 1 WHERE {THIRD}", {"each kline can be"}),
        (f"UPDATE klines SET taker_buy_volume = volume + 1 WHERE {THIRD}",
         {"each kline can be", "longer klines are merged"}),
        (f"UPDATE klines SET volume = volume + 0.001 WHERE {THIRD}", {"longer klines are merged"}),
        (f"DELETE FROM klines WHERE {THIRD}",
         {"no gap in time", "no id is missing or twice", "longer klines are merged"}),
        (
            f"UPDATE klines SET id_count = id_count - 1 WHERE {THIRD}",
            {"no id is missing or twice", "longer klines are merged"},
        ),
        (f"UPDATE klines SET first_id = first_id - 1, id_count = id_count + 1 WHERE {THIRD}",
         {"ids rise with time", "no id is missing or twice",
          "longer klines are merged"}),
        ("UPDATE symbols SET gaps = '{[3,4]}' WHERE symbol = 'ETHUSDT'", {"marks of symbols"}),
        ("UPDATE symbols SET last_id = last_id - 1 WHERE symbol = 'ETHUSDT'", {"marks of symbols"}),
    ],
)  # fmt: skip
def test_what_was_spoilt_is_found_where_it_is(connection: store.Connection, spoil: str, checks: set[str]) -> None:
    assert connection.execute(spoil).rowcount == 1
    found = failed(connection)
    assert set(found) == checks
    assert all(example.startswith("ETHUSDT") for examples in found.values() for example in examples)


def run(config: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "verify"],
        env=os.environ | {"KLAGG_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_says_a_line_a_check_and_the_failures(connection: store.Connection, config: Path) -> None:
    code, text = run(config)
    assert code == 0, text
    assert text.count(" ok ") == len(CHECKS)
    connection.execute(f"UPDATE klines SET volume = volume + 0.001 WHERE {THIRD}")
    code, text = run(config)
    assert code == 1
    assert "FAILED" in text
    assert "    ETHUSDT 3m 20" in text


def test_a_database_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    code, text = run(write_config(tmp_path))
    assert code == 2
    assert text.startswith("klagg verify: ")
    assert "Traceback" not in text


def test_nothing_is_changed(connection: store.Connection) -> None:
    before = connection.execute("SELECT count(*), sum(volume), max(xmin::text) FROM klines").fetchone()
    verify(connection, lambda *_: None)
    assert connection.execute("SELECT count(*), sum(volume), max(xmin::text) FROM klines").fetchone() == before


@pytest.mark.parametrize("followed", [True, False])
def test_no_kline_is_final_that_lacks_a_trade_which_came_when_it_had_left_memory(
    connection: store.Connection, followed: bool
) -> None:
    """Nor does the proof stumble over it: another one follows minutes later, or it is the symbol's last."""
    connection.execute("TRUNCATE klines, symbols, engine_state")
    played = PlayedEngine(START, clock_speed=0.0)
    played.add()
    made = [Trade(n, START + n * MINUTE + 500, 100 + n, 5) for n in range(130)]
    fallen = Trade(130, START + 10 * MINUTE + 700, 90, 5)
    later = [Trade(n, START + (n + 3) * MINUTE, 100, 5) for n in range(131, 140)]
    for trade in [*made, fallen, *(later if followed else [])]:
        time = max(trade.time, made[-1].time if trade.id >= 130 else 0)
        played.apply(batch([trade], event_time=time))
        while trade.id % 20 in (10, 19) and (saved := played.save()) is not None:
            store.save(connection, saved)
        played.engine.tick(played.now_ns)
    while (saved := played.save()) is not None:
        store.save(connection, saved)
    assert failed(connection) == {}
    (named,) = played.marks["BTCUSDT"].unexplained
    assert named == Unexplained(130, 130, fallen.time, made[-1].time)
    rows = connection.execute(
        "SELECT (extract(epoch FROM open_time) * 1000)::int8, final, unexplained FROM klines WHERE interval = '1m'"
    ).fetchall()
    flags = {(time - START) // MINUTE: (final, unexplained) for time, final, unexplained in rows}
    assert (flags[9], flags[10], flags[100]) == ((True, False), (False, True), (False, True))
    if followed:
        assert flags[131] == (True, False)
