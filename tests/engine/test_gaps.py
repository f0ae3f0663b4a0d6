"""Ids: new, twice, missing, left out, older than a seam."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.book import SYMBOL
from services.engine.gaps import DUPLICATE, FULL, GAP, GAPS_MAX, NEW, NEW_GAP, leave_out, skip_to, take_id


class Ids:
    def __init__(self, capacity: int = GAPS_MAX) -> None:
        self.symbol = np.zeros(1, SYMBOL)
        self.symbol["last_id"] = -1
        self.gaps = np.zeros(capacity, GAP)

    def take(self, trade_id: int) -> int:
        return int(take_id(self.symbol[0], self.gaps, trade_id, 10 * trade_id))

    def leave_out(self, first: int, last: int, at_ms: int = 0) -> None:
        leave_out(self.symbol[0], self.gaps, first, last, at_ms)

    def skip_to(self, last: int) -> None:
        skip_to(self.symbol[0], self.gaps, last)

    def left_out(self) -> dict[int, int]:
        """Return how often each missing id was left out."""
        gaps = self.gaps[: self.symbol[0]["gap_count"]]
        return {n: int(gap["left_out"]) for gap in gaps for n in range(gap["first_id"], gap["last_id"] + 1)}

    @property
    def last(self) -> int:
        return int(self.symbol[0]["last_id"])

    @property
    def missing(self) -> list[list[int]]:
        gaps = self.gaps[: self.symbol[0]["gap_count"]]
        return [[int(gap["first_id"]), int(gap["last_id"])] for gap in gaps]


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
            ids.leave_out(*step)
        missing = {trade_id for first, last in ids.missing for trade_id in range(first, last + 1)}
        assert ids.last == max(seen, default=-1)
        assert missing == set(range(ids.last + 1)) - seen
        assert sum(last - first + 1 for first, last in ids.missing) == len(missing)
        assert ids.missing == sorted(ids.missing)


@given(steps)
@settings(deadline=None)
def test_every_answer_that_leaves_an_id_out_counts_and_no_other(steps: list[int | tuple[int, int]]) -> None:
    ids, counts = Ids(), dict[int, int]()
    for index, step in enumerate(steps):
        if isinstance(step, int):
            for trade_id in range(ids.last + 1, step):
                counts[trade_id] = 0
            ids.take(step)
            counts.pop(step, None)
        else:
            ids.leave_out(*step, at_ms=index * 30_000)
            for trade_id in range(step[0], step[1] + 1):
                if trade_id in counts:
                    counts[trade_id] += 1
        assert ids.left_out() == counts


def test_answers_count_once_until_another_one_is_due() -> None:
    ids = Ids()
    ids.take(9)
    for at_ms in (5_000, 5_400, 6_999, 7_000, 16_999):
        ids.leave_out(0, 8, at_ms)
    assert set(ids.left_out().values()) == {2}


@given(st.sets(st.integers(0, 60)), st.integers(0, 70))
@settings(deadline=None)
def test_ids_that_are_older_than_the_seam_are_not_missing(seen: set[int], older_to: int) -> None:
    ids = Ids()
    for trade_id in seen:
        ids.take(trade_id)
    ids.skip_to(older_to)
    missing = {trade_id for first, last in ids.missing for trade_id in range(first, last + 1)}
    assert ids.last == max(seen | {older_to})
    assert missing == {n for n in range(ids.last + 1) if n not in seen and n > older_to}


@given(steps)
@settings(deadline=None)
def test_without_space_nothing_is_forgotten(steps: list[int | tuple[int, int]]) -> None:
    ids, seen = Ids(capacity=2), set[int]()
    for step in steps:
        if isinstance(step, int):
            outcome = ids.take(step)
            assert (outcome == DUPLICATE) == (step in seen)
            if outcome in (NEW, NEW_GAP):
                seen.add(step)
            elif outcome == FULL:
                assert len(ids.missing) == 2
        else:
            ids.leave_out(*step)
        missing = {trade_id for first, last in ids.missing for trade_id in range(first, last + 1)}
        assert missing == set(range(ids.last + 1)) - seen
