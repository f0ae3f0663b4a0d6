"""Which ids of a symbol have been applied: a frontier and the gaps below it.

Decides whether a trade is new. Knows no klines and no other symbol.

`last_id` is the highest id applied, -1 before the first; `gaps` are the ids below it that were not: disjoint ascending
ranges, both ends inclusive. An id above `last_id` + 1 opens a gap, an id inside a gap shrinks or splits it, every other
id at or below `last_id` is a duplicate. What a list of bounded length cannot note is refused, never forgotten: its id
stays missing, and whoever asks for the missing ids gets it again.

A gap's ids are *missing*, and asked for, until answers that were about all of them have left them out often enough:
then they are *unexplained*. Nothing but a row with an id says what the id is.

Trade times rise from one id to the next (protocol §4.3), so a gap's trades were made between the trades around it:
`from_time` and `to_time`. Hence also what is proven: every trade before the first missing id's `from_time` was applied.
That is how it is as a rule, not a law (spot's trades of 2017 fall back by minutes): how far a symbol's times have
fallen is remembered, and so much later it is proven.
"""

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Integers, Record, Rows
from shared.compiled import compiled

GAPS_MAX = 256
"""Gaps a symbol: one for every outage that is not repaired yet, some for trades that arrive out of order, and what
answers have left out."""
FALL_MAX_MS = 300_000
"""So far back is waited for, when times have fallen: a single trade with a wrong time must not hold back all proofs."""
LEFT_OUT_MS = (2_000, 10_000, 30_000)
"""How long after one, two or three answers that have left it out another one counts, and is asked for: what is new may
be late at the exchange, and answers that come together say what is so at one moment."""

GAP = np.dtype(
    [
        ("first_id", "<i8"),
        ("last_id", "<i8"),
        ("from_time", "<i8"),  # T of the trade before it, at the earliest
        ("to_time", "<i8"),  # T of the trade after it, at the latest
        ("left_out", "<i8"),  # how many answers that were about all of it have named none of it
        ("answered_at", "<i8"),  # when the last of them came, monotonic ms
        ("unexplained", "<i8"),  # 1: they were enough
    ]
)

NEW, DUPLICATE, FULL, NEW_GAP, FOUND = 0, 1, 2, 3, 4


@compiled
def take_id(symbol: Record, gaps: Rows, trade_id: int, time: int) -> int:
    """Note an id as applied and return NEW, NEW_GAP if it opens one, FOUND if it was unexplained; or why it is refused.

    symbol: a record with the fields of SYMBOL that are ids and times; gaps: GAP[GAPS_MAX], `gap_count` of them in use.
    """
    if trade_id == symbol.last_id + 1:
        symbol.last_id = trade_id
        _note_time(symbol, symbol.newest_time, time)
        return NEW
    if trade_id > symbol.last_id:
        if symbol.gap_count == len(gaps):
            return FULL
        _open(symbol, gaps, trade_id - 1, max(symbol.newest_time, time))
        symbol.last_id = trade_id
        _note_time(symbol, symbol.newest_time, time)
        return NEW_GAP
    for index in range(symbol.gap_count):
        first, last = gaps[index].first_id, gaps[index].last_id
        if trade_id < first:
            return DUPLICATE
        if trade_id > last:
            continue
        outcome = FOUND if gaps[index].unexplained else NEW
        from_time = gaps[index].from_time
        if first < trade_id < last:
            if symbol.gap_count == len(gaps):
                return FULL
            split(symbol, gaps, index, trade_id - 1, trade_id + 1)
            gaps[index].to_time = max(from_time, min(gaps[index].to_time, time))
            gaps[index + 1].from_time = max(gaps[index + 1].from_time, time)
        elif first == last:
            remove(symbol, gaps, index)
        elif trade_id == first:
            gaps[index].first_id = trade_id + 1
            gaps[index].from_time = max(gaps[index].from_time, time)
        else:
            gaps[index].last_id = trade_id - 1
            gaps[index].to_time = max(from_time, min(gaps[index].to_time, time))
        _note_time(symbol, from_time, time)
        return outcome
    return DUPLICATE


@compiled
def is_after(symbol: Record, gaps: Rows, trade_id: int, time: int) -> bool:
    """Say whether an id that was not applied follows on trades from a time on."""
    if trade_id > symbol.last_id:
        newest: bool = symbol.newest_time >= time
        return newest
    for index in range(symbol.gap_count):
        if gaps[index].first_id <= trade_id <= gaps[index].last_id:
            follows: bool = gaps[index].from_time >= time or gaps[index].unexplained != 0
            return follows
    return False


@compiled
def set_aside(symbol: Record, gaps: Rows, trade_id: int, time: int, to_time: int) -> bool:
    """Note an id as unexplained whose trade says a time before its neighbours' (`is_after`): one before the seam, or of
    a minute that has left memory. False if the list is full.

    That minute is the exchange's own, which may be from before there was such a trade, or is put away without it; or
    the time is wrong, and the trade belongs where its neighbours are. to_time: no trade is later that there is.
    """
    if trade_id > symbol.last_id:
        if symbol.gap_count + 1 + (trade_id > symbol.last_id + 1) > len(gaps):
            return False
        if trade_id > symbol.last_id + 1:
            _open(symbol, gaps, trade_id - 1, to_time)
            symbol.last_id = trade_id - 1
        _open(symbol, gaps, trade_id, to_time)
        symbol.last_id = trade_id
        index = symbol.gap_count - 1
    else:
        index = 0
        while gaps[index].last_id < trade_id:
            index += 1
        first, last = gaps[index].first_id, gaps[index].last_id
        if gaps[index].unexplained and gaps[index].from_time <= time:
            return True
        if symbol.gap_count + (first < trade_id) + (trade_id < last) > len(gaps):
            return False
        if first < trade_id:
            split(symbol, gaps, index, trade_id - 1, trade_id)
            index += 1
        if trade_id < last:
            split(symbol, gaps, index, trade_id, trade_id + 1)
    gap = gaps[index]
    gap.from_time = min(gap.from_time, time)
    gap.unexplained = 1
    return True


@compiled
def _note_time(symbol: Record, before: int, time: int) -> None:
    """Note the time of an id that was applied; `before`: that of the ids before it."""
    if symbol.seam_time <= time < before:
        symbol.fall_ms = max(symbol.fall_ms, min(before - time, FALL_MAX_MS))
    symbol.newest_time = max(symbol.newest_time, time)
    symbol.seen_time = max(symbol.seen_time, time)


@compiled
def skip_to(symbol: Record, gaps: Rows, last_id: int) -> None:
    """Begin after an id: it and those below it are older than a symbol's seam, and those above it are not."""
    for index in range(symbol.gap_count - 1, -1, -1):
        if gaps[index].last_id <= last_id:
            remove(symbol, gaps, index)
        elif gaps[index].first_id <= last_id + 1:
            gaps[index].first_id = last_id + 1
            gaps[index].from_time = max(gaps[index].from_time, symbol.seam_time)
    if symbol.last_id <= last_id:
        symbol.last_id = last_id
        symbol.newest_time = max(symbol.newest_time, symbol.seam_time)


@compiled
def leave_out(symbol: Record, gaps: Rows, first_id: int, last_id: int, at_ms: int) -> None:
    """Note that an answer about a range of ids, both ends inclusive, has named none of those that are still missing.

    A gap of which the range is only a part becomes two, unless the list is full: the next answer may tell.
    """
    if first_id > last_id:
        return
    for index in range(symbol.gap_count - 1, -1, -1):
        gap = gaps[index]
        if gap.unexplained or gap.last_id < first_id or gap.first_id > last_id:
            continue
        if gap.last_id > last_id:
            if symbol.gap_count == len(gaps):
                continue
            split(symbol, gaps, index, last_id, last_id + 1)
        at = index
        if gap.first_id < first_id:
            if symbol.gap_count == len(gaps):
                continue
            split(symbol, gaps, index, first_id - 1, first_id)
            at = index + 1
        gap = gaps[at]
        if gap.left_out == 0 or at_ms - gap.answered_at >= LEFT_OUT_MS[min(gap.left_out, len(LEFT_OUT_MS)) - 1]:
            gap.left_out += 1
            gap.answered_at = at_ms


@compiled
def proven_time(symbol: Record, gaps: Rows) -> int:
    """Return the time before which every trade of a symbol has been applied, but for what is unexplained."""
    for index in range(symbol.gap_count):
        if not gaps[index].unexplained:
            proven: int = gaps[index].from_time - symbol.fall_ms
            return proven
    newest: int = symbol.newest_time - symbol.fall_ms
    return newest


@compiled
def proven_times(states: Rows, gaps: Rows, symbols: Integers, times: Integers) -> None:
    """Write into int64[n] the time before which every trade of each of n symbols has been applied."""
    for n in range(len(symbols)):
        times[n] = proven_time(states[symbols[n]], gaps[symbols[n]])


def missing_ids(symbol: np.void, gaps: NDArray[np.void]) -> list[tuple[int, int]]:
    """Return the ids below a symbol's last id that are being asked for: ascending ranges, both ends inclusive."""
    noted = gaps[: symbol["gap_count"]]
    noted = noted[noted["unexplained"] == 0]
    return list(zip(noted["first_id"].tolist(), noted["last_id"].tolist(), strict=True))


@compiled
def _open(symbol: Record, gaps: Rows, last_id: int, to_time: int) -> None:
    """Note that the ids from the frontier to `last_id` are missing. The list must not be full."""
    gap = gaps[symbol.gap_count]
    gap.first_id = symbol.last_id + 1
    gap.last_id = last_id
    gap.from_time = symbol.newest_time
    gap.to_time = to_time
    gap.left_out = 0
    gap.answered_at = 0
    gap.unexplained = 0
    symbol.gap_count += 1


@compiled
def split(symbol: Record, gaps: Rows, index: int, last_below: int, first_above: int) -> None:
    """Make two gaps of one. The list must not be full."""
    for above in range(symbol.gap_count, index, -1):
        gaps[above] = gaps[above - 1]
    gaps[index].last_id = last_below
    gaps[index + 1].first_id = first_above
    symbol.gap_count += 1


@compiled
def remove(symbol: Record, gaps: Rows, index: int) -> None:
    for below in range(index, symbol.gap_count - 1):
        gaps[below] = gaps[below + 1]
    symbol.gap_count -= 1
