"""The calendar of klines, as plainly as datetime allows.

Decides where a kline opens and where the next one does. Shares nothing with what it is there to judge, and reads no
clock: every time is milliseconds UTC, given as an argument (protocol §4.6).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY_MS = 4 * DAY_MS
"""1970-01-05."""

LENGTHS: dict[str, int] = {
    "1m": MINUTE_MS,
    "3m": 3 * MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": HOUR_MS,
    "2h": 2 * HOUR_MS,
    "4h": 4 * HOUR_MS,
    "6h": 6 * HOUR_MS,
    "8h": 8 * HOUR_MS,
    "12h": 12 * HOUR_MS,
    "1d": DAY_MS,
    "3d": 3 * DAY_MS,
    "1w": 7 * DAY_MS,
    "1M": 0,
}
"""Interval to ms; a month has no length of its own."""
INTERVALS = tuple(LENGTHS)
MONTH_MAX_MS = 31 * DAY_MS


def open_time(interval: str, time: int, grid_3d: int) -> int:
    """Return the open time of the kline that `time` falls into; `grid_3d` is any open time of the symbol's 3d."""
    if interval == "1M":
        at = EPOCH + timedelta(milliseconds=time)
        return _ms(at.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    length = LENGTHS[interval]
    anchor = {"1w": MONDAY_MS, "3d": grid_3d}.get(interval, 0)
    return (time - anchor) // length * length + anchor


def end_time(interval: str, opened: int) -> int:
    """Return the first millisecond after the kline that opens at `opened`."""
    if interval == "1M":
        at = EPOCH + timedelta(milliseconds=opened)
        return _ms(at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1))
    return opened + LENGTHS[interval]


def end_times(interval: str, opens: Any) -> Any:
    """Return `end_time` of int64[n]."""
    if interval == "1M":
        return (opens.astype("datetime64[ms]").astype("datetime64[M]") + 1).astype("datetime64[ms]").astype(np.int64)
    return opens + LENGTHS[interval]


def open_times(interval: str, times: Any, grid_3d: int) -> Any:
    """Return `open_time` of int64[n]."""
    if interval == "1M":
        return times.astype("datetime64[ms]").astype("datetime64[M]").astype("datetime64[ms]").astype(np.int64)
    length = LENGTHS[interval]
    anchor = {"1w": MONDAY_MS, "3d": grid_3d}.get(interval, 0)
    return (times - anchor) // length * length + anchor


def _ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)
