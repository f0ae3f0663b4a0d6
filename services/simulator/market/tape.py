"""The tape: 65,536 aggregate trades that every symbol plays, each with its own price, size and pace.

An aggregate trade's id is its index on the tape (modulo its length), so everything about it follows from its id, and
the sum, the highest and the lowest of any range of ids follow from tables made once. That is what makes a minute of
years ago, its klines and its single trades, as cheap as the minute of now, and the same after every restart.

Decides the shape of trading: how prices step, who takes, how an aggregate is made of fills, which ids are burnt.
Knows no symbol, no price and no time.
"""

from typing import Any

import numpy as np

from services.simulator.market.moments import JITTER, MASK, SEGMENTS, SIZE
from services.simulator.rows import MARKET

Integers = Any

UNITS_MEAN = 40
WARPS = 64
"""How many ways there are for a minute's pace to vary, in straight pieces."""

TAPED = np.dtype(
    [(name, np.int64) for name in ("wander", "units", "head_units", "first", "last_offset", "fills")]
    + [("buys", np.bool_), ("rpi", np.bool_)]
)

_NA, _INSURANCE = 1, 2
_LEVELS = SIZE.bit_length()


class Tape:
    def __init__(self, seed: int, quirks: bool) -> None:
        """`quirks`: some ids are burnt, inside of aggregates and between them (protocol §4.4)."""
        rng = np.random.default_rng([seed, 7])
        steps = np.zeros(SIZE, np.int64)
        steps[: SIZE // 4], steps[SIZE // 4 : SIZE // 2] = 1, -1
        rng.shuffle(steps)
        walk = np.cumsum(steps)
        # As many up as down, so the tape's end meets its beginning.
        self.wander: Integers = walk - int(np.median(walk))
        self.reach = int(np.abs(self.wander).max())
        self.buys = self._sides(steps)
        self.jitter: Integers = rng.integers(0, JITTER, SIZE)
        self.rpi: Integers = rng.random(SIZE) < (0.016 if quirks else 0.0)
        self._fills(rng, quirks)
        self.aggregates = self._aggregates()
        self._tables()
        self.warp_ms = self._warps(rng)

    @staticmethod
    def _sides(steps: Integers) -> Integers:
        """A step up was bought, one down was sold; at the same price sides alternate, or it would be one aggregate."""
        sides = []
        side = True
        for step in steps.tolist():
            side = not side if step == 0 else step > 0
            sides.append(side)
        return np.array(sides)

    def _fills(self, rng: np.random.Generator, quirks: bool) -> None:
        """Lay out every id: `first[j]` is the index of aggregate j's first one."""
        self.fills: Integers = np.minimum(rng.geometric(0.62, SIZE), 12).astype(np.int64)
        self.fills_mean = float(self.fills.mean())
        inside = (self.fills > 1) & (rng.random(SIZE) < 0.02) if quirks else np.zeros(SIZE, bool)
        after = rng.random(SIZE) < 0.01 if quirks else np.zeros(SIZE, bool)
        ids = self.fills + inside + after
        self.first: Integers = np.concatenate([[0], np.cumsum(ids)])
        self.ids = int(self.first[-1])
        offset = np.arange(self.ids) - np.repeat(self.first[:-1], ids)
        gap = np.repeat(np.where(inside, 1, 1 << 30), ids)
        last = np.repeat(self.fills + inside, ids)
        self.kind: Integers = np.zeros(self.ids, np.int8)
        self.kind[offset == gap] = _NA
        tail = offset == last
        self.kind[tail] = np.where(rng.random(int(tail.sum())) < 0.1, _INSURANCE, _NA)
        self.ordinal: Integers = np.where(tail, last - 1, np.maximum(0, offset - (offset >= gap)))
        """Which fill of its aggregate an id is; a burnt one counts as the fill before it."""
        size = np.minimum(np.rint(rng.lognormal(2.6, 1.0, self.ids)).astype(np.int64), 2_000)
        self.id_units: Integers = np.where(self.kind == MARKET, np.maximum(1, size), 0)
        self.insured_units: Integers = np.where(self.kind == _INSURANCE, 10, 0)
        self.last_offset: Integers = self.fills + inside - 1
        self.units: Integers = np.add.reduceat(self.id_units, self.first[:-1])
        self.head_units: Integers = self.id_units[self.first[:-1]]

    def _aggregates(self) -> Integers:
        """Return TAPED[SIZE]: what compiled code reads of each aggregate, side by side in memory."""
        taped = np.zeros(SIZE, TAPED)
        for name in TAPED.names or ():
            taped[name] = self.first[:-1] if name == "first" else getattr(self, name)
        return taped

    def _tables(self) -> None:
        amount = self.wander * self.units
        columns = [self.units, amount, self.units * self.buys, amount * self.buys, self.fills]
        self.prefix: Integers = np.zeros((SIZE + 1, len(columns)), np.int64)
        np.cumsum(np.stack(columns, axis=1), axis=0, out=self.prefix[1:])
        twice = np.concatenate([self.wander, self.wander]).astype(np.int16)
        self._highest = np.empty((_LEVELS, 2 * SIZE), np.int16)
        self._lowest = np.empty((_LEVELS, 2 * SIZE), np.int16)
        self._highest[0] = self._lowest[0] = twice
        for level in range(1, _LEVELS):
            half = 1 << (level - 1)
            for table, pick in ((self._highest, np.maximum), (self._lowest, np.minimum)):
                table[level] = table[level - 1]
                table[level, :-half] = pick(table[level - 1, :-half], table[level - 1, half:])
        self._level = np.maximum(0, np.frexp(np.arange(SIZE + 1))[1] - 1)

    @staticmethod
    def _warps(rng: np.random.Generator) -> Integers:
        """Return int64[WARPS, SEGMENTS + 1]: the ms of a minute by which each share of its trades has happened."""
        pace = rng.lognormal(0.0, 0.7, (WARPS, SEGMENTS))
        # Much happens in the first seconds of a minute.
        pace[: WARPS // 2, 0] *= 0.3
        ends = np.cumsum(pace, axis=1) / pace.sum(axis=1, keepdims=True)
        warps = np.zeros((WARPS, SEGMENTS + 1), np.int64)
        warps[:, 1:] = np.rint(ends * 60_000)
        return warps

    def sums(self, ids: Integers) -> Integers:
        """Return int64[n, 5]: units, wander*units, both of what was bought, and fills of all aggregates below `ids`."""
        return np.take(self.prefix, ids & MASK, axis=0) + (ids >> 16)[:, None] * self.prefix[SIZE]

    def trade_ids(self, ids: Integers) -> Integers:
        """Return the id of each aggregate's first single trade."""
        return self.first[ids & MASK] + (ids >> 16) * self.ids

    def extremes(self, starts: Integers, counts: Integers) -> tuple[Integers, Integers]:
        """Return the highest and the lowest wander of `counts` aggregates from `starts` on; all counts above 0."""
        counts = np.minimum(counts, SIZE)
        levels = self._level[counts]
        low = levels * (2 * SIZE) + (starts & MASK)
        high = low + counts - (1 << levels)
        highest, lowest = self._highest.ravel(), self._lowest.ravel()
        return (
            np.maximum(highest[low], highest[high]).astype(np.int64),
            np.minimum(lowest[low], lowest[high]).astype(np.int64),
        )
