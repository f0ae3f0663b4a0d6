"""Which ids of a symbol have been applied: a frontier and the gaps below it.

Decides whether a trade is new. Knows no klines, no time and no other symbol.

`last_id` is the highest id applied, -1 before the first; `gaps` are the missing ids below it: disjoint ascending
ranges, both ends inclusive. An id above `last_id` + 1 opens a gap, an id inside a gap shrinks or splits it, every other
id at or below `last_id` is a duplicate. What a list of bounded length cannot note is refused, never forgotten: its id
stays missing, and whoever asks for the missing ids gets it again.
"""

from shared.compiled import compiled

GAPS_MAX = 64
"""Gaps a symbol: one for every outage that is not repaired yet, and some for trades that arrive out of order."""

NEW, DUPLICATE, NO_ROOM = 0, 1, 2


@compiled
def take_id(symbol, gaps, trade_id):  # type: ignore[no-untyped-def]
    """Note an id as applied and return NEW, or return why it must not be applied.

    symbol: a record with `last_id` and `gap_count`; gaps: int64[GAPS_MAX, 2], the first `gap_count` of which count.
    """
    if trade_id == symbol.last_id + 1:
        symbol.last_id = trade_id
        return NEW
    if trade_id > symbol.last_id:
        if symbol.gap_count == len(gaps):
            return NO_ROOM
        gaps[symbol.gap_count, 0] = symbol.last_id + 1
        gaps[symbol.gap_count, 1] = trade_id - 1
        symbol.gap_count += 1
        symbol.last_id = trade_id
        return NEW
    for place in range(symbol.gap_count):
        first, last = gaps[place, 0], gaps[place, 1]
        if trade_id < first:
            return DUPLICATE
        if trade_id > last:
            continue
        if first < trade_id < last:
            if symbol.gap_count == len(gaps):
                return NO_ROOM
            _insert(symbol, gaps, place, first, trade_id - 1)
            gaps[place + 1, 0] = trade_id + 1
        elif first == last:
            _remove(symbol, gaps, place)
        elif trade_id == first:
            gaps[place, 0] = trade_id + 1
        else:
            gaps[place, 1] = trade_id - 1
        return NEW
    return DUPLICATE


@compiled
def cover(symbol, gaps, first_id, last_id):  # type: ignore[no-untyped-def]
    """Note a whole range of ids, both ends inclusive, as answered for. Return False if there is no room to note it."""
    if first_id > last_id:
        return True
    if last_id > symbol.last_id:
        if first_id > symbol.last_id + 1:
            if symbol.gap_count == len(gaps):
                return False
            gaps[symbol.gap_count, 0] = symbol.last_id + 1
            gaps[symbol.gap_count, 1] = first_id - 1
            symbol.gap_count += 1
            symbol.last_id = last_id
            return True
        symbol.last_id = last_id
    place = 0
    while place < symbol.gap_count:
        first, last = gaps[place, 0], gaps[place, 1]
        if last < first_id:
            place += 1
        elif first > last_id:
            break
        elif first_id <= first and last <= last_id:
            _remove(symbol, gaps, place)
        elif first < first_id and last_id < last:
            if symbol.gap_count == len(gaps):
                return False
            _insert(symbol, gaps, place, first, first_id - 1)
            gaps[place + 1, 0] = last_id + 1
            break
        elif first < first_id:
            gaps[place, 1] = first_id - 1
            place += 1
        else:
            gaps[place, 0] = last_id + 1
            break
    return True


@compiled
def _insert(symbol, gaps, place, first, last):  # type: ignore[no-untyped-def]
    for above in range(symbol.gap_count, place, -1):
        gaps[above, 0] = gaps[above - 1, 0]
        gaps[above, 1] = gaps[above - 1, 1]
    gaps[place, 0] = first
    gaps[place, 1] = last
    symbol.gap_count += 1


@compiled
def _remove(symbol, gaps, place):  # type: ignore[no-untyped-def]
    for below in range(place, symbol.gap_count - 1):
        gaps[below, 0] = gaps[below + 1, 0]
        gaps[below, 1] = gaps[below + 1, 1]
    symbol.gap_count -= 1
