"""What subscribers get as bytes, compiled: no Python object of a row comes about.

Decides how a row and the day's figures look outside of klagg. What is in them is said by `Snapshot` and `Tickers`
(shared/snapshot.py), and the bytes are the ones that `encode` makes of those. Knows no topic and no socket.
"""

from collections import namedtuple
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from services.engine.book import Book, locate
from shared.arrays import Bytes, Int, Integers, Record, Rows
from shared.calendar import bucket_of, bucket_start
from shared.compiled import compiled, fixed
from shared.interval import INTERVAL_NAMES
from shared.kline import AUDITED, CLOSED, EXCHANGE, FINAL, QUOTE_BASE, SATURATED, UNEXPLAINED
from shared.snapshot import Snapshot, Tickers
from shared.wire import encode

ROWS_MAX = 512
"""Snapshots written at once: so few that the first need not wait long, so many that the call costs them little."""
DECIMALS_MAX = 18
"""More are not in an int64, neither of a price nor of a quantity."""
VALUE_MAX = 2 + len("-.") + 2 * DECIMALS_MAX + 1
"""Bytes of the longest value but a symbol: a quote volume, and how long it is."""

DAY = np.dtype(
    [
        ("last", "<i8"),  # 0: nothing is known
        ("open", "<i8"),
        ("high", "<i8"),
        ("low", "<i8"),
        ("volume", "<i8"),
        ("quote_volume", "<i8"),
        ("quote_volume_high", "<i8"),
    ]
)
"""A symbol's last price and 24 h figures, in units of its last decimals; quote volumes as in `KLINE`."""


class Texts(NamedTuple):
    """Texts as msgpack has them, one after the other."""

    packed: Bytes
    ends: Integers
    """int64[texts + 1], from 0 on."""


def texts_of(texts: list[str]) -> Texts:
    parts = [encode(text) for text in texts]
    return Texts(np.frombuffer(bytearray(b"".join(parts)), np.uint8), np.cumsum([0, *map(len, parts)]))


class SnapshotBuffer(NamedTuple):
    """What snapshots are written with, and where."""

    block: Bytes
    ends: Integers
    """int64[ROWS_MAX]: where each of them ends in the block."""
    names: Texts
    """Of all symbols."""
    sequences: Integers
    """By topic, which is symbol * intervals + interval: messages since the session began."""


def names_of(message: type[Struct]) -> Any:
    """Return the names of a message's fields, each as msgpack has it, in a named tuple."""
    names = message.__struct_fields__
    return namedtuple(message.__name__, names)(*(np.frombuffer(encode(name), np.uint8) for name in names))


SNAPSHOT, TICKERS = names_of(Snapshot), names_of(Tickers)
NO_NAME = np.zeros(0, np.uint8)
"""An entry of an array has none."""
MAP, ARRAY = (0x80, 0xDE), (0x90, 0xDC)
"""What msgpack begins them with when they have less than 16 entries, and when more."""
INTERVALS = texts_of(list(INTERVAL_NAMES))
SOURCES = texts_of(["trades", "exchange", "both"])
BASE_DIGITS = len(str(QUOTE_BASE)) - 1
POWERS = 10 ** np.arange(20, dtype=np.uint64)
ONE, TEN = np.uint64(1), np.uint64(10)


class Encoder:
    def __init__(self, book: Book, session: int) -> None:
        self._book = book
        self._session = session
        self._tickers = 0
        nothing = np.zeros(0, np.int64)
        ends, sequences = np.empty(ROWS_MAX, np.int64), np.zeros(book.watched.size, np.int64)
        self.buffer = SnapshotBuffer(np.empty(0, np.uint8), ends, texts_of([]), sequences)
        self.know([])
        self._write = fixed(write_snapshots, self.buffer, book, nothing, session, 0)

    def know(self, symbols: list[str]) -> None:
        """Learn the names of all symbols, by the book's index."""
        names = texts_of(symbols)
        longest = int(np.diff(names.ends).max(initial=0))
        keys = sum(map(len, SNAPSHOT))
        block = np.empty(ROWS_MAX * (3 + keys + len(SNAPSHOT) * VALUE_MAX + longest), np.uint8)
        self.buffer = self.buffer._replace(block=block, names=names)

    def snapshots(self, row_ids: Integers, exchange_time: int) -> Iterator[bytes]:
        """Yield the rows of these ids as bodies of messages, in order."""
        for begin in range(0, len(row_ids), ROWS_MAX):
            some = row_ids[begin : begin + ROWS_MAX]
            end = self._write(self.buffer, self._book, some, self._session, exchange_time)
            yield from self.written(len(some), end)

    def written(self, count: int, end: int) -> Iterator[bytes]:
        """Yield what is in the buffer: so many bodies, and where the last one ends."""
        block = self.buffer.block[:end].tobytes()
        for start, stop in pairwise([0, *self.buffer.ends[:count].tolist()]):
            yield block[start:stop]

    def tickers(self, days: Rows, exchange_time: int) -> bytes:
        """Return the `Tickers` of DAY[symbols], without those that have no last price."""
        self._tickers += 1
        known = np.flatnonzero(days["last"])
        size = 3 + sum(map(len, TICKERS)) + (len(known) + 1) * len(TICKERS) * VALUE_MAX + len(self.buffer.names.packed)
        block = np.empty(size, np.uint8)
        end = write_tickers(
            block, self._book.symbols, days, known, self.buffer.names, self._tickers, self._session, exchange_time
        )
        return block[:end].tobytes()


@compiled
def write_snapshots(buffer: SnapshotBuffer, book: Book, row_ids: Integers, session: int, exchange_time: int) -> int:
    """Write a `Snapshot` of each row, and number it on; return where the last one ends.

    row_ids: int64[n], of rows that are there; at most `ROWS_MAX`.
    """
    block, names, sequences = buffer.block, buffer.names, buffer.sequences
    at = 0
    for n in range(len(row_ids)):
        symbol, interval, slot = locate(book, row_ids[n])
        topic = symbol * book.rows.shape[1] + interval
        state, row = book.symbols[symbol], book.rows[symbol, interval, slot]
        price, quantity = decimals_of(state)
        calendar = book.calendars[state.grid, interval]
        bucket = bucket_of(calendar.length, calendar.anchor, row.open_time)
        end_time = bucket_start(calendar.length, calendar.anchor, bucket + 1)
        sequences[topic] += 1
        at = put_size(block, at, NO_NAME, len(SNAPSHOT), MAP)
        at = put_text(block, at, SNAPSHOT.symbol, names, symbol)
        at = put_text(block, at, SNAPSHOT.interval, INTERVALS, interval)
        at = put_integer(block, at, SNAPSHOT.sequence, sequences[topic])
        at = put_integer(block, at, SNAPSHOT.session, session)
        at = put_integer(block, at, SNAPSHOT.exchange_time, exchange_time)
        at = put_integer(block, at, SNAPSHOT.open_time, row.open_time)
        at = put_integer(block, at, SNAPSHOT.close_time, end_time - 1)
        at = put_decimal(block, at, SNAPSHOT.open, row.open, price)
        at = put_decimal(block, at, SNAPSHOT.high, row.high, price)
        at = put_decimal(block, at, SNAPSHOT.low, row.low, price)
        at = put_decimal(block, at, SNAPSHOT.close, row.close, price)
        at = put_decimal(block, at, SNAPSHOT.volume, row.volume, quantity)
        at = put_quote(block, at, SNAPSHOT.quote_volume, row.quote_volume, row.quote_volume_high, price + quantity)
        at = put_integer(block, at, SNAPSHOT.trade_count, row.trade_count)
        at = put_decimal(block, at, SNAPSHOT.taker_buy_volume, row.taker_buy_volume, quantity)
        quote, high = row.taker_buy_quote_volume, row.taker_buy_quote_volume_high
        at = put_quote(block, at, SNAPSHOT.taker_buy_quote_volume, quote, high, price + quantity)
        at = put_integer(block, at, SNAPSHOT.first_id, row.first_id)
        at = put_integer(block, at, SNAPSHOT.last_id, row.last_id)
        at = put_integer(block, at, SNAPSHOT.id_count, row.id_count)
        at = put_bool(block, at, SNAPSHOT.closed, row.flags & CLOSED != 0)
        at = put_bool(block, at, SNAPSHOT.final, row.flags & FINAL != 0)
        is_final = row.flags & FINAL != 0
        at = put_bool(block, at, SNAPSHOT.gap, not is_final and has_gap(book, symbol, row.open_time, end_time))
        at = put_bool(block, at, SNAPSHOT.unexplained, row.flags & UNEXPLAINED != 0)
        at = put_bool(block, at, SNAPSHOT.audited, row.flags & AUDITED != 0)
        at = put_bool(block, at, SNAPSHOT.saturated, row.flags & SATURATED != 0)
        at = put_text(block, at, SNAPSHOT.source, SOURCES, source_of(row))
        at = put_integer(block, at, SNAPSHOT.revision, np.int64(row.revision))
        buffer.ends[n] = at
    return at


@compiled
def write_tickers(
    block: Bytes,
    symbols: Rows,
    days: Any,
    known: Integers,
    names: Texts,
    sequence: int,
    session: int,
    exchange_time: int,
) -> int:
    """Write the `Tickers` of some symbols into uint8[] and return where they end.

    symbols: SYMBOL[n]; days: DAY[n]; known: int64[], the indices of those symbols in both.
    """
    at = put_size(block, 0, NO_NAME, len(TICKERS), MAP)
    at = put_integer(block, at, TICKERS.sequence, sequence)
    at = put_integer(block, at, TICKERS.session, session)
    at = put_integer(block, at, TICKERS.exchange_time, exchange_time)
    at = put_size(block, at, TICKERS.symbols, len(known), ARRAY)
    for symbol in known:
        at = put_text(block, at, NO_NAME, names, symbol)
    at = put_column(block, at, TICKERS.last, symbols, known, days.last, True)
    at = put_column(block, at, TICKERS.open_24h, symbols, known, days.open, True)
    at = put_column(block, at, TICKERS.high_24h, symbols, known, days.high, True)
    at = put_column(block, at, TICKERS.low_24h, symbols, known, days.low, True)
    at = put_column(block, at, TICKERS.volume_24h, symbols, known, days.volume, False)
    at = put_size(block, at, TICKERS.quote_volume_24h, len(known), ARRAY)
    for symbol in known:
        price, quantity = decimals_of(symbols[symbol])
        day = days[symbol]
        at = put_quote(block, at, NO_NAME, day.quote_volume, day.quote_volume_high, price + quantity)
    at = put_size(block, at, TICKERS.active, len(known), ARRAY)
    for symbol in known:
        at = put_bool(block, at, NO_NAME, symbols[symbol].active != 0)
    return at


@compiled
def put_column(
    into: Bytes, at: int, name: Bytes, symbols: Rows, known: Integers, values: Integers, are_prices: bool
) -> int:
    """Write prices of some symbols, or quantities."""
    at = put_size(into, at, name, len(known), ARRAY)
    for symbol in known:
        price, quantity = decimals_of(symbols[symbol])
        at = put_decimal(into, at, NO_NAME, values[symbol], price if are_prices else quantity)
    return at


@compiled
def decimals_of(state: Record) -> tuple[int, int]:
    """Return the decimals of a symbol's prices and quantities, as far as an int64 has them."""
    if max(state.price_decimals, state.quantity_decimals) > DECIMALS_MAX:
        raise ValueError("a symbol has more decimals than fit an int64")
    return state.price_decimals, state.quantity_decimals


@compiled
def has_gap(book: Book, symbol: int, open_time: int, end_time: int) -> bool:
    """Say whether trades of [open_time, end_time) may be missing, and are being asked for."""
    state = book.symbols[symbol]
    if state.contradicted and state.newest_time < end_time:
        return True
    for index in range(state.gap_count):
        gap = book.gaps[symbol, index]
        if not gap.unexplained and gap.from_time < end_time and gap.to_time >= open_time:
            return True
    return False


@compiled
def source_of(row: Record) -> int:
    """Return which of `SOURCES` a row's figures come from."""
    if not row.flags & EXCHANGE:
        return 0
    return 2 if row.id_count else 1


# Each of these writes something at a position, after its name, and returns the position after it.


@compiled
def put_size(into: Bytes, at: int, name: Bytes, size: int, kind: tuple[int, int]) -> int:
    """Begin a `MAP` or an `ARRAY` of so many entries, up to 65,535."""
    at = put(into, at, name, 0, len(name))
    few, many = kind
    if size < 16:
        into[at] = few | size
        return at + 1
    into[at] = many
    return put_bytes(into, at + 1, size, 2)


@compiled
def put_text(into: Bytes, at: int, name: Bytes, texts: Texts, index: int) -> int:
    at = put(into, at, name, 0, len(name))
    return put(into, at, texts.packed, texts.ends[index], texts.ends[index + 1])


@compiled
def put_bool(into: Bytes, at: int, name: Bytes, value: bool) -> int:
    at = put(into, at, name, 0, len(name))
    into[at] = 0xC3 if value else 0xC2
    return at + 1


@compiled
def put_integer(into: Bytes, at: int, name: Bytes, value: Int) -> int:
    """Write an int64 in the fewest bytes."""
    at = put(into, at, name, 0, len(name))
    if -32 <= value < 128:
        return put_bytes(into, at, value, 1)
    # A negative number needs one bit more, for its sign.
    needed = np.uint64(value) if value >= 0 else np.uint64(~value) << ONE
    kind, size = 0xCC if value >= 0 else 0xD0, 1
    while size < 8 and needed >> np.uint64(8 * size):
        kind += 1
        size *= 2
    into[at] = kind
    return put_bytes(into, at + 1, value, size)


@compiled
def put_decimal(into: Bytes, at: int, name: Bytes, value: int, decimals: int) -> int:
    """Write a value in units of 10**-decimals, with exactly so many digits behind the point."""
    return put_quote(into, at, name, value, 0, decimals)


@compiled
def put_quote(into: Bytes, at: int, name: Bytes, value: int, high: int, decimals: int) -> int:
    """Write a value of two fields, as quote volumes have them (shared/kline.py)."""
    at = put(into, at, name, 0, len(name))
    # As an unsigned number, because the least int64 has no positive counterpart.
    rest = np.uint64(value) if value >= 0 else np.uint64(0) - np.uint64(value)
    below, above = (BASE_DIGITS, np.uint64(high)) if high else (0, rest)
    digits = decimals + 1
    while digits < below + 20 and (digits < below or above >= POWERS[digits - below]):
        digits += 1
    length = digits + (1 if decimals else 0) + (1 if value < 0 else 0)
    if length < 32:
        into[at] = 0xA0 | length
        at += 1
    else:
        into[at] = 0xD9
        into[at + 1] = length
        at += 2
    if value < 0:
        into[at] = ord("-")
    position = np.uint64(at + length)
    for n in range(digits):
        if n == decimals and n > 0:
            position -= ONE
            into[position] = ord(".")
        if n == below and n > 0:
            rest = above
        position -= ONE
        tens = rest // TEN
        into[position] = ord("0") + (rest - tens * TEN)
        rest = tens
    return at + length


@compiled
def put(into: Bytes, at: int, packed: Bytes, start: int, end: int) -> int:
    # An index that cannot be negative needs no look whether it is: that is a third of the time that a row takes.
    to, source = np.uint64(at), np.uint64(start)
    for n in range(np.uint64(end - start)):
        into[to + n] = packed[source + n]
    return at + end - start


@compiled
def put_bytes(into: Bytes, at: int, value: Int, size: int) -> int:
    """Write the last bytes of a whole number, the highest first."""
    position = np.uint64(at + size)
    for _ in range(size):
        position -= ONE
        into[position] = value & 0xFF
        value >>= 8
    return at + size
