"""Marks: once each, taken at once, and back again when a batch is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.engine.dirty import MARKED, UNDER_WAY, DirtyTracker, mark

numbers = st.lists(st.integers(0, 49), max_size=60)


@given(numbers, numbers)
def test_marking_twice_is_marking_once_and_taking_takes_all(one_by_one: list[int], at_once: list[int]) -> None:
    tracker = DirtyTracker(50)
    for number in one_by_one:
        mark(tracker.marks, number)
    tracker.mark(np.array(at_once, np.int64))
    assert len(tracker) == len({*one_by_one, *at_once})
    assert tracker.take_all().tolist() == sorted({*one_by_one, *at_once})
    assert len(tracker) == 0
    assert tracker.take_all().tolist() == []
    assert not tracker.marks.states.any()


@given(numbers, st.integers(1, 60), st.integers(1, 20))
def test_a_limited_take_keeps_neighbours_together(marked: list[int], limit: int, together: int) -> None:
    tracker = DirtyTracker(50)
    tracker.mark(np.array(marked, np.int64))
    taken, rounds = [], 0
    while len(tracker):
        part = tracker.take(limit, together).tolist()
        assert part
        left = tracker.marks.rows[: len(tracker)].tolist()
        assert not {number // together for number in part} & {number // together for number in left}
        taken += part
        rounds += 1
    assert taken == sorted(set(marked))
    assert rounds <= max(1, len(set(marked)))


def test_rows_that_change_all_the_time_keep_no_others_waiting() -> None:
    tracker = DirtyTracker(50)
    tracker.mark(np.arange(50))
    taken: list[int] = []
    for _ in range(7):
        part = tracker.take(8, 2)
        assert len(part) <= 8
        tracker.release(part)
        tracker.mark(part)
        taken += part.tolist()
    assert set(taken) == set(range(50))


def test_a_row_that_changes_under_way_is_marked_again() -> None:
    tracker = DirtyTracker(5)
    mark(tracker.marks, 3)
    taken = tracker.take(5)
    assert tracker.marks.states[3] == UNDER_WAY
    mark(tracker.marks, 3)
    assert tracker.marks.states[3] == UNDER_WAY | MARKED
    tracker.release(taken)
    assert tracker.marks.states[3] == MARKED
    assert tracker.take(5).tolist() == [3]
