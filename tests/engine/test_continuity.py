"""Ids: new, twice, missing, covered."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.book import SYMBOL
from services.engine.continuity import DUPLICATE, GAP, GAPS_MAX, NEW, NEW_GAP, NO_ROOM, cover, take_id


class Ids:
    def __init__(self, room: int = GAPS_MAX) -> None:
        self.symbol = np.zeros(1, SYMBOL)
        self.symbol["last_id"] = -1
        self.gaps = np.zeros(room, GAP)

    def take(self, trade_id: int) -> int:
        return int(take_id(self.symbol[0], self.gaps, trade_id, 10 * trade_id))

    def cover(self, first: int, last: int) -> None:
        cover(self.symbol[0], self.gaps, first, last)

    @property
    def last(self) -> int:
        return int(self.symbol[0]["last_id"])

    @property
    def missing(self) -> list[list[int]]:
        gaps = self.gaps[: self.symbol[0]["gap_count"]]
        return [[int(gap["first_id"]), int(gap["last_id"])] for gap in gaps]


def covered(seen: set[int], first: int, last: int) -> set[int]:
    """Return the ids of a range that follow on one that is known, or on another one of the range that does."""
    found = set[int]()
    for trade_id in range(first, last + 1):
        if trade_id == 0 or trade_id - 1 in seen or trade_id - 1 in found:
            found.add(trade_id)
    return found


steps = st.lists(
    st.one_of(
        st.integers(0, 60), st.tuples(st.integers(0, 60), st.integers(-2, 30)).map(lambda t: (t[0], t[0] + t[1]))
    ),
    max_size=80,
)


@given(steps)
@settings(deadline=None)
def test_an_id_is_new_exactly_once_and_the_gaps_are_what_is_missing(steps: list[int | tuple[int, int]]) -> None:
    ids, seen = Ids(), set[int]()
    for step in steps:
        if isinstance(step, int):
            assert (DUPLICATE if step in seen else NEW) == ids.take(step) % NEW_GAP
            seen.add(step)
        else:
            ids.cover(*step)
            seen |= covered(seen, *step)
        missing = {trade_id for first, last in ids.missing for trade_id in range(first, last + 1)}
        assert ids.last == max(seen, default=-1)
        assert missing == set(range(ids.last + 1)) - seen
        for (_, last), (first, _) in zip(ids.missing, ids.missing[1:], strict=False):
            assert last + 1 < first


@given(steps)
@settings(deadline=None)
def test_without_room_nothing_is_forgotten(steps: list[int | tuple[int, int]]) -> None:
    ids, seen = Ids(room=2), set[int]()
    for step in steps:
        if isinstance(step, int):
            outcome = ids.take(step)
            assert (outcome == DUPLICATE) == (step in seen)
            if outcome in (NEW, NEW_GAP):
                seen.add(step)
            elif outcome == NO_ROOM:
                assert len(ids.missing) == 2
        else:
            ids.cover(*step)
            seen |= covered(seen, *step)
        missing = {trade_id for first, last in ids.missing for trade_id in range(first, last + 1)}
        assert missing == set(range(ids.last + 1)) - seen
