"""Rows between numpy and PostgreSQL's binary COPY, without any work of Python's a row or a field.

Decides how a `KLINE` looks in the staging table and back. Both formats are fixed-width: every field is preceded by its
length, so a whole message is one structured array. Knows no connection and no SQL but the names of columns.
"""

import numpy as np
from numpy.typing import NDArray

from shared.interval import INTERVAL_NAMES, INTERVALS, next_open_time
from shared.kline import CLOSED, EXCHANGE, KLINE, PLACED_KLINE
from shared.wire import Rows

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
EPOCH_2000_MS = 946_684_800_000
"""PostgreSQL counts microseconds from 2000-01-01."""

VALUES = tuple(name for name in KLINE.names or () if name not in ("open_time", "flags", "revision"))
"""The int8 columns of the staging table, in order: the fields of a kline as they are."""

SOURCES = ("trades", "exchange", "both")

_types = {"symbol": "i4", "interval": "i4", "open_time": "i8", "close_time": "i8"}
_types |= dict.fromkeys(VALUES, "i8") | {"closed": "i1", "source": "i4", "revision": "i4"}
STAGED = tuple(_types)
"""The staging table's columns in order."""


def _wire_format() -> np.dtype[np.void]:
    fields = [("fields", ">i2")]
    for name, kind in _types.items():
        fields += [(f"{name} length", ">i4"), (name, f">{kind}")]
    return np.dtype(fields)


WIRE = _wire_format()
"""A row of the staging table in binary COPY."""
assert WIRE.itemsize == 2 + sum(4 + np.dtype(kind).itemsize for kind in _types.values())


def staged(placed: Rows) -> bytes:
    """Return PLACED_KLINE[n] as a binary COPY of the staging table."""
    wire = np.zeros(len(placed), WIRE)
    klines = placed["kline"]
    wire["fields"] = len(_types)
    for name, kind in _types.items():
        wire[f"{name} length"] = np.dtype(kind).itemsize
    wire["symbol"] = placed["symbol"]
    wire["interval"] = placed["interval"]
    wire["open_time"] = (klines["open_time"] - EPOCH_2000_MS) * 1_000
    wire["close_time"] = (close_times(placed["interval"], klines["open_time"]) - EPOCH_2000_MS) * 1_000
    for name in VALUES:
        wire[name] = klines[name]
    wire["closed"] = (klines["flags"] & CLOSED) != 0
    exchange = (klines["flags"] & EXCHANGE) != 0
    wire["source"] = np.where(exchange, np.where(klines["id_count"] > 0, 2, 1), 0)
    wire["revision"] = klines["revision"]
    return HEADER + wire.tobytes() + TRAILER


def unstaged(copied: bytes) -> Rows:
    """Return a binary COPY of the staging table's columns as PLACED_KLINE[n], in the order of `in_order`."""
    wire = np.frombuffer(copied, WIRE, offset=len(HEADER), count=(len(copied) - len(HEADER)) // WIRE.itemsize)
    placed = np.zeros(len(wire), PLACED_KLINE)
    placed["symbol"], placed["interval"] = wire["symbol"], wire["interval"]
    klines = placed["kline"]
    klines["open_time"] = wire["open_time"] // 1_000 + EPOCH_2000_MS
    for name in VALUES:
        klines[name] = wire[name]
    klines["flags"] = np.where(wire["closed"], CLOSED, 0) | np.where(wire["source"], EXCHANGE, 0)
    klines["revision"] = wire["revision"]
    return placed[np.lexsort((klines["open_time"], placed["interval"], placed["symbol"]))]


def close_times(intervals: NDArray[np.int32], open_times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last millisecond of klines: the next open time less 1."""
    lengths = np.array([interval.length_ms for interval in INTERVALS], np.int64)[intervals]
    ends = open_times + lengths
    for place in np.flatnonzero(lengths == 0).tolist():
        ends[place] = next_open_time(INTERVAL_NAMES[intervals[place]], int(open_times[place]))
    return ends - 1
