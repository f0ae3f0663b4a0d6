"""The fifteen intervals of Binance: their names, lengths and children.

When their klines open is decided by calendar.py.
"""

from datetime import UTC, datetime
from typing import NamedTuple

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
GRID_3D_MS = 3 * DAY_MS


class Interval(NamedTuple):
    name: str
    length_ms: int
    """0 for the calendar month, whose length varies."""
    child: str
    """The interval whose klines merge into this one's; empty for 1m, which is made of trades."""


INTERVALS: tuple[Interval, ...] = (
    Interval("1m", MINUTE_MS, ""),
    Interval("3m", 3 * MINUTE_MS, "1m"),
    Interval("5m", 5 * MINUTE_MS, "1m"),
    Interval("15m", 15 * MINUTE_MS, "1m"),
    Interval("30m", 30 * MINUTE_MS, "1m"),
    Interval("1h", HOUR_MS, "1m"),
    Interval("2h", 2 * HOUR_MS, "1h"),
    Interval("4h", 4 * HOUR_MS, "1h"),
    Interval("6h", 6 * HOUR_MS, "1h"),
    Interval("8h", 8 * HOUR_MS, "1h"),
    Interval("12h", 12 * HOUR_MS, "1h"),
    Interval("1d", DAY_MS, "1h"),
    Interval("3d", 3 * DAY_MS, "1d"),
    Interval("1w", 7 * DAY_MS, "1d"),
    Interval("1M", 0, "1d"),
)
INTERVAL_NAMES: tuple[str, ...] = tuple(interval.name for interval in INTERVALS)
INTERVAL_INDEX: dict[str, int] = {name: index for index, name in enumerate(INTERVAL_NAMES)}
CHILD_INDEX: tuple[int, ...] = tuple(INTERVAL_INDEX.get(interval.child, -1) for interval in INTERVALS)


def utc(time_ms: int) -> str:
    """Return a time as text: `2026-11-23T12:34:56.789Z`."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
