"""What has changed since somebody last took it, noted by compiled code.

Decides nothing about what a change is for. A `ChangeList` is for who wants everything at once: things in the order of
marking. `DirtyRows` are for the store, which gets them in parts, and which may lose one: a row that was taken counts as
*under way* until it is released. Marking costs the same however often something changes, and taking costs what is
taken.

Rows are numbered as they lie in memory: the first members of all groups, then the second ones, and so on. Those in use
are a few members of every group, whose marks lie side by side.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Booleans, Integers
from shared.compiled import allocating, compiled, fixed

MARKED = 1
UNDER_WAY = 2


class Changes(NamedTuple):
    """The arrays of a `ChangeList`."""

    marked: NDArray[np.uint8]
    """By item: whether it is noted."""
    items: NDArray[np.int64]
    """Those that are marked, in the order of marking; the first `total` count."""
    total: NDArray[np.int64]
    """int64[1]"""


class Dirty(NamedTuple):
    """The arrays of `DirtyRows`."""

    states: NDArray[np.uint8]
    """MARKED | UNDER_WAY of every row."""
    by_group: NDArray[np.int64]
    """How many rows of each group are marked."""
    by_member: NDArray[np.int64]
    """How many groups have this member of theirs marked or under way."""
    total: NDArray[np.int64]
    """int64[1]: how many rows are marked."""


@compiled
def add(changes: Changes, item: int) -> None:
    """Mark something; marking it twice is marking it once."""
    if not changes.marked[item]:
        changes.marked[item] = MARKED
        changes.items[changes.total[0]] = item
        changes.total[0] += 1


@compiled
def add_all(changes: Changes, items: Integers) -> None:
    for item in items:
        add(changes, item)


@compiled
def mark_dirty(dirty: Dirty, row: int) -> None:
    """Mark a row; marking it twice is marking it once."""
    state = dirty.states[row]
    if not state & MARKED:
        groups = len(dirty.by_group)
        dirty.states[row] = state | MARKED
        dirty.by_group[row % groups] += 1
        if not state:
            dirty.by_member[row // groups] += 1
        dirty.total[0] += 1


@compiled
def mark_all_dirty(dirty: Dirty, rows: Integers) -> None:
    for row in rows:
        mark_dirty(dirty, row)


class ChangeList:
    def __init__(self, size: int) -> None:
        """Track the items 0 .. size - 1."""
        self.changes = Changes(np.zeros(size, np.uint8), np.zeros(size, np.int64), np.zeros(1, np.int64))
        self._clear = fixed(clear, self.changes)

    def __len__(self) -> int:
        return int(self.changes.total[0])

    def mark(self, items: NDArray[np.int64]) -> None:
        """Mark items, some of which may be marked already."""
        add_all(self.changes, items)

    def drain(self) -> NDArray[np.int64]:
        """Return what is marked, ascending, and forget it."""
        taken = np.sort(self.changes.items[: self.changes.total[0]])
        self._clear(self.changes)
        return taken


@compiled
def clear(changes: Changes) -> None:
    for item in changes.items[: changes.total[0]]:
        changes.marked[item] = 0
    changes.total[0] = 0


class DirtyRows:
    def __init__(self, groups: int, members: int) -> None:
        """Track rows in groups of so many members; row `member * groups + group`. A group is taken as a whole."""
        self.dirty = Dirty(
            np.zeros(members * groups, np.uint8),
            np.zeros(groups, np.int64),
            np.zeros(members, np.int64),
            np.zeros(1, np.int64),
        )
        nothing = np.zeros(0, np.int64)
        self._mark_all = fixed(mark_all_dirty, self.dirty, nothing)
        self._release_all = fixed(release_all, self.dirty, nothing)
        self._next_group = 0
        """The group that the next part begins with."""

    def __len__(self) -> int:
        return int(self.dirty.total[0])

    def mark(self, rows: NDArray[np.int64]) -> None:
        """Mark rows, some of which may be marked already."""
        self._mark_all(self.dirty, rows)

    def take(self, limit: int, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return about `limit` marked rows, ascending, and leave them unmarked and under way, and the rest marked.

        More only if a single group has more. All groups have their turn, however often some are marked again, but for
        those that are kept: bool[groups].
        """
        taken: NDArray[np.int64]
        taken, self._next_group = take_groups(self.dirty, self._next_group, limit, kept)
        return taken

    def groups(self) -> NDArray[np.bool_]:
        """Return which groups have a marked row, bool[groups]."""
        return self.dirty.by_group > 0

    def release(self, rows: NDArray[np.int64]) -> None:
        """The rows that were taken have arrived."""
        self._release_all(self.dirty, rows)


@allocating
def take_groups(dirty: Dirty, first_group: int, limit: int, kept: Booleans) -> tuple[Integers, int]:
    """Take the marked rows of whole groups, from the first group on; return them, and the group to go on with."""
    groups = len(dirty.by_group)
    chosen: Any = np.empty(groups, np.int64)
    chosen_count = row_count = 0
    next_group = first_group
    for n in range(groups):
        group = (first_group + n) % groups
        marked = 0 if kept[group] else dirty.by_group[group]
        if row_count > 0 and row_count + marked > limit:
            next_group = group
            break
        if marked > 0:
            chosen[chosen_count] = group
            chosen_count += 1
            row_count += marked
            dirty.by_group[group] = 0
    chosen = np.sort(chosen[:chosen_count])
    taken = np.empty(row_count, np.int64)
    at = 0
    for member in range(len(dirty.by_member)):
        if dirty.by_member[member] > 0:
            for group in chosen:
                row = member * groups + group
                if dirty.states[row] & MARKED:
                    dirty.states[row] = UNDER_WAY
                    taken[at] = row
                    at += 1
    dirty.total[0] -= row_count
    return taken, next_group


@compiled
def release_all(dirty: Dirty, rows: Integers) -> None:
    for row in rows:
        state = dirty.states[row]
        dirty.states[row] = state & MARKED
        if state == UNDER_WAY:
            dirty.by_member[row // len(dirty.by_group)] -= 1
