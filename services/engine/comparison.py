"""Stored minutes compared with the exchange's own, by the rules of the standing audit.

Pure: both come as arguments. What a difference means is audit.py's; unlike there, a minute that one side does not have
is told too.
"""

from typing import NamedTuple

import numpy as np

from services.engine.audit import MATCHED, MISMATCHED, Carry, cut_of, differences, judge
from shared.arrays import Rows
from shared.interval import MINUTE_MS
from shared.kline import EXCHANGE

ABSENT = "absent"
"""The exchange has no such minute."""


class Difference(NamedTuple):
    open_time: int
    fields: dict[str, tuple[int, int]]
    """Ours and theirs, of the fields that differ, in units of the symbol's last decimal; none if it is absent."""


class Comparison:
    """Of one symbol, as its minutes come: a lawful difference goes on in the next minute."""

    def __init__(self, price_decimals: int, quantity_decimals: int) -> None:
        self._cut = cut_of(price_decimals, quantity_decimals)
        self.counts: dict[str, int] = {}
        self.differences: list[Difference] = []
        self._carried: Carry | None = None
        self._before: np.void | None = None

    def take(self, ours: Rows, theirs: Rows) -> None:
        """Compare KLINE[n] with KLINE[m], both ascending and of the same time."""
        official = {int(row["open_time"]): row for row in theirs}
        for row in ours:
            open_time = int(row["open_time"])
            if self._before is None or int(self._before["open_time"]) != open_time - MINUTE_MS:
                self._carried, self._before = None, None
            other = official.get(open_time)
            verdict = ABSENT if other is None else self._judge(row, other)
            self.counts[verdict] = self.counts.get(verdict, 0) + 1
            if other is None:
                self.differences.append(Difference(open_time, {}))
            elif verdict == MISMATCHED:
                self.differences.append(Difference(open_time, differences(row, other)))
            self._before = row

    def _judge(self, ours: np.void, theirs: np.void) -> str:
        if ours["flags"] & EXCHANGE:
            # Their own kline: there is nothing that could lawfully differ.
            self._carried = None
            return MISMATCHED if differences(ours, theirs) else MATCHED
        price_before = int(self._before["close"]) if self._before is not None else 0
        verdict, self._carried = judge(ours, theirs, self._carried, price_before, self._cut)
        return verdict
