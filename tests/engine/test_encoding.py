"""Compiled bytes of snapshots and tickers are the ones that msgspec makes of the same messages."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.book import Book, lay_out, row_id_of
from services.engine.encoding import DAY, ROWS_MAX, Encoder
from shared.calendar import next_open_time, open_time_of
from shared.interval import INTERVAL_INDEX, INTERVAL_NAMES
from shared.kline import AUDITED, CLOSED, EXCHANGE, FINAL, KLINE, QUOTE_MAX, SATURATED, UNEXPLAINED
from shared.snapshot import Snapshot, Tickers, decode_snapshot, decode_tickers
from shared.wire import encode
from tests.engine.played import MINUTE, START

WINDOW = 5
SYMBOLS = 40
PRICES, VOLUMES = ("open", "high", "low", "close"), ("volume", "taker_buy_volume")
QUOTE_VOLUMES = ("quote_volume", "taker_buy_quote_volume")
COUNTS = ("trade_count", "first_id", "last_id", "id_count")

edges = [sign * 2**bits + step for bits in range(64) for sign in (-1, 1) for step in (-1, 0, 1)]
int64s = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([edge for edge in edges if -(2**63) <= edge < 2**63]),
    st.integers(0, 18).map(lambda digits: 10**digits),
)
int16s = st.one_of(st.integers(-(2**15), 2**15 - 1), st.integers(0, 300))
quotes = st.one_of(
    st.integers(0, QUOTE_MAX),
    st.integers(0, 22).flatmap(lambda digits: st.integers(10**digits - 1, 10**digits + 1)),
    st.integers(0, 32_767).map(lambda high: high * 10**18),
)
decimals = st.integers(0, 18)
names = st.one_of(
    st.text(min_size=1, max_size=32), st.sampled_from(["BTCUSDT", "币安人生USDT", "X" * 31, "X" * 32, "X" * 300])
)
book: Book = lay_out(SYMBOLS, WINDOW)[0]


def text_of(value: int, decimals: int) -> str:
    """Return a value in units of 10**-decimals as it is published."""
    return f"{Decimal(value).scaleb(-decimals):f}"


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row, what its symbol has, and where it is: everything that a snapshot depends on."""
    interval = draw(st.sampled_from(INTERVAL_NAMES))
    fields = {name: draw(int64s) for name in (*PRICES, *VOLUMES, *COUNTS)}
    fields |= {name: draw(quotes) for name in QUOTE_VOLUMES}
    grid = draw(st.integers(0, 2))
    open_time = open_time_of(interval, draw(st.integers(4 * 86_400_000, 2**42)), grid * 86_400_000)
    end_time = next_open_time(interval, open_time, grid * 86_400_000)
    times = st.sampled_from([time + step for time in (open_time, end_time) for step in (-1, 0, 1)])
    gaps = draw(st.lists(st.tuples(times, times), max_size=2))
    return fields | {
        "interval": interval,
        "open_time": open_time,
        "end_time": end_time,
        "grid": grid,
        "gaps": gaps,
        "flags": draw(st.integers(0, 63)),
        "revision": draw(int16s),
    }


def put(symbol: int, price: int, quantity: int, row: dict[str, Any]) -> int:
    """Put a row into the book and return its row id."""
    state, interval = book.symbols[symbol], INTERVAL_INDEX[row["interval"]]
    state["price_decimals"], state["quantity_decimals"], state["grid"] = price, quantity, row["grid"]
    state["gap_count"] = len(row["gaps"])
    for index, (from_time, to_time) in enumerate(row["gaps"]):
        book.gaps[symbol, index]["from_time"], book.gaps[symbol, index]["to_time"] = from_time, to_time
    slot = row["open_time"] // 60_000 % WINDOW
    kline = book.rows[symbol, interval, slot]
    for name in KLINE.names or ():
        kline[name] = 0 if name in QUOTE_VOLUMES else row.get(name, 0)
    for name in QUOTE_VOLUMES:
        kline[f"{name}_high"], kline[name] = divmod(row[name], 10**18)
    return int(row_id_of(book, symbol, interval, slot))


def snapshot(symbol: str, price: int, quantity: int, row: dict[str, Any], **numbers: int) -> Snapshot:
    texts = {name: text_of(row[name], price) for name in PRICES}
    texts |= {name: text_of(row[name], quantity) for name in VOLUMES}
    texts |= {name: text_of(row[name], price + quantity) for name in QUOTE_VOLUMES}
    source = "trades"
    if row["flags"] & EXCHANGE:
        source = "both" if row["id_count"] else "exchange"
    values: dict[str, Any] = texts | {name: row[name] for name in COUNTS} | numbers
    return Snapshot(
        symbol=symbol,
        interval=row["interval"],
        open_time=row["open_time"],
        close_time=row["end_time"] - 1,
        closed=bool(row["flags"] & CLOSED),
        final=bool(row["flags"] & FINAL),
        gap=not row["flags"] & FINAL
        and any(begin < row["end_time"] and end >= row["open_time"] for begin, end in row["gaps"]),
        unexplained=bool(row["flags"] & UNEXPLAINED),
        audited=bool(row["flags"] & AUDITED),
        saturated=bool(row["flags"] & SATURATED),
        source=source,
        revision=row["revision"],
        **values,
    )


@settings(max_examples=500, deadline=None)
@given(names, decimals, decimals, rows(), int64s, int64s)
def test_a_snapshot_is_written_as_msgspec_writes_it(
    name: str, price: int, quantity: int, row: dict[str, Any], session: int, exchange_time: int
) -> None:
    encoder = Encoder(book, session)
    encoder.know(["other", name])
    row_id = put(1, price, quantity, row)
    (body,) = encoder.snapshots(np.array([row_id]), exchange_time)
    expected = snapshot(name, price, quantity, row, sequence=1, session=session, exchange_time=exchange_time)
    assert decode_snapshot(body) == expected
    assert body == encode(expected)


def test_many_snapshots_are_each_topics_own_in_order_and_numbered() -> None:
    encoder = Encoder(book, 7)
    symbols = [f"SYM{symbol}" for symbol in range(SYMBOLS)]
    encoder.know(symbols)
    row: dict[str, Any] = dict.fromkeys((*PRICES, *VOLUMES, *QUOTE_VOLUMES, *COUNTS), 12_345)
    row |= {"grid": 0, "flags": 0, "revision": 0}
    row |= {"interval": "1m", "open_time": START, "end_time": START + MINUTE, "gaps": []}
    numbers = np.array([put(symbol, 2, 3, row) for symbol in range(SYMBOLS)])
    times = 2 * ROWS_MAX // SYMBOLS + 1
    bodies = list(encoder.snapshots(np.tile(numbers, times), 1))
    assert len(bodies) == SYMBOLS * times > 2 * ROWS_MAX
    numbered = {"session": 7, "exchange_time": 1}
    for index, body in enumerate(bodies):
        sequence, symbol = index // SYMBOLS + 1, symbols[index % SYMBOLS]
        assert body == encode(snapshot(symbol, 2, 3, row, sequence=sequence, **numbered))
    assert list(encoder.snapshots(numbers[:0], 1)) == []


def test_decimals_that_do_not_fit_are_no_bytes() -> None:
    encoder = Encoder(book, 7)
    encoder.know(["X"])
    row = dict.fromkeys((*PRICES, *VOLUMES, *QUOTE_VOLUMES, *COUNTS), 1) | {"grid": 0, "flags": 0, "revision": 0}
    row_id = put(0, 2, 19, row | {"interval": "1m", "open_time": START, "gaps": []})
    with pytest.raises(ValueError, match="decimals"):
        list(encoder.snapshots(np.array([row_id]), 1))


tickers = st.tuples(names, decimals, decimals, st.booleans(), st.one_of(st.just(0), int64s), *[int64s] * 4, quotes)


@settings(max_examples=200, deadline=None)
@given(st.lists(tickers, max_size=SYMBOLS), int64s, int64s)
def test_tickers_are_written_as_msgspec_writes_them(
    all_of_them: list[tuple[Any, ...]], session: int, exchange_time: int
) -> None:
    encoder = Encoder(book, session)
    encoder.know([name for name, *_ in all_of_them])
    days = np.zeros(len(all_of_them), DAY)
    for symbol, (_, price, quantity, active, *values) in enumerate(all_of_them):
        state = book.symbols[symbol]
        state["price_decimals"], state["quantity_decimals"], state["active"] = price, quantity, active
        high, values[-1] = divmod(values[-1], 10**18)
        days[symbol] = (*values, high)
    known = [each for each in all_of_them if each[4]]
    expected = Tickers(
        sequence=1,
        session=session,
        exchange_time=exchange_time,
        symbols=[each[0] for each in known],
        last=[text_of(each[4], each[1]) for each in known],
        open_24h=[text_of(each[5], each[1]) for each in known],
        high_24h=[text_of(each[6], each[1]) for each in known],
        low_24h=[text_of(each[7], each[1]) for each in known],
        volume_24h=[text_of(each[8], each[2]) for each in known],
        quote_volume_24h=[text_of(each[9], each[1] + each[2]) for each in known],
        active=[each[3] for each in known],
    )
    body = encoder.tickers(days, exchange_time)
    assert decode_tickers(body) == expected
    assert body == encode(expected)
    assert decode_tickers(encoder.tickers(days, exchange_time)).sequence == 2
