"""Rows between numpy and PostgreSQL's binary COPY, without any work of Python's a row or a field.

Decides how a `KLINE` looks in the staging table, and how what comes back from the klines table is read. Prices and
volumes are exact decimals in SQL, so integers become NUMERIC here and the other way round: PostgreSQL would take twice
as long for it as for the saving itself. Knows no connection and no SQL but the order of columns.

NUMERIC travels as digits of base 10,000 (PostgreSQL's numeric.c: numeric_recv, numeric_send): a count, the weight of
the first digit, a sign, the number of decimals to show, and the digits. It may begin and end with zeros; those in front
are left out, because the server takes each digit by a call.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Bytes, Int, Integers, Integers32, Record, Rows
from shared.calendar import next_open_time
from shared.compiled import compiled
from shared.decimals import INT64_MAX
from shared.interval import INTERVAL_NAMES, INTERVALS
from shared.kline import (
    AUDITED,
    CLOSED,
    EXCHANGE,
    FINAL,
    KLINE,
    PLACED_KLINE,
    QUOTE_BASE,
    QUOTE_HIGH_MAX,
    QUOTES,
    SATURATED,
    UNEXPLAINED,
)
from shared.wire import SymbolMark, WireError

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
BLOCK_ROWS = 1_500
"""Rows of a part: some 2 ms of the server's work."""
EPOCH_2000_MS = 946_684_800_000
"""PostgreSQL counts microseconds from 2000-01-01."""

PRICES = ("open", "high", "low", "close")
VOLUMES = ("volume", "taker_buy_volume")
DECIMALS = PRICES + VOLUMES + QUOTES
"""What is a decimal in SQL; everything else is a whole number there too."""
COUNTS = ("trade_count", "first_id", "last_id", "id_count", "open_id", "close_id")
SOURCES = ("trades", "exchange", "both")
"""By what the rows say of themselves; the first letter of each is its own."""

DIGITS = 7
"""A quote volume has up to 23 decimal digits, and up to 3 zeros more until its last digit of base 10,000 is full."""
POSITIVE, NEGATIVE = 0, 0x4000
STATES = {"closed": CLOSED, "final": FINAL, "unexplained": UNEXPLAINED, "audited": AUDITED, "saturated": SATURATED}
"""Flags that are columns of their own."""
STAGED = ("symbol", "interval", "open_time", "close_time", *DECIMALS, *COUNTS, *STATES, "source", "revision")
"""The staging table's columns in the order that `_write_row` has them."""
NUMERIC_SIZE_MAX = 4 + 8 + 2 * DIGITS
STAGED_SIZE_MAX = 2 + 4 + 8 + 12 + 12 + len(DECIMALS) * NUMERIC_SIZE_MAX + len(COUNTS) * 12 + len(STATES) * 5 + 8 + 8
"""Bytes of a row without its symbol's name: each field follows its length."""

READ = ("open_time", *DECIMALS, *COUNTS, *STATES, "source", "revision")
"""The columns that are read back, in the order that `_read_rows` takes them."""
READ_SIZE_MIN = 4 + 8 * len(READ) + 8 + 8 * len(DECIMALS) + 8 * len(COUNTS) + len(STATES) + len("both") + 4
"""Bytes of a row; a NUMERIC without digits, which is 0, has 8."""

INTERVAL_COUNT = len(INTERVALS)
LENGTHS = np.array([interval.length_ms for interval in INTERVALS], np.int64)
POWERS = 10 ** np.arange(19, dtype=np.int64)
POWER_MAX = 18
SMALL_POWERS = 10 ** np.arange(5, dtype=np.uint64)
BASE = np.uint64(10_000)
QUOTE_UNITS, THREE_DIGITS = np.uint64(QUOTE_BASE), np.uint64(10_000**3)


def checked(placed: Rows, marks: list[SymbolMark]) -> Rows:
    """Return the rows if each has a symbol and an interval. Raises WireError."""
    symbols, intervals = placed["symbol"], placed["interval"]
    if ((symbols < 0) | (symbols >= len(marks))).any():
        raise WireError(f"a row's symbol is none of the batch's {len(marks)}")
    if ((intervals < 0) | (intervals >= INTERVAL_COUNT)).any():
        raise WireError(f"a row's interval is none of the {INTERVAL_COUNT}")
    return placed


def staged(placed: Rows, marks: list[SymbolMark]) -> Iterator[bytes]:
    """Yield PLACED_KLINE[n] as a binary COPY of the staging table, in parts: the server reads one, we make the next."""
    names = [mark.symbol.encode() for mark in marks]
    name_ends = np.cumsum([0, *map(len, names)])
    texts = np.frombuffer(b"".join(names), np.uint8)
    row_max = STAGED_SIZE_MAX + max(map(len, names), default=0)
    into, digits = np.empty(min(len(placed), BLOCK_ROWS) * row_max, np.uint8), np.empty(DIGITS, np.int64)
    ends = close_times(placed["interval"], placed["kline"]["open_time"])
    yield HEADER
    for begin in range(0, len(placed), BLOCK_ROWS):
        block = placed[begin : begin + BLOCK_ROWS]
        # Copies are contiguous and may be written, however few rows there are: all of one type, which is compiled once.
        symbols, intervals, klines = (block[name].copy() for name in ("symbol", "interval", "kline"))
        names_and_decimals = texts, name_ends, *_decimals(marks)
        end = _write(symbols, intervals, klines, ends[begin:], *names_and_decimals, digits, into)
        yield into[:end].tobytes()
    yield TRAILER


def unstaged(copied: bytes, marks: list[SymbolMark]) -> tuple[Rows, int]:
    """Return what was read back as PLACED_KLINE[n], in reverse order, and how many klines were left out.

    `copied` is a binary COPY of a row a symbol and interval: `symbol * intervals + interval`, counted as in `marks`,
    and its klines' columns `READ` as composite values one after the other (PostgreSQL's rowtypes.c: record_send). A
    message a kline would cost more than everything else.

    Left out is what does not fit a `KLINE` in its symbol's decimals: they have grown since, or somebody else wrote it.
    """
    most = max(len(copied) - len(HEADER), 0) // READ_SIZE_MIN
    row_ids, klines = np.empty(most, np.int64), np.empty(most, KLINE)
    count, unfit = _read(np.frombuffer(copied, np.uint8), len(HEADER), *_decimals(marks), row_ids, klines)
    placed = np.empty(count, PLACED_KLINE)
    placed["symbol"], placed["interval"] = np.divmod(row_ids[most - count :], INTERVAL_COUNT)
    placed["kline"] = klines[most - count :]
    return placed, unfit


def warm_up() -> None:
    """Compile what is to be compiled, so that no engine waits for it."""
    unstaged(HEADER + TRAILER, [])
    mark = SymbolMark("", 0, 0, "", True, 0, 0, 0, [])
    list(staged(np.zeros(1, PLACED_KLINE), [mark]))


def close_times(intervals: NDArray[np.int32], open_times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last millisecond of klines: the next open time less 1."""
    lengths = LENGTHS[intervals]
    ends = open_times + lengths
    for interval, length in enumerate(LENGTHS.tolist()):
        if length == 0:
            those = intervals == interval
            times, indices = np.unique(open_times[those], return_inverse=True)
            following = [next_open_time(INTERVAL_NAMES[interval], time) for time in times.tolist()]
            ends[those] = np.array(following, np.int64)[indices]
    return ends - 1


def _decimals(marks: list[SymbolMark]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the decimals of each symbol's prices and quantities."""
    price = np.array([mark.price_decimals for mark in marks], np.int64)
    return price, np.array([mark.quantity_decimals for mark in marks], np.int64)


@compiled
def _write(
    symbols: Integers32,
    intervals: Integers32,
    klines: Rows,
    ends: Integers,
    names: Bytes,
    name_ends: Integers,
    price_decimals: Integers,
    quantity_decimals: Integers,
    digits: Integers,
    into: Bytes,
) -> int:
    """Write all rows into `into`; return the offset after them. `digits`: int64[DIGITS], to work with."""
    at = 0
    for index in range(len(symbols)):
        symbol = symbols[index]
        name = names[name_ends[symbol] : name_ends[symbol + 1]]
        price, quantity = price_decimals[symbol], quantity_decimals[symbol]
        at = _write_row(into, at, name, intervals[index], klines[index], ends[index], price, quantity, digits)
    return at


@compiled
def _write_row(
    into: Bytes, at: int, name: Bytes, interval: int, row: Record, end: int, price: int, quantity: int, digits: Integers
) -> int:
    """Write the columns `STAGED` of a record of KLINE; return the offset after them."""
    at = _write_bytes(into, at, len(STAGED), 2)
    at = _write_bytes(into, at, len(name), 4)
    for byte in name:
        into[at] = byte
        at += 1
    at = _write_integer(into, at, interval, 4)
    at = _write_integer(into, at, (row.open_time - EPOCH_2000_MS) * 1_000, 8)
    at = _write_integer(into, at, (end - EPOCH_2000_MS) * 1_000, 8)
    at = _write_numeric(into, at, row.open, price, digits)
    at = _write_numeric(into, at, row.high, price, digits)
    at = _write_numeric(into, at, row.low, price, digits)
    at = _write_numeric(into, at, row.close, price, digits)
    at = _write_numeric(into, at, row.volume, quantity, digits)
    at = _write_numeric(into, at, row.taker_buy_volume, quantity, digits)
    at = _write_quote(into, at, row.quote_volume, row.quote_volume_high, price + quantity, digits)
    quote, high = row.taker_buy_quote_volume, row.taker_buy_quote_volume_high
    at = _write_quote(into, at, quote, high, price + quantity, digits)
    at = _write_integer(into, at, row.trade_count, 8)
    at = _write_integer(into, at, row.first_id, 8)
    at = _write_integer(into, at, row.last_id, 8)
    at = _write_integer(into, at, row.id_count, 8)
    at = _write_integer(into, at, row.open_id, 8)
    at = _write_integer(into, at, row.close_id, 8)
    at = _write_integer(into, at, 1 if row.flags & CLOSED else 0, 1)
    at = _write_integer(into, at, 1 if row.flags & FINAL else 0, 1)
    at = _write_integer(into, at, 1 if row.flags & UNEXPLAINED else 0, 1)
    at = _write_integer(into, at, 1 if row.flags & AUDITED else 0, 1)
    at = _write_integer(into, at, 1 if row.flags & SATURATED else 0, 1)
    source = 0
    if row.flags & EXCHANGE:
        source = 2 if row.id_count > 0 else 1
    at = _write_integer(into, at, source, 4)
    return _write_integer(into, at, row.revision, 4)


@compiled
def _write_integer(into: Bytes, at: int, value: int, size: int) -> int:
    """Write a field that is a whole number; return the offset after it."""
    return _write_bytes(into, _write_bytes(into, at, size, 4), value, size)


@compiled
def _write_bytes(into: Bytes, at: int, value: int, size: int) -> int:
    for index in range(size):
        into[at + index] = (value >> (8 * (size - 1 - index))) & 0xFF
    return at + size


@compiled
def _write_numeric(into: Bytes, at: int, value: int, decimals: int, digits: Integers) -> int:
    """Write a NUMERIC field of a value in units of 10**-decimals; return the offset after it."""
    return _write_quote(into, at, value, 0, decimals, digits)


@compiled
def _write_quote(into: Bytes, at: int, value: int, high: int, decimals: int, digits: Integers) -> int:
    """Write a NUMERIC field of a value of two fields, as quote volumes have them; return the offset after it."""
    # As an unsigned number, because the least int64 has no positive counterpart.
    rest = np.uint64(value) if value >= 0 else np.uint64(0) - np.uint64(value)
    zeros = -decimals % 4
    divisor = SMALL_POWERS[4 - zeros]
    weight = -(decimals + zeros) // 4
    first = DIGITS - 1
    above = rest // divisor
    digits[first] = (rest - above * divisor) * SMALL_POWERS[zeros]
    if high > 0:
        # Three digits more, of the lower field, and what is left of that and the higher one fit 64 bits.
        for _ in range(3):
            first -= 1
            rest = above
            above = rest // BASE
            digits[first] = rest - above * BASE
        above += np.uint64(high) * (QUOTE_UNITS // (divisor * THREE_DIGITS))
    while above > 0:
        first -= 1
        rest = above
        above = rest // BASE
        digits[first] = rest - above * BASE
    count = DIGITS - first
    at = _write_bytes(into, at, 8 + 2 * count, 4)
    at = _write_bytes(into, at, count, 2)
    at = _write_bytes(into, at, weight + count - 1, 2)
    at = _write_bytes(into, at, POSITIVE if value >= 0 else NEGATIVE, 2)
    at = _write_bytes(into, at, decimals, 2)
    for index in range(first, DIGITS):
        at = _write_bytes(into, at, digits[index], 2)
    return at


@compiled
def _read(
    data: Bytes, at: int, price_decimals: Integers, quantity_decimals: Integers, row_ids: Integers, klines: Rows
) -> tuple[int, int]:
    """Read klines from `data[at:]` into the ends of both arrays, the first one last; return how many, and left out."""
    count = unfit = 0
    while data[at] != 0xFF:
        row_id = _unsigned(data, at + 6, 8)
        end = at + 18 + _unsigned(data, at + 14, 4)
        at += 18
        price = price_decimals[row_id // INTERVAL_COUNT]
        quantity = quantity_decimals[row_id // INTERVAL_COUNT]
        while at < end:
            count += 1
            row_ids[len(row_ids) - count] = row_id
            at, fits = _read_row(data, at + 4, price, quantity, klines[len(klines) - count])
            if not fits:
                count -= 1
                unfit += 1
    return count, unfit


@compiled
def _read_row(data: Bytes, at: int, price: int, quantity: int, row: Record) -> tuple[int, bool]:
    """Read the columns `READ` into a record of KLINE; return the offset after them, and whether all numbers fit."""
    time, at = _read_integer(data, at)
    row.open_time = time // 1_000 + EPOCH_2000_MS
    fits = True
    row.open, at, fits = _read_number(data, at, price, fits)
    row.high, at, fits = _read_number(data, at, price, fits)
    row.low, at, fits = _read_number(data, at, price, fits)
    row.close, at, fits = _read_number(data, at, price, fits)
    row.volume, at, fits = _read_number(data, at, quantity, fits)
    row.taker_buy_volume, at, fits = _read_number(data, at, quantity, fits)
    row.quote_volume, row.quote_volume_high, at, fits = _read_quote(data, at, price + quantity, fits)
    row.taker_buy_quote_volume, row.taker_buy_quote_volume_high, at, fits = _read_quote(
        data, at, price + quantity, fits
    )
    row.trade_count, at = _read_integer(data, at)
    row.first_id, at = _read_integer(data, at)
    row.last_id, at = _read_integer(data, at)
    row.id_count, at = _read_integer(data, at)
    row.open_id, at = _read_integer(data, at)
    row.close_id, at = _read_integer(data, at)
    closed, at = _read_integer(data, at)
    final, at = _read_integer(data, at)
    unexplained, at = _read_integer(data, at)
    audited, at = _read_integer(data, at)
    saturated, at = _read_integer(data, at)
    from_trades_alone = data[at + 8] == ord("t")
    at += 8 + _unsigned(data, at + 4, 4)
    row.flags = (CLOSED if closed else 0) | (FINAL if final else 0) | (0 if from_trades_alone else EXCHANGE)
    row.flags |= (UNEXPLAINED if unexplained else 0) | (AUDITED if audited else 0) | (SATURATED if saturated else 0)
    row.revision, at = _read_integer(data, at)
    return at, fits


@compiled
def _unsigned(data: Bytes, at: int, size: int) -> Int:
    value = np.int64(0)
    for offset in range(at, at + size):
        value = (value << 8) | np.int64(data[offset])
    return value


# A field of a composite value is the number of its type, its length, and its bytes. No column may be NULL.


@compiled
def _read_integer(data: Bytes, at: int) -> tuple[int, int]:
    """Return a whole number of 8 bytes or less, and the offset after it."""
    size = _unsigned(data, at + 4, 4)
    value = _unsigned(data, at + 8, size)
    if size < 8 and value >> (8 * size - 1):
        value -= 1 << (8 * size)
    return value, at + 8 + size


@compiled
def _read_number(data: Bytes, at: int, decimals: int, fits: bool) -> tuple[int, int, bool]:
    """Return a NUMERIC in units of 10**-decimals, the offset after it, and whether it and all before it fit."""
    low, high, is_negative, at, fits = _read_numeric(data, at, decimals, fits)
    if high > INT64_MAX // QUOTE_BASE or (high == INT64_MAX // QUOTE_BASE and low > INT64_MAX % QUOTE_BASE):
        # The least int64 has no positive counterpart.
        least = is_negative and high == INT64_MAX // QUOTE_BASE and low == INT64_MAX % QUOTE_BASE + 1
        return -INT64_MAX - 1, at, fits and least
    value = high * QUOTE_BASE + low
    return -value if is_negative else value, at, fits


@compiled
def _read_quote(data: Bytes, at: int, decimals: int, fits: bool) -> tuple[int, int, int, bool]:
    """Return both fields of a NUMERIC in units of 10**-decimals, the offset after it, and whether all fits."""
    low, high, is_negative, at, fits = _read_numeric(data, at, decimals, fits)
    return low, high, at, fits and not is_negative and high <= QUOTE_HIGH_MAX


@compiled
def _read_numeric(data: Bytes, at: int, decimals: int, fits: bool) -> tuple[int, int, bool, int, bool]:
    """Return a NUMERIC in units of 10**-decimals as `high * QUOTE_BASE + low`, without its sign; and the sign."""
    size = _unsigned(data, at + 4, 4)
    count = _unsigned(data, at + 8, 2)
    weight = _unsigned(data, at + 10, 2)
    if weight >= 0x8000:
        weight -= 0x10000
    sign = _unsigned(data, at + 12, 2)
    if sign not in (POSITIVE, NEGATIVE):
        return 0, 0, False, at + 8 + size, False
    low = high = 0
    for index in range(count):
        digit = _unsigned(data, at + 16 + 2 * index, 2)
        power = 4 * (weight - index) + decimals
        # Each digit has decimals of its own, so nothing is carried over.
        if power > 2 * POWER_MAX - 4:
            fits = fits and digit == 0
        elif power >= POWER_MAX:
            high += digit * POWERS[power - POWER_MAX]
        elif power >= 0:
            part = POWERS[min(POWER_MAX - power, POWER_MAX)]
            high += digit // part
            low += digit % part * POWERS[power]
        else:
            divisor = POWERS[min(-power, POWER_MAX)]
            fits = fits and digit % divisor == 0
            low += digit // divisor
    return low, high, sign == NEGATIVE, at + 8 + size, fits
