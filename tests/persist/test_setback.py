"""A store that is set back or emptied under a running engine has everything again, to the last row."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from harness.database import database
from harness.processes import write_config
from services.persist import store
from shared.config import load
from shared.interval import INTERVAL_NAMES
from shared.kline import KLINE
from shared.postgres import database_url
from shared.wire import FetchKlines, Klines, Persisted, placed_rows
from tests.engine.played import FIELDS, MINUTE, SESSION, START, PlayedEngine, batch, expected, history, market, opens_at

NAMES = ("BTCUSDT", "ETHUSDT")
TABLES = ("klines", "symbols", "engine_state")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = write_config(tmp_path_factory.mktemp("database"))
    with database(path):
        yield database_url(load({"KLAGG_CONFIG": str(path)}))


@pytest.fixture
def connection(url: str) -> Iterator[store.Connection]:
    with store.connect(url) as connection:
        connection.execute("TRUNCATE klines, symbols, engine_state")
        yield connection


class Played:
    """An engine whose store is the real one."""

    def __init__(self, connection: store.Connection, minutes: int) -> None:
        self.connection = connection
        self.engine = PlayedEngine(window=100)
        self.trades = {name: market(seed, minutes * 4, span_ms=minutes * MINUTE) for seed, name in enumerate(NAMES, 1)}
        for name in NAMES:
            self.engine.add(name, until=START)
        self.played_until = START
        self.until(START)

    def until(self, time: int) -> None:
        begin, self.played_until = self.played_until, time
        self.engine.until(time)
        for name, trades in self.trades.items():
            self.engine.apply(batch([trade for trade in trades if begin <= trade.time < time], symbol=name))
        self.save()

    def save(self) -> None:
        """Save until nothing is unsaved, and answer what is asked of the exchange."""
        for _ in range(200):
            made = self.engine.engine.take_batch(self.engine.now_ns, last=True)
            if made is None and not self.answer():
                return
            if made is None:
                continue
            try:
                tables = store.save(self.connection, made)
            except store.Changed:
                self.engine.apply(store.state(self.connection, 1))
            else:
                self.engine.apply(Persisted(SESSION, made.batch, tables))
        raise AssertionError("there is no end to it")

    def answer(self) -> bool:
        self.engine.engine.tick(self.engine.now_ns)
        asked = [each for each in self.engine.engine.take_commands() if isinstance(each, FetchKlines)]
        for each in asked:
            parts = {part.interval: part.rows for part in history(self.trades[each.symbol], self.engine.time, 10**6)}
            klines = np.frombuffer(parts.get(each.interval, b""), KLINE)
            those = (klines["open_time"] >= each.start_time) & (klines["open_time"] <= each.end_time)
            self.engine.apply(
                Klines(each.symbol, 2, 3, each.interval, klines[those].tobytes(), start_time=each.start_time)
            )
        return bool(asked)

    def differing(self) -> list[Any]:
        found = []
        (marks, stored) = self.loaded()
        for index, symbol in enumerate(marks):
            of = stored[stored["symbol"] == index]
            rows = {(INTERVAL_NAMES[row["interval"]], int(row["kline"]["open_time"])): row["kline"] for row in of}
            want = expected(trade for trade in self.trades[symbol] if trade.time < self.engine.time)
            for key, values in want.items():
                row = rows.get(key)
                names = FIELDS[:9] if values["trade_count"] else FIELDS[4:9]
                if row is None or any(int(row[name]) != values[name] for name in names):
                    found.append((symbol, *key))
            # Flat minutes too.
            minutes = sorted(time for interval, time in rows if interval == "1m")
            found += [
                (symbol, "1m", time) for time in range(minutes[0], opens_at("1m", self.engine.time), MINUTE)
                if ("1m", time) not in rows
            ]  # fmt: skip
        return found

    def loaded(self) -> tuple[list[str], np.ndarray]:
        names: list[str] = []
        parts = []
        for part in store.load(self.connection, 9, [5_000] * len(INTERVAL_NAMES)):
            content = placed_rows(part.rows).copy()
            content["symbol"] += len(names)
            names += [mark.symbol for mark in part.marks]
            parts.append(content)
        return names, np.concatenate(parts)


def snapshot(connection: store.Connection) -> None:
    for table in TABLES:
        connection.execute(f"DROP TABLE IF EXISTS kept_{table}")
        connection.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")


def restore(connection: store.Connection, tables: tuple[str, ...] = TABLES, by: str = "TRUNCATE") -> None:
    with connection.transaction():
        for table in tables:
            connection.execute(f"{by} {table}")
            connection.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")


@pytest.mark.parametrize("by", ["TRUNCATE", "DELETE FROM"])
@pytest.mark.parametrize("minutes", [2, 30, 250])
def test_a_store_that_is_set_back_is_whole_again(connection: store.Connection, minutes: int, by: str) -> None:
    """After 250 minutes most of what is gone has left memory, and comes from the exchange."""
    played = Played(connection, 300)
    played.until(START + 20 * MINUTE + 30_000)
    snapshot(connection)
    for minute in range(0, minutes, 5):
        played.until(START + (20 + minute) * MINUTE + 45_000)
    played.until(START + (20 + minutes) * MINUTE + 50_000)
    assert played.differing() == []
    restore(connection, by=by)
    assert played.differing() != []
    played.until(START + (21 + minutes) * MINUTE)
    played.save()
    assert played.engine.engine.store_changes == 1
    assert played.differing() == []


@pytest.mark.parametrize("tables", [TABLES, ("klines",), ("symbols",), ("engine_state",), ("klines", "symbols")])
def test_a_store_that_is_emptied_has_again_what_is_in_memory(
    connection: store.Connection, tables: tuple[str, ...]
) -> None:
    played = Played(connection, 60)
    for minute in range(0, 40, 10):
        played.until(START + minute * MINUTE + 45_000)
    connection.execute(f"TRUNCATE {', '.join(tables)}")
    played.until(START + 41 * MINUTE)
    assert played.engine.engine.store_changes == 1
    assert played.differing() == []


def test_a_store_that_nobody_touched_is_not_written_again(connection: store.Connection) -> None:
    played = Played(connection, 60)
    for minute in range(0, 40, 10):
        played.until(START + minute * MINUTE)
    # An acknowledgement is lost with its persist: the store is ahead of what the engine knows.
    played.engine.until(START + 40 * MINUTE)
    made = played.engine.engine.take_batch(played.engine.now_ns, last=True)
    assert made is not None
    store.save(connection, made)
    played.engine.apply(store.state(connection, 2))
    played.until(START + 41 * MINUTE)
    assert played.engine.engine.store_changes == 0
    assert played.differing() == []


def test_another_engines_batch_is_not_saved_over_ours(connection: store.Connection) -> None:
    played = Played(connection, 10)
    played.until(START + MINUTE)
    other = PlayedEngine()
    other.add()
    other.apply(batch(market(9, 5)))
    foreign = other.engine.take_batch(0, last=True)
    assert foreign is not None
    with pytest.raises(store.Changed):
        store.save(connection, replace(foreign, session=SESSION + 1))
