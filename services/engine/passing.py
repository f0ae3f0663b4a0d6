"""Klines on their way through: the exchange's own that are older than memory, until the store has them.

Decides nothing but how many may wait. They are asked for because the store lacks them (repair.py), come with an answer,
and leave with the next batch that has the rest of their symbol (saving.py).
"""

from collections.abc import Container
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Rows

ROWS_MAX = 200_000
"""Rows that wait; further answers are dropped, counted, and asked for again."""


class Part(NamedTuple):
    symbol: int
    interval: int
    rows: Rows
    """KLINE[n] that have no slot in the book, in the book's decimals."""


class Passing:
    def __init__(self) -> None:
        self._waiting: list[Part] = []
        self.under_way: list[Part] = []
        """In the batch that the store has not acknowledged."""

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self._all())

    def _all(self) -> list[Part]:
        return self.under_way + self._waiting

    def has_capacity(self, rows: int) -> bool:
        """Say whether so many rows more may wait."""
        return sum(len(part.rows) for part in self._waiting) + rows <= ROWS_MAX

    def add(self, symbol: int, interval: int, rows: Rows) -> None:
        """Take KLINE[n] that have no slot in the book, in the book's decimals."""
        self._waiting.append(Part(symbol, interval, rows))

    def begins(self) -> list[tuple[int, int, int]]:
        """Return the symbol, the interval and the first open time of all that the store does not have yet."""
        return [(symbol, interval, int(rows["open_time"].min())) for symbol, interval, rows in self._all() if len(rows)]

    def rows_of(self, symbol: int) -> list[Rows]:
        """Return a symbol's rows: these, to be rescaled with those in the book."""
        return [part.rows for part in self._all() if part.symbol == symbol]

    def take(self, ready: NDArray[np.bool_]) -> list[Part]:
        """Put those of the symbols that are ready, bool[symbols], under way, and return them."""
        self.under_way = [part for part in self._waiting if ready[part.symbol]]
        self._waiting = [part for part in self._waiting if not ready[part.symbol]]
        return self.under_way

    def acknowledge(self, refused: Container[int]) -> None:
        """The store has those under way, except for the symbols that it refuses: theirs cannot be made again."""
        self._waiting = [part for part in self.under_way if part.symbol in refused] + self._waiting
        self.under_way = []

    def lost(self) -> None:
        """Those under way did not arrive."""
        self._waiting, self.under_way = self._all(), []
