"""Aggregate trades as bytes: the compiled writer says what JSON templates say, whatever the numbers and the names."""

import json
import random
import time

import numpy as np
import pytest

from services.simulator.frames import Chunk
from services.simulator.rows import AGG_ROW, KLINE_ROW, Instrument, Rows, merge
from services.simulator.writing import AggChunk, AggWriter, kline_page

INSTRUMENTS = [
    Instrument(symbol=symbol, price_decimals=price, quantity_decimals=quantity)
    for symbol, price, quantity in (
        ("BTCUSDT", 2, 3),
        ("X", 0, 0),
        ("币安人生USDT", 4, 0),
        ("1000SHIBUSDT", 8, 1),
        ("ODDUSDT", 18, 7),
        ("LONG" * 50, 1, 5),
    )
]
QUOTES = ("quote_volume", "taker_buy_quote_volume")
EDGES = (0, 1, -1, 9, 10, 99, 100, -100, 999_999_999, 10**18, 2**63 - 1, 1 - 2**63)


def decimal(value: int, decimals: int) -> str:
    whole, part = divmod(value, 10**decimals)
    return f"{whole}.{part:0{decimals}d}" if decimals else str(value)


def message(row: dict[str, int], instrument: Instrument) -> bytes:
    """Write one trade as plainly as Python allows."""
    price, quantity = instrument.price_decimals, instrument.quantity_decimals
    return (
        f'{{"e":"aggTrade","E":{row["event_time"]},"a":{row["id"]},"s":"{instrument.symbol}",'
        f'"p":"{decimal(row["price"], price)}","q":"{decimal(row["quantity"], quantity)}",'
        f'"nq":"{decimal(row["plain_quantity"], quantity)}","f":{row["first"]},"l":{row["last"]},"T":{row["time"]},'
        f'"m":{"true" if row["maker"] else "false"},"st":1}}'
    ).encode()


def some_rows(source: random.Random, count: int) -> Rows:
    rows = np.zeros(count, AGG_ROW)
    for index in range(count):
        for name in AGG_ROW.names or ():
            value = source.choice(EDGES) if source.random() < 0.3 else source.randrange(10 ** source.randrange(1, 19))
            rows[name][index] = value % 2 if name == "maker" else value
    return rows


def plain(rows: Rows, owners: list[int]) -> dict[int, list[bytes]]:
    messages: dict[int, list[bytes]] = {}
    for values, owner in zip(rows.tolist(), owners, strict=True):
        row = dict(zip(rows.dtype.names, values, strict=True))
        messages.setdefault(owner, []).append(message(row, INSTRUMENTS[owner]))
    return messages


@pytest.mark.parametrize("combined", [True, False])
def test_the_compiled_writer_writes_what_a_template_writes(combined: bool) -> None:
    seed = int(time.time())
    print("seed", seed)
    source = random.Random(seed)
    for _ in range(30):
        owners = sorted(source.randrange(len(INSTRUMENTS)) for _ in range(60))
        rows = some_rows(source, len(owners))
        writer = AggWriter(INSTRUMENTS)
        chunk = AggChunk(writer, rows, np.array(owners))
        messages = plain(rows, owners)
        wanted = {stream for stream in writer.streams if source.random() < 0.7}
        expected = [Chunk(writer.streams[owner], messages[owner]) for owner in sorted(messages)]
        assert bytes(chunk.frames(wanted, combined)) == b"".join(
            bytes(single.frames(wanted, combined)) for single in expected
        )
        assert [(single.stream, single.messages) for single in chunk.apart()] == [
            (single.stream, single.messages) for single in expected
        ]


@pytest.mark.parametrize("length", [*range(110, 140), 65_534, 65_535, 65_536, 65_537])
def test_a_header_says_the_length_of_its_message(length: int) -> None:
    rows = np.zeros(2, AGG_ROW)
    instrument = Instrument(symbol="", price_decimals=0, quantity_decimals=0)
    row = dict.fromkeys(AGG_ROW.names or (), 0)
    instrument = Instrument(
        symbol="A" * (length - len(message(row, instrument))), price_decimals=0, quantity_decimals=0
    )
    chunk = AggChunk(AggWriter([instrument]), rows, np.zeros(2, np.int64))
    (single,) = chunk.apart()
    assert [len(each) for each in single.messages] == [length, length]
    wanted = {single.stream}
    assert bytes(chunk.frames(wanted, False)) == bytes(
        Chunk(single.stream, [message(row, instrument)] * 2).frames(wanted, False)
    )


def test_connections_share_what_they_both_want_and_get_nothing_else() -> None:
    chunk = AggChunk(AggWriter(INSTRUMENTS), np.zeros(3, AGG_ROW), np.array([0, 1, 1]))
    both = {"btcusdt@aggTrade", "x@aggTrade"}
    assert chunk.frames(both, True) is chunk.frames(both | {"ethusdt@aggTrade"}, True)
    assert bytes(chunk.frames({"btcusdt@aggTrade"}, True)) in bytes(chunk.frames(both, True))
    assert bytes(chunk.frames({"ethusdt@aggTrade"}, True)) == b""


@pytest.mark.parametrize(("price", "quantity"), [(0, 0), (8, 0), (2, 5), (9, 9)])
def test_klines_of_more_than_64_bits_are_written_to_the_last_digit(price: int, quantity: int) -> None:
    source = random.Random(11)
    minutes = np.zeros(120, KLINE_ROW)
    minutes["open_time"] = np.arange(len(minutes)) * 60_000
    minutes["count"] = 1
    whole = {name: [source.randrange(9 * 10**18) for _ in minutes] for name in QUOTES}
    for name, values in whole.items():
        minutes[name] = values
    hours = merge(minutes, "1h", 0)
    days = merge(hours, "1d", 0)
    for rows, parts in ((hours, 60), (days, 120)):
        page = json.loads(kline_page(rows, rows["open_time"], price, quantity))
        for column, name in ((7, "quote_volume"), (10, "taker_buy_quote_volume")):
            sums = [sum(whole[name][begin : begin + parts]) for begin in range(0, len(minutes), parts)]
            assert [row[column] for row in page] == [decimal(value, price + quantity) for value in sums]
