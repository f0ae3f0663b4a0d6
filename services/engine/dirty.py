"""What has changed since somebody last took it, noted by compiled code.

Decides nothing about what a change is for. A `ChangeList` is for who wants everything at once: things in the order of
marking. `DirtyRows` are for the store, which gets them in parts, and which may lose one: a row that was taken counts as
*under way* until it is released. Marking costs the same however often something changes, and taking costs what is
taken, and for the store a look at a byte a row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled, fixed

MARKED = 1
UNDER_WAY = 2


class Changes(NamedTuple):
    """The arrays of a `ChangeList`."""

    marked: NDArray[np.uint8]
    """By number."""
    numbers: NDArray[np.int64]
    """Those that are marked, in the order of marking; the first `total` count."""
    total: NDArray[np.int64]
    """int64[1]"""


class Dirty(NamedTuple):
    """The arrays of `DirtyRows`."""

    states: NDArray[np.uint8]
    """MARKED | UNDER_WAY of every row."""
    total: NDArray[np.int64]
    """int64[1]: how many are marked."""


@compiled
def note(changes, number):  # type: ignore[no-untyped-def]
    """Mark something; marking it twice is marking it once."""
    if not changes.marked[number]:
        changes.marked[number] = MARKED
        changes.numbers[changes.total[0]] = number
        changes.total[0] += 1


@compiled
def note_all(changes, numbers):  # type: ignore[no-untyped-def]
    for number in numbers:
        note(changes, number)


@compiled
def soil(dirty, row):  # type: ignore[no-untyped-def]
    """Mark a row; marking it twice is marking it once."""
    if not dirty.states[row] & MARKED:
        dirty.states[row] |= MARKED
        dirty.total[0] += 1


class ChangeList:
    def __init__(self, size: int) -> None:
        """Track the numbers 0 .. size - 1."""
        self.changes = Changes(np.zeros(size, np.uint8), np.zeros(size, np.int64), np.zeros(1, np.int64))
        self._forget = fixed(forget, self.changes)

    def __len__(self) -> int:
        return int(self.changes.total[0])

    def mark(self, numbers: NDArray[np.int64]) -> None:
        """Mark numbers, some of which may be marked already."""
        note_all(self.changes, numbers)

    def take_all(self) -> NDArray[np.int64]:
        """Return what is marked, ascending, and forget it."""
        taken = np.sort(self.changes.numbers[: self.changes.total[0]])
        self._forget(self.changes)
        return taken


@compiled
def forget(changes):  # type: ignore[no-untyped-def]
    for number in changes.numbers[: changes.total[0]]:
        changes.marked[number] = 0
    changes.total[0] = 0


class DirtyRows:
    def __init__(self, groups: int, group_size: int) -> None:
        """Track rows in groups of consecutive numbers, each of which is taken as a whole."""
        self.dirty = Dirty(np.zeros(groups * group_size, np.uint8), np.zeros(1, np.int64))
        self._group_size = group_size
        self._turn = 0
        """The group that a part begins with: behind the part before."""

    def __len__(self) -> int:
        return int(self.dirty.total[0])

    def mark(self, rows: NDArray[np.int64]) -> None:
        """Mark rows, some of which may be marked already."""
        states, total = self.dirty
        fresh = np.unique(rows[(states[rows] & MARKED) == 0])
        states[fresh] |= MARKED
        total[0] += len(fresh)

    def take(self, limit: int) -> NDArray[np.int64]:
        """Return about `limit` marked rows, ascending, and leave them unmarked and under way, and the rest marked.

        More only if a single group has more. All groups have their turn, however often some are marked again.
        """
        taken, self._turn = take_groups(self.dirty, self._group_size, self._turn, limit)
        return np.sort(taken)

    def groups(self) -> NDArray[np.bool_]:
        """Return which groups have a marked row, bool[groups]."""
        marked: NDArray[np.bool_] = marked_groups(self.dirty, self._group_size)
        return marked

    def release(self, rows: NDArray[np.int64]) -> None:
        """The rows that were taken have arrived."""
        self.dirty.states[rows] &= ~np.uint8(UNDER_WAY)


@compiled
def take_groups(dirty, size, turn, limit):  # type: ignore[no-untyped-def]
    """Take the marked rows of whole groups, from group `turn` on; return them, and the group to go on with."""
    groups = len(dirty.states) // size
    taken = np.empty(limit + size, np.int64)
    count = 0
    for n in range(groups):
        if dirty.total[0] == 0:
            break
        group = (turn + n) % groups
        marked = _marked(dirty, size, group)
        if marked == 0:
            continue
        if count > 0 and count + marked > limit:
            return taken[:count], group
        for row in range(group * size, (group + 1) * size):
            if dirty.states[row] & MARKED:
                dirty.states[row] = UNDER_WAY
                taken[count] = row
                count += 1
        dirty.total[0] -= marked
    return taken[:count], turn


@compiled
def marked_groups(dirty, size):  # type: ignore[no-untyped-def]
    groups = len(dirty.states) // size
    marked = np.zeros(groups, np.bool_)
    for group in range(groups if dirty.total[0] else 0):
        marked[group] = _marked(dirty, size, group) > 0
    return marked


@compiled
def _marked(dirty, size, group):  # type: ignore[no-untyped-def]
    """Return how many rows of a group are marked."""
    marked = 0
    for row in range(group * size, (group + 1) * size):
        marked += dirty.states[row] & MARKED
    return marked
