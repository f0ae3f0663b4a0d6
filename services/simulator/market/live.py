"""What leaves the exchange now: all coins' trades of the last few milliseconds, in one go.

A flow is one kind of stream of all coins. It knows where each coin is in its minute and which id comes next; `advance`
returns what has left since. The market itself stays a function of time: a flow is only a fast way through it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from services.simulator.grid import DAY_MS, MINUTE_MS
from services.simulator.market.coins import Coin
from services.simulator.market.days import STEADY
from services.simulator.market.minutes import Generator
from services.simulator.market.moments import count_leaving, leaving
from services.simulator.market.tape import Integers
from services.simulator.market.trades import aggregates, released_before, single_trades, traits
from services.simulator.rows import Rows

_STATE = np.dtype([(name, np.int64) for name in ("minute", "next", "first", "end", "skipped", "ticks", "warp", "late")])
"""Where a coin is: its minute (ms), the ids next, first and past the last of it, and what the minute is like."""


class Released(NamedTuple):
    """Trades in the order of their coins, each coin's ascending."""

    rows: Rows
    """AGG_ROW[n] or TRADE_ROW[n]."""
    owners: Integers
    """int64[n], ascending: indices into the flow's coins."""

    def by_coin(self) -> Iterator[tuple[int, int, int]]:
        """Yield (coin's index, first row, row past the last)."""
        starts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        ends = np.append(starts[1:], len(self.owners))
        return zip(self.owners[starts].tolist(), starts.tolist(), ends.tolist(), strict=True)


class Flow:
    def __init__(self, generator: Generator, kind: str) -> None:
        self.coins: list[Coin] = []
        self._generator = generator
        self._kind = kind
        self._traits = traits([])
        self._state = np.zeros(0, _STATE)

    def set_coins(self, coins: list[Coin], now: int) -> None:
        """Follow these coins; one that is there for the first time begins at `now`."""
        indices = {coin.symbol: index for index, coin in enumerate(self.coins)}
        state = np.zeros(len(coins), _STATE)
        for index, coin in enumerate(coins):
            if coin.symbol in indices:
                state[index] = self._state[indices[coin.symbol]]
        self._state, before = state, indices
        self.coins, self._traits = coins, traits(coins)
        until = released_before(self._kind, self._traits, now)
        for index, coin in enumerate(coins):
            if coin.symbol not in before:
                self._enter(index, int(until[index]) // MINUTE_MS * MINUTE_MS)
                self._state["next"][index] = self._generator.released(coin, self._kind, now)

    def _enter(self, index: int, minute: int) -> None:
        table = self._generator.days.day(self.coins[index], minute // DAY_MS)
        at = minute % DAY_MS // MINUTE_MS
        first = table.ids[at]
        skipped = table.skipped if at == table.listing_minute else 0
        ticks, warp, late = table.ticks[at // STEADY], table.warps[at], table.late[at]
        self._state[index] = (minute, first, first, table.ids[at + 1], skipped, ticks, warp, late)
        if at >= 1380 and at % 60 == index % 60:
            # Tomorrow is made in the last hour of today, a few coins at a time, and not of all at midnight.
            self._generator.days.day(self.coins[index], minute // DAY_MS + 1)

    def advance(self, now: int) -> list[Released]:
        """Return what has left the exchange until `now`; each part is later than the one before, coin by coin."""
        parts = []
        state = self._state
        until = released_before(self._kind, self._traits, now) - state["minute"]
        indices = np.flatnonzero(until > 0)
        while len(indices):
            part = self._release(indices, np.minimum(until[indices], MINUTE_MS))
            if part is not None:
                parts.append(part)
            indices = indices[until[indices] >= MINUTE_MS]
            for index in indices.tolist():
                self._enter(index, int(state["minute"][index]) + MINUTE_MS)
            until[indices] -= MINUTE_MS
            indices = indices[until[indices] > 0]
        return parts

    def _release(self, indices: Integers, until: Integers) -> Released | None:
        states, tape = self._state[indices], self._generator.tape
        counts = np.empty(len(indices), np.int64)
        inputs = (tape.jitter, self._generator.quirks, tape.warp_ms, states)
        count_leaving(*inputs, until, counts)
        count = int(counts.sum())
        if not count:
            return None
        ids, times, nexts = np.empty((3, count), np.int64)
        is_late = np.empty(count, bool)
        leaving(*inputs, counts, ids, times, nexts, is_late)
        self._state["next"][indices] += counts
        owners, minutes = np.repeat(indices, counts), np.repeat(states["minute"], counts)
        ticks = np.repeat(states["ticks"], counts)
        if self._kind == "aggTrade":
            return Released(aggregates(tape, self._traits, owners, ids, minutes + times, ticks), owners)
        who = self._traits[owners]
        rows, of = single_trades(tape, who, ids, minutes + times, minutes + nexts, ticks, is_late)
        return Released(rows, owners[of])

    def last_ids(self) -> Integers:
        """Return int64[n]: each coin's last aggregate that has left."""
        return self._state["next"] - 1
