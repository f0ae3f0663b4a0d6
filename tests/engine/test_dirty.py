"""Marks: once each, taken at once or in parts, and back again when a batch is lost."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.dirty import MARKED, UNDER_WAY, ChangeList, DirtyRows, add, mark_dirty

GROUPS, GROUP = 10, 5
NONE = np.zeros(GROUPS, bool)
numbers = st.lists(st.integers(0, GROUPS * GROUP - 1), max_size=60)


@settings(deadline=None)
@given(numbers, numbers)
def test_marking_twice_is_marking_once_and_taking_takes_all(one_by_one: list[int], at_once: list[int]) -> None:
    changes = ChangeList(GROUPS * GROUP)
    for row_id in one_by_one:
        add(changes.changes, row_id)
    changes.mark(np.array(at_once, np.int64))
    assert len(changes) == len({*one_by_one, *at_once})
    assert changes.drain().tolist() == sorted({*one_by_one, *at_once})
    assert len(changes) == 0
    assert changes.drain().tolist() == []
    assert not changes.changes.marked.any()


@settings(deadline=None)
@given(numbers, numbers, st.integers(1, 60))
def test_parts_are_of_whole_groups_and_bring_everything_once(
    one_by_one: list[int], at_once: list[int], limit: int
) -> None:
    rows = DirtyRows(GROUPS, GROUP)
    for row_id in one_by_one:
        mark_dirty(rows.dirty, row_id)
    rows.mark(np.array(at_once, np.int64))
    left = {*one_by_one, *at_once}
    while left:
        assert len(rows) == len(left)
        assert np.flatnonzero(rows.groups()).tolist() == sorted({row_id % GROUPS for row_id in left})
        part = rows.take(limit, NONE).tolist()
        assert part == sorted(part)
        assert left.issuperset(part)
        left -= set(part)
        taken = {row_id % GROUPS for row_id in part}
        assert part
        assert len(part) <= limit or len(taken) == 1
        assert not taken & {row_id % GROUPS for row_id in left}
    assert len(rows) == 0
    assert rows.take(limit, NONE).tolist() == []
    assert not rows.groups().any()


def test_a_part_is_as_large_as_it_may_be() -> None:
    rows = DirtyRows(GROUPS, GROUP)
    rows.mark(np.arange(GROUPS * GROUP))
    assert [len(rows.take(12, NONE)) for _ in range(5)] == [10] * 5
    rows.mark(np.array([3, 11, 12, 49]))
    assert rows.take(12, NONE).tolist() == [3, 11, 12, 49]


def test_rows_that_change_all_the_time_keep_no_others_waiting() -> None:
    rows = DirtyRows(GROUPS, GROUP)
    rows.mark(np.arange(GROUPS * GROUP))
    taken: list[int] = []
    for _ in range(GROUPS // 2):
        part = rows.take(2 * GROUP, NONE)
        rows.release(part)
        rows.mark(part)
        taken += part.tolist()
    assert sorted(taken) == list(range(GROUPS * GROUP))


def test_groups_that_are_kept_are_not_taken_and_hold_up_no_others() -> None:
    rows = DirtyRows(GROUPS, GROUP)
    rows.mark(np.arange(GROUPS * GROUP))
    kept = NONE.copy()
    kept[[0, 3]] = True
    taken = [row_id for _ in range(4) for row_id in rows.take(2 * GROUP, kept).tolist()]
    assert sorted({row_id % GROUPS for row_id in taken}) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert len(rows.take(2 * GROUP, kept)) == 0
    assert len(rows.take(2 * GROUP, NONE)) == len(rows.take(1, NONE)) + 2 * GROUP == 2 * GROUP


def test_a_row_that_changes_under_way_is_marked_again() -> None:
    rows = DirtyRows(1, 5)
    mark_dirty(rows.dirty, 3)
    taken = rows.take(5, NONE)
    assert rows.dirty.states[3] == UNDER_WAY
    mark_dirty(rows.dirty, 3)
    assert rows.dirty.states[3] == UNDER_WAY | MARKED
    rows.release(taken)
    assert rows.dirty.states[3] == MARKED
    assert rows.take(5, NONE).tolist() == [3]
