"""Rows between numpy and PostgreSQL's binary COPY, without any work of Python's a row or a field.

Decides how a `KLINE` looks in the staging table, and how what comes back from the klines table is read. Prices and
volumes are exact decimals in SQL, so integers become NUMERIC here and the other way round: PostgreSQL would take twice
as long for it as for the saving itself. Knows no connection and no SQL but the order of columns.

NUMERIC travels as digits of base 10,000 (PostgreSQL's numeric.c: numeric_recv, numeric_send): a count, the weight of
the first digit, a sign, the number of decimals to show, and the digits. It may begin and end with zeros, so that every
row of the staging table has the same size, and a whole message is one structured array.
"""

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled
from shared.interval import INTERVAL_NAMES, INTERVALS, next_open_time
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, PLACED_KLINE
from shared.wire import Rows, SymbolMark, WireError

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
EPOCH_2000_MS = 946_684_800_000
"""PostgreSQL counts microseconds from 2000-01-01."""

PRICES = ("open", "high", "low", "close")
VOLUMES = ("volume", "taker_buy_volume")
QUOTE_VOLUMES = ("quote_volume", "taker_buy_quote_volume")
DECIMALS = PRICES + VOLUMES + QUOTE_VOLUMES
"""What is a decimal in SQL; everything else is a whole number there too."""
COUNTS = ("trade_count", "first_id", "last_id", "id_count", "open_id", "close_id")
SOURCES = ("trades", "exchange", "both")
"""By what the rows say of themselves; the first letter of each is its own."""

DIGITS = 6
"""An int64 has up to 19 decimal digits, and up to 3 zeros after them until its last digit of base 10,000 is full."""
POSITIVE, NEGATIVE = 0, 0x4000
NUMERIC = np.dtype(
    [("digits", ">i2"), ("weight", ">i2"), ("sign", ">u2"), ("decimals", ">i2"), ("digit", ">i2", DIGITS)]
)

_types: dict[str, np.dtype[np.generic]] = {
    **dict.fromkeys(("symbol", "interval"), np.dtype(">i4")),
    **dict.fromkeys(("open_time", "close_time"), np.dtype(">i8")),
    **dict.fromkeys(DECIMALS, NUMERIC),
    **dict.fromkeys(COUNTS, np.dtype(">i8")),
    "closed": np.dtype("i1"),
    "final": np.dtype("i1"),
    "source": np.dtype(">i4"),
    "revision": np.dtype(">i4"),
}
STAGED = tuple(_types)
"""The staging table's columns in order."""
STAGED_ROW = np.dtype(
    [("fields", ">i2")]
    + [field for name, kind in _types.items() for field in ((f"{name} length", ">i4"), (name, kind))]
)
"""A row of the staging table in binary COPY: each field follows its length."""

READ = ("open_time", *DECIMALS, *COUNTS, "closed", "final", "source", "revision")
"""The columns that are read back, in the order that `_read_rows` takes them."""
READ_SIZE_MIN = 4 + 8 * len(READ) + 8 + 8 * len(DECIMALS) + 8 * len(COUNTS) + 2 + len("both") + 4
"""Bytes of a row; a NUMERIC without digits, which is 0, has 8."""

INTERVAL_COUNT = len(INTERVALS)
LENGTHS = np.array([interval.length_ms for interval in INTERVALS], np.int64)
POWERS = 10 ** np.arange(19, dtype=np.int64)
ESTIMATES = 10.0 ** np.arange(61)
DIGIT_POWERS = 10 ** np.arange(5, dtype=np.uint64)


def checked(placed: Rows, marks: list[SymbolMark]) -> Rows:
    """Return the rows if each has a symbol and an interval. Raises WireError."""
    symbols, intervals = placed["symbol"], placed["interval"]
    if ((symbols < 0) | (symbols >= len(marks))).any():
        raise WireError(f"a row's symbol is none of the batch's {len(marks)}")
    if ((intervals < 0) | (intervals >= INTERVAL_COUNT)).any():
        raise WireError(f"a row's interval is none of the {INTERVAL_COUNT}")
    return placed


def staged(placed: Rows, marks: list[SymbolMark]) -> bytes:
    """Return PLACED_KLINE[n] as a binary COPY of the staging table."""
    rows = np.zeros(len(placed), STAGED_ROW)
    klines = placed["kline"]
    rows["fields"] = len(_types)
    for name, kind in _types.items():
        rows[f"{name} length"] = kind.itemsize
    rows["symbol"], rows["interval"] = placed["symbol"], placed["interval"]
    rows["open_time"] = (klines["open_time"] - EPOCH_2000_MS) * 1_000
    rows["close_time"] = (close_times(placed["interval"], klines["open_time"]) - EPOCH_2000_MS) * 1_000
    price, quantity = (decimals[placed["symbol"]] for decimals in _decimals(marks))
    for names, decimals in ((PRICES, price), (VOLUMES, quantity), (QUOTE_VOLUMES, price + quantity)):
        for name in names:
            _write_numerics(rows[name], klines[name], decimals)
    for name in COUNTS:
        rows[name] = klines[name]
    rows["closed"] = (klines["flags"] & CLOSED) != 0
    rows["final"] = (klines["flags"] & FINAL) != 0
    exchange = (klines["flags"] & EXCHANGE) != 0
    rows["source"] = np.where(exchange, np.where(klines["id_count"] > 0, 2, 1), 0)
    rows["revision"] = klines["revision"]
    return HEADER + rows.tobytes() + TRAILER


def unstaged(copied: bytes, marks: list[SymbolMark]) -> tuple[Rows, int]:
    """Return what was read back as PLACED_KLINE[n], in reverse order, and how many klines were left out.

    `copied` is a binary COPY of a row a symbol and interval: `symbol * intervals + interval`, counted as in `marks`,
    and its klines' columns `READ` as composite values one after the other (PostgreSQL's rowtypes.c: record_send). A
    message a kline would cost more than everything else.

    Left out is what does not fit an int64 in its symbol's decimals: they have grown since, or somebody else wrote it.
    """
    most = max(len(copied) - len(HEADER), 0) // READ_SIZE_MIN
    places, klines = np.empty(most, np.int64), np.empty(most, KLINE)
    number, unfit = _read(np.frombuffer(copied, np.uint8), len(HEADER), *_decimals(marks), places, klines)
    placed = np.empty(number, PLACED_KLINE)
    placed["symbol"], placed["interval"] = np.divmod(places[most - number :], INTERVAL_COUNT)
    placed["kline"] = klines[most - number :]
    return placed, unfit


def warm_up() -> None:
    """Compile what is to be compiled, so that no engine waits for it."""
    unstaged(HEADER + TRAILER, [])


def close_times(intervals: NDArray[np.int32], open_times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last millisecond of klines: the next open time less 1."""
    lengths = LENGTHS[intervals]
    ends = open_times + lengths
    for place in np.flatnonzero(lengths == 0).tolist():
        ends[place] = next_open_time(INTERVAL_NAMES[intervals[place]], int(open_times[place]))
    return ends - 1


def _decimals(marks: list[SymbolMark]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the decimals of each symbol's prices and quantities."""
    price = np.array([mark.price_decimals for mark in marks], np.int64)
    return price, np.array([mark.quantity_decimals for mark in marks], np.int64)


def _write_numerics(into: Rows, values: NDArray[np.int64], decimals: NDArray[np.int64]) -> None:
    """Write values in units of 10**-decimals into NUMERIC[n]."""
    # As unsigned numbers, because the least int64 has no positive counterpart.
    rest = np.abs(values).view(np.uint64)
    zeros = -decimals % 4
    divisor = DIGIT_POWERS[4 - zeros]
    into["digits"] = DIGITS
    into["sign"] = np.where(values < 0, NEGATIVE, POSITIVE)
    into["decimals"] = decimals
    into["weight"] = DIGITS - 1 - (decimals + zeros) // 4
    digits = into["digit"]
    digits[:, -1] = rest % divisor * DIGIT_POWERS[zeros]
    rest //= divisor
    for place in range(DIGITS - 2, -1, -1):
        above = rest // np.uint64(10_000)
        digits[:, place] = rest - above * np.uint64(10_000)
        rest = above


@compiled
def _read(data, at, price_decimals, quantity_decimals, places, klines):  # type: ignore[no-untyped-def]
    """Read klines from `data[at:]` into the ends of both arrays, the first one last; return how many, and left out."""
    number = unfit = 0
    while data[at] != 0xFF:
        place = _unsigned(data, at + 6, 8)
        end = at + 18 + _unsigned(data, at + 14, 4)
        at += 18
        price = price_decimals[place // INTERVAL_COUNT]
        quantity = quantity_decimals[place // INTERVAL_COUNT]
        while at < end:
            number += 1
            places[len(places) - number] = place
            at, fits = _read_row(data, at + 4, price, quantity, klines[len(klines) - number])
            if not fits:
                number -= 1
                unfit += 1
    return number, unfit


@compiled
def _read_row(data, at, price, quantity, row):  # type: ignore[no-untyped-def]
    """Read the columns `READ` into a record of KLINE; return the place behind them, and whether all numbers fit."""
    time, at = _read_integer(data, at)
    row.open_time = time // 1_000 + EPOCH_2000_MS
    fits = True
    row.open, at, fits = _read_numeric(data, at, price, fits)
    row.high, at, fits = _read_numeric(data, at, price, fits)
    row.low, at, fits = _read_numeric(data, at, price, fits)
    row.close, at, fits = _read_numeric(data, at, price, fits)
    row.volume, at, fits = _read_numeric(data, at, quantity, fits)
    row.taker_buy_volume, at, fits = _read_numeric(data, at, quantity, fits)
    row.quote_volume, at, fits = _read_numeric(data, at, price + quantity, fits)
    row.taker_buy_quote_volume, at, fits = _read_numeric(data, at, price + quantity, fits)
    row.trade_count, at = _read_integer(data, at)
    row.first_id, at = _read_integer(data, at)
    row.last_id, at = _read_integer(data, at)
    row.id_count, at = _read_integer(data, at)
    row.open_id, at = _read_integer(data, at)
    row.close_id, at = _read_integer(data, at)
    closed, at = _read_integer(data, at)
    final, at = _read_integer(data, at)
    from_trades_alone = data[at + 8] == ord("t")
    at += 8 + _unsigned(data, at + 4, 4)
    row.flags = (CLOSED if closed else 0) | (FINAL if final else 0) | (0 if from_trades_alone else EXCHANGE)
    row.revision, at = _read_integer(data, at)
    return at, fits


@compiled
def _unsigned(data, at, size):  # type: ignore[no-untyped-def]
    value = np.int64(0)
    for place in range(at, at + size):
        value = (value << 8) | np.int64(data[place])
    return value


# A field of a composite value is the number of its type, its length, and its bytes. No column may be NULL.


@compiled
def _read_integer(data, at):  # type: ignore[no-untyped-def]
    """Return a whole number of 8 bytes or less, and the place behind it."""
    size = _unsigned(data, at + 4, 4)
    value = _unsigned(data, at + 8, size)
    if size < 8 and value >> (8 * size - 1):
        value -= 1 << (8 * size)
    return value, at + 8 + size


@compiled
def _read_numeric(data, at, decimals, fits):  # type: ignore[no-untyped-def]
    """Return a NUMERIC in units of 10**-decimals, the place behind it, and whether it and all before it fit."""
    size = _unsigned(data, at + 4, 4)
    count = _unsigned(data, at + 8, 2)
    weight = _unsigned(data, at + 10, 2)
    if weight >= 0x8000:
        weight -= 0x10000
    sign = _unsigned(data, at + 12, 2)
    if sign not in (POSITIVE, NEGATIVE):
        return 0, at + 8 + size, False
    value = 0
    estimate = 0.0
    for place in range(count):
        digit = _unsigned(data, at + 16 + 2 * place, 2)
        power = 4 * (weight - place) + decimals
        if power >= 0:
            # What does not fit into 64 bits shows in the estimate.
            estimate += digit * ESTIMATES[min(power, 60)]
            part = digit * POWERS[min(power, 18)]
        else:
            divisor = POWERS[min(-power, 18)]
            if digit % divisor:
                fits = False
            part = digit // divisor
            estimate += part
        value += part if sign == POSITIVE else -part
    if estimate > 9.3e18 or (value != 0 and (value < 0) != (sign == NEGATIVE)):
        fits = False
    return value, at + 8 + size, fits
