"""The tables: what goes in comes out, to the last digit, and only whole."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.database import database
from harness.processes import write_config
from services.persist import store, tables
from services.persist.export import COLUMNS, export_csv, left_out
from services.persist.pgcopy import COUNTS, DECIMALS
from shared.calendar import next_open_time, open_time_of
from shared.interval import INTERVAL_NAMES
from shared.kline import AUDITED, CLOSED, EXCHANGE, FINAL, PLACED_KLINE, QUOTE_MAX, QUOTES, SATURATED, UNEXPLAINED
from shared.process import Unavailable
from shared.wire import AuditMark, DirtyBatch, Mismatch, SymbolMark, placed_rows

NOW = 1_790_000_000_000
VALUES = DECIMALS + COUNTS
WANTED = [100] * len(INTERVAL_NAMES)
INT64 = st.integers(-(2**63), 2**63 - 1)
QUOTE = st.one_of(st.integers(0, QUOTE_MAX), st.integers(0, 2**64), st.integers(10**18 - 2, 10**18 + 2))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with database(write_config(tmp_path_factory.mktemp("database"))) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[store.Connection]:
    with store.connect(url) as connection:
        connection.execute("TRUNCATE klines, symbols, engine_state")
        yield connection


def mark(symbol: str = "BTCUSDT", price: int = 2, quantity: int = 3, **fields: Any) -> SymbolMark:
    values: dict[str, Any] = {
        "stream": f"{symbol.lower()}@aggTrade",
        "active": True,
        "grid_3d": 0,
        "seam_time": NOW,
        "last_id": 41,
        "gaps": [],
    }
    return SymbolMark(symbol, price, quantity, **(values | fields))


def rows(count: int = 1, symbol: int = 0, interval: str = "1m", begin: int = NOW, **fields: Any) -> np.ndarray:
    """Return consecutive klines of an interval."""
    placed = np.zeros(count, PLACED_KLINE)
    placed["symbol"], placed["interval"] = symbol, INTERVAL_NAMES.index(interval)
    time = open_time_of(interval, begin)
    for index in range(count):
        placed["kline"][index]["open_time"] = time
        time = next_open_time(interval, time)
    for name, value in fields.items():
        if name in QUOTES:
            placed["kline"][f"{name}_high"], value = divmod(value, 10**18)
        placed["kline"][name] = value
    return placed


def batch(placed: np.ndarray, marks: list[SymbolMark] | None = None, number: int = 1) -> DirtyBatch:
    return DirtyBatch(1, number, NOW, marks if marks is not None else [mark()], placed.tobytes())


def loaded(connection: store.Connection, window: int = 1_000) -> tuple[list[SymbolMark], np.ndarray]:
    parts = list(store.load(connection, 9, [window] * len(INTERVAL_NAMES)))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.session for part in parts} == {9}
    marks: list[SymbolMark] = []
    found = []
    for part in parts:
        content = placed_rows(part.rows).copy()
        content["symbol"] += len(marks)
        marks += part.marks
        found.append(content)
    return marks, np.concatenate(found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.tuples(*(QUOTE if name in QUOTES else INT64 for name in VALUES)),
    price=st.integers(0, 12),
    quantity=st.integers(0, 12),
    flags=st.integers(0, CLOSED | EXCHANGE | FINAL | UNEXPLAINED | AUDITED | SATURATED),
    interval=st.sampled_from(INTERVAL_NAMES),
)
def test_whatever_a_kline_holds_comes_back_the_same(
    connection: store.Connection, values: tuple[int, ...], price: int, quantity: int, flags: int, interval: str
) -> None:
    placed = rows(3, interval=interval, flags=flags, revision=7, **dict(zip(VALUES, values, strict=True)))
    marks = [
        mark(
            price=price,
            quantity=quantity,
            gaps=[(3, 3), (5, 2**62)],
            lacking=[("1m", 60_000, 2**45)],
            proven_time=7,
            audit=AuditMark(60_000, {"matched": 3}, [Mismatch(60_000, {"low": (1, 2**62)})]),
        )
    ]
    connection.execute("TRUNCATE klines")
    store.save(connection, batch(placed, marks))
    store.save(connection, batch(placed, marks))
    found_marks, found = loaded(connection)
    assert found_marks == marks
    assert found.tobytes() == placed.tobytes()


@pytest.mark.parametrize(
    ("column", "number"),
    [
        *(("volume", number) for number in ("1e30", "0.123456789", "'NaN'", "9223372036854775.808")),
        *(("quote_volume", number) for number in ("1e40", "-1", "327680000000000000", "0.0000001")),
    ],
)
def test_a_number_that_does_not_fit_costs_its_row_alone(connection: store.Connection, column: str, number: str) -> None:
    placed = rows(3, volume=5)
    store.save(connection, batch(placed))
    second = "(SELECT min(open_time) + interval '1 minute' FROM klines)"
    connection.execute(f"UPDATE klines SET {column} = {number} WHERE open_time = {second}")
    _, found = loaded(connection)
    assert found.tobytes() == placed[[0, 2]].tobytes()


def test_people_read_exact_decimals_and_utc_times(connection: store.Connection) -> None:
    placed = rows(
        open=6_250_010,
        high=6_250_020,
        low=-5,
        close=0,
        volume=12_345,
        quote_volume=3 * 10**22 + 7,
        id_count=2,
        flags=EXCHANGE,
    )
    store.save(connection, batch(placed))
    connection.execute("SET timezone = 'UTC'")
    row = connection.execute(
        "SELECT open::text, low::text, close::text, volume::text, quote_volume::text, open_time, close_time, closed,"
        " source FROM klines WHERE symbol = 'BTCUSDT' AND interval = '1m'"
    ).fetchone()
    opened = datetime.fromtimestamp(NOW // 60_000 * 60, UTC)
    assert row == (
        "62500.10",
        "-0.05",
        "0.00",
        "12.345",
        "300000000000000000.00007",
        opened,
        opened.replace(second=59, microsecond=999_000),
        False,
        "both",
    )


def test_a_newer_version_of_a_row_replaces_the_older(connection: store.Connection) -> None:
    store.save(connection, batch(rows(close=1, last_id=5)))
    store.save(connection, batch(rows(close=2, last_id=6, flags=CLOSED), [mark(price=4, last_id=6)]))
    marks, found = loaded(connection)
    assert (marks[0].last_id, marks[0].price_decimals) == (6, 4)
    assert [tuple(row["kline"][["close", "last_id", "flags"]]) for row in found] == [(2, 6, CLOSED)]


def test_rows_and_marks_of_a_batch_are_saved_together_or_not_at_all(connection: store.Connection) -> None:
    store.save(connection, batch(rows(close=1)))
    twice = np.concatenate([rows(close=5), rows(close=6)])
    with pytest.raises(psycopg.errors.CardinalityViolation):
        store.save(connection, batch(twice, [mark(last_id=99)]))
    with pytest.raises(psycopg.Error):
        store.save(connection, batch(rows(2, close=7), [mark(last_id=99), mark("X", gaps=[(9, 1)])]))
    marks, found = loaded(connection)
    assert (marks[0].last_id, found["kline"]["close"].tolist()) == (41, [1])
    # What is left in the staging table of a failed batch must not come up in the next.
    store.save(connection, batch(rows(begin=NOW + 3_600_000, close=8)))
    assert sorted(loaded(connection)[1]["kline"]["close"].tolist()) == [1, 8]


def test_symbols_of_one_batch_may_be_named_at_any_length(connection: store.Connection) -> None:
    marks = [mark("A"), mark("币安人生USDT", price=7), mark("1000000MOGUSDT_270326")]
    placed = np.concatenate([rows(2, symbol=symbol, close=-(10**12) * symbol) for symbol in (2, 0, 1)])
    store.save(connection, batch(placed, marks))
    found_marks, found = loaded(connection)
    assert {each.symbol for each in found_marks} == {each.symbol for each in marks}
    names = [found_marks[symbol].symbol for symbol in found["symbol"].tolist()]
    expected = {each.symbol: -(10**12) * symbol for symbol, each in enumerate(marks)}
    assert [expected[name] for name in names] == found["kline"]["close"].tolist()
    assert len(found) == 6


def finals(connection: store.Connection) -> list[bool]:
    return [bool(row[0]) for row in connection.execute("SELECT final FROM klines ORDER BY open_time")]


def test_klines_become_final_when_a_mark_passes_their_end(connection: store.Connection) -> None:
    begin = NOW // 60_000 * 60_000
    store.save(connection, batch(rows(3, flags=CLOSED), [mark(proven_time=begin)]))
    assert finals(connection) == [False, False, False]
    store.save(connection, batch(rows(0), [mark(proven_time=begin + 59_999)]))
    assert finals(connection) == [False, False, False]
    store.save(connection, batch(rows(0), [mark(proven_time=begin + 60_000)]))
    assert finals(connection) == [True, False, False]
    lacking = [("1m", begin, begin)]
    store.save(connection, batch(rows(0), [mark(proven_time=begin + 130_000, lacking=lacking)]))
    assert finals(connection) == [True, False, False]
    store.save(connection, batch(rows(0), [mark(proven_time=begin + 130_000)]))
    assert finals(connection) == [True, True, False]


def test_a_kline_that_comes_after_its_proof_is_final(connection: store.Connection) -> None:
    begin = NOW // 60_000 * 60_000
    store.save(connection, batch(rows(0), [mark(proven_time=begin + 70_000)]))
    store.save(connection, batch(rows(3, flags=CLOSED), [mark(proven_time=begin + 70_000)]))
    assert finals(connection) == [True, False, False]


def test_saving_never_reads_the_whole_table(connection: store.Connection) -> None:
    # The plan of the first batches is kept, and those find the table empty.
    for index in range(12):
        store.save(connection, batch(rows(50 if index < 8 else 3, begin=NOW + index % 3 * 60_000), number=index))
        if index == 7:
            connection.execute("VACUUM ANALYZE klines")
    query = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'klines'"
    connection.execute("SELECT pg_stat_force_next_flush()")
    before = connection.execute(query).fetchone()
    for index in range(12):
        store.save(connection, batch(rows(50, begin=NOW + index * 60_000), number=index))
    connection.execute("SELECT pg_stat_force_next_flush()")
    assert connection.execute(query).fetchone() == before


def test_the_newest_rows_of_every_interval_and_symbol_are_loaded_in_parts(connection: store.Connection) -> None:
    window = 400
    each_part = store.PART_ROWS_MAX // (len(INTERVAL_NAMES) * window)
    names = [f"S{index:03}USDT" for index in range(each_part * 3 + 1)]
    for index, name in enumerate(names):
        placed = np.concatenate([rows(3, interval=interval, close=index) for interval in INTERVAL_NAMES])
        store.save(connection, batch(placed, [mark(name, price=index % 5)]))
    store.save(connection, batch(rows(window + 50, begin=NOW - 7_000_000, close=0), [mark(names[0])]))
    parts = list(store.load(connection, 1, [window] * len(INTERVAL_NAMES)))
    assert [len(part.marks) for part in parts] == [each_part, each_part, each_part, 1, 0]
    marks, found = loaded(connection, window)
    assert [each.symbol for each in marks] == names
    assert (found["kline"]["close"] == found["symbol"]).all()
    newest = found[(found["symbol"] == 0) & (found["interval"] == 0)]["kline"]["open_time"].tolist()
    last = NOW // 60_000 * 60_000 - 6_960_000 + (window + 50 - 2) * 60_000
    assert len(newest) == window
    assert newest == sorted(newest)
    assert newest[-1] == max(last, NOW // 60_000 * 60_000 + 120_000)
    assert len(found) == (len(names) * len(INTERVAL_NAMES) - 1) * 3 + window


def test_as_many_rows_of_an_interval_are_loaded_as_are_wanted(connection: store.Connection) -> None:
    placed = np.concatenate([rows(20, interval=interval) for interval in INTERVAL_NAMES])
    store.save(connection, batch(placed))
    wanted = list(range(1, len(INTERVAL_NAMES) + 1))
    part, _ = store.load(connection, 1, wanted)
    found = placed_rows(part.rows)
    assert np.bincount(found["interval"]).tolist() == wanted
    for interval in range(len(wanted)):
        newest = placed[placed["interval"] == interval][-wanted[interval] :]
        assert found[found["interval"] == interval].tobytes() == newest.tobytes()


def test_an_empty_store_says_so(connection: store.Connection) -> None:
    (only,) = store.load(connection, 1, WANTED)
    assert (only.last, only.marks, only.rows, only.exchange_time) == (True, [], b"", 0)


def test_the_exchanges_time_is_kept(connection: store.Connection) -> None:
    store.save(connection, batch(rows()[:0], []))
    (only,) = store.load(connection, 1, WANTED)
    assert only.exchange_time == NOW


def test_tables_of_a_newer_klagg_are_left_alone(url: str) -> None:
    with store.connect(url) as connection:
        connection.execute("INSERT INTO schema_version (version) VALUES (99)")
        try:
            with pytest.raises(Unavailable, match="version 99"):
                tables.migrate(connection)
        finally:
            connection.execute("DELETE FROM schema_version WHERE version = 99")
        tables.migrate(connection)


def test_klines_are_exported_in_the_archives_form(connection: store.Connection, tmp_path: Path) -> None:
    closed = rows(2, open=100, high=120, low=90, close=110, volume=1_500, quote_volume=165_000, trade_count=3, flags=1)
    still_open = rows(1, begin=NOW + 120_000, open=110)
    monthly = rows(1, interval="1M", close=5, flags=1)
    full = rows(1, interval="1w", volume=2**63 - 1, flags=CLOSED | SATURATED)
    store.save(connection, batch(np.concatenate([closed, still_open, monthly, full])))
    store.save(connection, batch(rows(1, flags=0), [mark("SILENTUSDT")]))
    assert export_csv(connection, tmp_path) == 2
    assert left_out(connection) == [("BTCUSDT", 1)]
    header, *lines = (tmp_path / "BTCUSDT" / "BTCUSDT-1m.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    begin = NOW // 60_000 * 60_000
    assert lines[0] == f"{begin},1.00,1.20,0.90,1.10,1.500,{begin + 59_999},1.65000,3,0.000,0.00000,0"
    assert len(lines) == 2
    month = (tmp_path / "BTCUSDT" / "BTCUSDT-1M.csv").read_text().splitlines()[1].split(",")
    assert (int(month[0]), int(month[6])) == (open_time_of("1M", NOW), next_open_time("1M", int(month[0])) - 1)
    assert Decimal(month[4]) == Decimal("0.05")
    assert not (tmp_path / "SILENTUSDT").exists()
