"""Which ids of a symbol have been applied: a frontier and the gaps below it.

Decides whether a trade is new. Knows no klines, no time and no other symbol.

`last_id` is the highest id applied, -1 before the first; `gaps` are the missing ids below it: disjoint ascending
ranges, both ends inclusive. An id above `last_id` + 1 opens a gap, an id inside a gap shrinks or splits it, every other
id at or below `last_id` is a duplicate. What a list of bounded length cannot note is refused, never forgotten: its id
stays missing, and whoever asks for the missing ids gets it again.

Trade times never fall from one id to the next (protocol §4.3), so a gap's trades were made between the trades around
it: `from_time` and `to_time`. Hence also what is proven: every trade before the first gap's `from_time` was applied.
"""

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled

GAPS_MAX = 64
"""Gaps a symbol: one for every outage that is not repaired yet, and some for trades that arrive out of order."""

GAP = np.dtype(
    [
        ("first_id", "<i8"),
        ("last_id", "<i8"),
        ("from_time", "<i8"),  # T of the trade before it, at the earliest
        ("to_time", "<i8"),  # T of the trade behind it, at the latest
    ]
)

NEW, DUPLICATE, NO_ROOM, NEW_GAP = 0, 1, 2, 3


@compiled
def take_id(symbol, gaps, trade_id, time):  # type: ignore[no-untyped-def]
    """Note an id as applied and return NEW, or NEW_GAP if it opens one, or why it must not be applied.

    symbol: a record with `last_id`, `newest_time` and `gap_count`; gaps: GAP[GAPS_MAX], the first `gap_count` count.
    """
    if trade_id == symbol.last_id + 1:
        symbol.last_id = trade_id
        symbol.newest_time = max(symbol.newest_time, time)
        return NEW
    if trade_id > symbol.last_id:
        if symbol.gap_count == len(gaps):
            return NO_ROOM
        _open(symbol, gaps, trade_id - 1, max(symbol.newest_time, time))
        symbol.last_id = trade_id
        symbol.newest_time = max(symbol.newest_time, time)
        return NEW_GAP
    for place in range(symbol.gap_count):
        first, last = gaps[place].first_id, gaps[place].last_id
        if trade_id < first:
            return DUPLICATE
        if trade_id > last:
            continue
        if first < trade_id < last:
            if symbol.gap_count == len(gaps):
                return NO_ROOM
            _split(symbol, gaps, place, trade_id - 1, trade_id + 1, time)
        elif first == last:
            _remove(symbol, gaps, place)
        elif trade_id == first:
            gaps[place].first_id = trade_id + 1
            gaps[place].from_time = max(gaps[place].from_time, time)
        else:
            gaps[place].last_id = trade_id - 1
            gaps[place].to_time = min(gaps[place].to_time, time)
        return NEW
    return DUPLICATE


@compiled
def cover(symbol, gaps, first_id, last_id):  # type: ignore[no-untyped-def]
    """Note a range of ids, both ends inclusive, as answered for; what follows on missing ids stays missing."""
    for place in range(symbol.gap_count - 1, -1, -1):
        gap = gaps[place]
        if gap.last_id <= last_id and first_id <= gap.first_id:
            _remove(symbol, gaps, place)
        elif first_id <= gap.first_id <= last_id:
            gap.first_id = last_id + 1
    if first_id <= symbol.last_id + 1 <= last_id:
        symbol.last_id = last_id


@compiled
def proven_time(symbol, gaps):  # type: ignore[no-untyped-def]
    """Return the time before which every trade of a symbol has been applied."""
    if symbol.gap_count == 0:
        return symbol.newest_time
    return gaps[0].from_time


@compiled
def proven_times(states, gaps, symbols, times):  # type: ignore[no-untyped-def]
    """Write into int64[n] the time before which every trade of each of n symbols has been applied."""
    for n in range(len(symbols)):
        times[n] = proven_time(states[symbols[n]], gaps[symbols[n]])


def missing_ids(symbol: np.void, gaps: NDArray[np.void]) -> list[tuple[int, int]]:
    """Return the missing ids below a symbol's last id: ascending ranges, both ends inclusive."""
    noted = gaps[: symbol["gap_count"]]
    return list(zip(noted["first_id"].tolist(), noted["last_id"].tolist(), strict=True))


@compiled
def _open(symbol, gaps, last_id, to_time):  # type: ignore[no-untyped-def]
    """Note that the ids from the frontier to `last_id` are missing. There must be room."""
    gap = gaps[symbol.gap_count]
    gap.first_id = symbol.last_id + 1
    gap.last_id = last_id
    gap.from_time = symbol.newest_time
    gap.to_time = to_time
    symbol.gap_count += 1


@compiled
def _split(symbol, gaps, place, last_below, first_above, time):  # type: ignore[no-untyped-def]
    """Make two gaps of one, around what was made at `time`. There must be room."""
    for above in range(symbol.gap_count, place, -1):
        gaps[above] = gaps[above - 1]
    below, above_it = gaps[place], gaps[place + 1]
    below.last_id = last_below
    above_it.first_id = first_above
    below.to_time = min(below.to_time, time)
    above_it.from_time = max(above_it.from_time, time)
    symbol.gap_count += 1


@compiled
def _remove(symbol, gaps, place):  # type: ignore[no-untyped-def]
    for below in range(place, symbol.gap_count - 1):
        gaps[below] = gaps[below + 1]
    symbol.gap_count -= 1
