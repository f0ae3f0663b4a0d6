"""The calendar of klines: when a kline of an interval opens, and which one follows it.

Knows nothing of prices and reads no clock: every time is milliseconds since 1970-01-01 UTC, given as an argument
(protocol §4.6).

A *bucket* is the number of a kline of one interval, in order, so that the slot of a row is computed from its time.
Three rules cover all intervals: fixed lengths counted from an anchor (weeks from a Monday, 3d from the symbol's own
grid), and calendar months.
"""

from shared.compiled import compiled
from shared.interval import DAY_MS, GRID_3D_MS, INTERVAL_INDEX, INTERVALS

MONDAY_MS = -3 * DAY_MS
"""A Monday: 1970-01-01 was a Thursday."""


@compiled
def month_of(time_ms: int) -> int:
    """Return the number of whole months from 1970-01 to the month of `time_ms`."""
    days = time_ms // 86_400_000 + 719_468
    era = days // 146_097
    day_of_era = days - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    return (year - 1970) * 12 + month - 1


@compiled
def month_start(months: int) -> int:
    """Return the first millisecond of the month that is `months` after 1970-01."""
    year = 1970 + months // 12
    month = months % 12 + 1
    if month <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    shifted_month = month - 3 if month > 2 else month + 9
    day_of_year = (153 * shifted_month + 2) // 5
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return (era * 146_097 + day_of_era - 719_468) * 86_400_000


@compiled
def bucket_of(length_ms: int, anchor_ms: int, time_ms: int) -> int:
    """Return the bucket that `time_ms` falls into. `length_ms` 0 means calendar months."""
    if length_ms == 0:
        return int(month_of(time_ms))
    return (time_ms - anchor_ms) // length_ms


@compiled
def bucket_start(length_ms: int, anchor_ms: int, bucket: int) -> int:
    """Return the open time of a bucket; the bucket ends where the next one opens."""
    if length_ms == 0:
        return int(month_start(bucket))
    return bucket * length_ms + anchor_ms


def anchor_of(interval: str, grid_3d_ms: int = 0) -> int:
    """Return the anchor of an interval's grid; `grid_3d_ms` is the symbol's own for 3d: any open time of it."""
    if interval == "1w":
        return MONDAY_MS
    if interval == "3d":
        return grid_3d_ms % GRID_3D_MS
    return 0


def open_time_of(interval: str, time_ms: int, grid_3d_ms: int = 0) -> int:
    """Return the open time of the kline of `interval` that `time_ms` falls into."""
    length = INTERVALS[INTERVAL_INDEX[interval]].length_ms
    anchor = anchor_of(interval, grid_3d_ms)
    return int(bucket_start(length, anchor, bucket_of(length, anchor, time_ms)))


def next_open_time(interval: str, open_time: int, grid_3d_ms: int = 0) -> int:
    """Return the open time of the kline after the one that opens at `open_time`."""
    length = INTERVALS[INTERVAL_INDEX[interval]].length_ms
    if length:
        return open_time + length
    return int(month_start(month_of(open_time) + 1))
