"""Which rows have changed since somebody last took them: a byte a row and a list of row numbers.

Decides nothing about what a change is for; the engine keeps one of these for saving and one for publishing. Marking
costs the same however often a row changes, taking costs what is taken. A row that was taken as a part counts as
*under way* until it is released, so that a batch that is never acknowledged can be marked again.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled, fixed

MARKED = 1
UNDER_WAY = 2


class Marks(NamedTuple):
    """The arrays of a tracker, for compiled code."""

    states: NDArray[np.uint8]
    """MARKED | UNDER_WAY of every row."""
    rows: NDArray[np.int64]
    """The numbers of the marked rows in the order of marking; the first `marked` count."""
    marked: NDArray[np.int64]
    """int64[1]."""


@compiled
def mark(marks, row):  # type: ignore[no-untyped-def]
    """Mark a row; marking it twice is marking it once."""
    if not marks.states[row] & MARKED:
        marks.states[row] |= MARKED
        marks.rows[marks.marked[0]] = row
        marks.marked[0] += 1


@compiled
def unmark_all(marks):  # type: ignore[no-untyped-def]
    for row in marks.rows[: marks.marked[0]]:
        marks.states[row] &= ~np.uint8(MARKED)
    marks.marked[0] = 0


class DirtyTracker:
    def __init__(self, size: int) -> None:
        """Track the rows 0 .. size - 1."""
        self.marks = Marks(np.zeros(size, np.uint8), np.zeros(size, np.int64), np.zeros(1, np.int64))
        self._unmark_all = fixed(unmark_all, self.marks)
        self._turn = 0
        """Where a part begins: behind the one before."""

    def __len__(self) -> int:
        return int(self.marks.marked[0])

    def mark(self, rows: NDArray[np.int64]) -> None:
        """Mark rows, some of which may be marked already."""
        states, listed, count = self.marks
        fresh = np.unique(rows[(states[rows] & MARKED) == 0])
        states[fresh] |= MARKED
        listed[count[0] : count[0] + len(fresh)] = fresh
        count[0] += len(fresh)

    def take_all(self) -> NDArray[np.int64]:
        """Return all marked rows, ascending, and leave them unmarked: who takes them is sure to have them."""
        taken = np.sort(self.marks.rows[: self.marks.marked[0]])
        self._unmark_all(self.marks)
        return taken

    def take(self, limit: int, together: int = 1) -> NDArray[np.int64]:
        """Return about `limit` marked rows, ascending, and leave them unmarked and under way, and the rest marked.

        Rows of the same `together` consecutive numbers are taken all or not at all. All have their turn, however often
        some are marked again.
        """
        states, listed, count = self.marks
        taken, left = np.sort(listed[: count[0]]), listed[:0]
        if limit < len(taken):
            taken = np.roll(taken, -int(np.searchsorted(taken, self._turn)))
            groups = taken // together
            own = np.flatnonzero(groups == groups[limit])
            cut = int(own[0]) or int(own[-1]) + 1
            taken, left = np.sort(taken[:cut]), taken[cut:]
            self._turn = int(left[0]) // together * together if len(left) else 0
        listed[: len(left)] = left
        count[0] = len(left)
        states[taken] = (states[taken] & ~np.uint8(MARKED)) | UNDER_WAY
        return taken

    def release(self, rows: NDArray[np.int64]) -> None:
        """The rows that were taken have arrived."""
        self.marks.states[rows] &= ~np.uint8(UNDER_WAY)
