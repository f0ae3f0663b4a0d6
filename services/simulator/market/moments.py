"""When a minute's aggregates happen, compiled: one at a time, a range of them, or the first one at a time or later.

Decides nothing that the tape and the days do not decide; it is their arithmetic, without a Python object a trade.
An aggregate happens where its index and its jitter put it on the minute's pace, and within a minute ascending indices
give ascending times, so the first one from a time on is found by halving.
"""

from shared.arrays import Booleans, Integers, Rows
from shared.compiled import compiled

JITTER = 1024
"""Resolution of an aggregate's position within its share of the minute."""
SEGMENTS = 16
"""Of how many straight pieces a minute's pace is made."""
SIZE = 1 << 16
MASK = SIZE - 1
MINUTE_LAST_MS = 59_999
OPENING_MS = 8
"""With quirks, the beginning of a minute that belongs to the late fills of the one before."""


@compiled
def moment(jitter: Integers, quirks: bool, aggregate_id: int, index: int, total: int, pace: Integers, late: int) -> int:
    """Return when an aggregate happens, whose `index` is one of `total`, in ms from the minute's start.

    jitter: int64[SIZE] of the tape; pace: int64[SEGMENTS + 1] of the minute; late: when the last one happens, or 0.
    """
    time = share_ms((index * JITTER + jitter[aggregate_id & MASK]) * SEGMENTS // total, pace)
    if quirks:
        time = max(time, OPENING_MS)
        if index == total - 1 and late > 0:
            time = max(time, late)
    return time


@compiled
def share_ms(position: int, pace: Integers) -> int:
    """Return when a share of the minute's trades has happened; `position`: in 1/JITTER of a segment."""
    segment, part = position >> 10, position & (JITTER - 1)
    start = pace[segment]
    time: int = min(start + ((pace[segment + 1] - start) * part >> 10), MINUTE_LAST_MS)
    return time


@compiled
def moments(
    jitter: Integers,
    quirks: bool,
    aggregate_id: int,
    index: int,
    total: int,
    pace: Integers,
    late: int,
    times: Integers,
) -> None:
    """Write into int64[n] when the n aggregates from an id and `index` on happen; beyond the minute, its end."""
    for ahead in range(len(times)):
        if index + ahead < total:
            times[ahead] = moment(jitter, quirks, aggregate_id + ahead, index + ahead, total, pace, late)
        else:
            times[ahead] = MINUTE_LAST_MS


@compiled
def count_before(
    jitter: Integers,
    quirks: bool,
    aggregate_id: int,
    index: int,
    end: int,
    total: int,
    pace: Integers,
    late: int,
    until: int,
) -> int:
    """Return how many of the aggregates from an id and `index` on, below id `end`, happen before `until` ms."""
    low, high = 0, max(0, end - aggregate_id)
    while low < high:
        middle = (low + high) // 2
        if moment(jitter, quirks, aggregate_id + middle, index + middle, total, pace, late) < until:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def count_leaving(
    jitter: Integers, quirks: bool, paces: Integers, states: Rows, untils: Integers, counts: Integers
) -> None:
    """Write into int64[n] how many aggregates of each coin happen before its `until`, ms of its minute.

    states: a flow's, of the n coins; paces: int64[WARPS, SEGMENTS + 1].
    """
    for coin in range(len(states)):
        state = states[coin]
        index, total = state.next - state.first + state.skipped, max(1, state.end - state.first + state.skipped)
        counts[coin] = count_before(
            jitter, quirks, state.next, index, state.end, total, paces[state.warp], state.late, untils[coin]
        )


@compiled
def leaving(
    jitter: Integers,
    quirks: bool,
    paces: Integers,
    states: Rows,
    counts: Integers,
    ids: Integers,
    times: Integers,
    nexts: Integers,
    is_late: Booleans,
) -> None:
    """Write the ids of the aggregates that `count_leaving` counted, when they and those after them happen, in ms of
    their minutes, and whether their fills but the first are late.
    """
    at = 0
    for coin in range(len(states)):
        state, count = states[coin], counts[coin]
        index, total = state.next - state.first + state.skipped, max(1, state.end - state.first + state.skipped)
        pace = paces[state.warp]
        moments(jitter, quirks, state.next, index, total, pace, state.late, times[at : at + count])
        moments(jitter, quirks, state.next + 1, index + 1, total, pace, state.late, nexts[at : at + count])
        for ahead in range(count):
            ids[at + ahead] = state.next + ahead
            is_late[at + ahead] = index + ahead == total - 1 and state.late > 0
        at += count
