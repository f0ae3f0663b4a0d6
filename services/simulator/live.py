"""What leaves the exchange now: all coins' trades of the last few milliseconds, in one go.

A flow is one kind of stream of all coins. It knows where each coin is in its minute and which id comes next; `advance`
returns what has left since. The market itself stays a function of time: a flow is only a fast way through it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from services.simulator.coins import Coin
from services.simulator.days import STEADY
from services.simulator.grid import DAY_MS, MINUTE_MS
from services.simulator.market import Generator
from services.simulator.rows import Rows
from services.simulator.tape import Integers
from services.simulator.trades import aggregates, manners, offsets, released_before, single_trades

_STATE = np.dtype([(name, np.int64) for name in ("minute", "next", "first", "end", "skipped", "ticks", "warp", "late")])
"""Where a coin is: its minute (ms), the ids next, first and past the last of it, and what the minute is like."""


class Released(NamedTuple):
    """Trades in the order of their coins, each coin's ascending."""

    rows: Rows
    """AGG_ROW[n] or TRADE_ROW[n]."""
    owners: Integers
    """int64[n], ascending: places in the flow's coins."""

    def by_coin(self) -> Iterator[tuple[int, int, int]]:
        """Yield (coin's place, first row, row past the last)."""
        starts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        ends = np.append(starts[1:], len(self.owners))
        return zip(self.owners[starts].tolist(), starts.tolist(), ends.tolist(), strict=True)


class Flow:
    def __init__(self, generator: Generator, kind: str) -> None:
        self.coins: list[Coin] = []
        self._generator = generator
        self._kind = kind
        self._manners = manners([])
        self._state = np.zeros(0, _STATE)

    def set_coins(self, coins: list[Coin], now: int) -> None:
        """Follow these coins; one that is there for the first time begins at `now`."""
        places = {coin.symbol: place for place, coin in enumerate(self.coins)}
        state = np.zeros(len(coins), _STATE)
        for place, coin in enumerate(coins):
            if coin.symbol in places:
                state[place] = self._state[places[coin.symbol]]
        self._state, before = state, places
        self.coins, self._manners = coins, manners(coins)
        until = released_before(self._kind, self._manners, np.int64(now))
        for place, coin in enumerate(coins):
            if coin.symbol not in before:
                self._enter(place, int(until[place]) // MINUTE_MS * MINUTE_MS)
                self._state["next"][place] = self._generator.released(coin, self._kind, now)

    def _enter(self, place: int, minute: int) -> None:
        table = self._generator.days.day(self.coins[place], minute // DAY_MS)
        at = minute % DAY_MS // MINUTE_MS
        first = table.ids[at]
        skipped = table.skipped if at == table.listing_minute else 0
        ticks, warp, late = table.ticks[at // STEADY], table.warps[at], table.late[at]
        self._state[place] = (minute, first, first, table.ids[at + 1], skipped, ticks, warp, late)
        if at >= 1380 and at % 60 == place % 60:
            # Tomorrow is made in the last hour of today, a few coins at a time, and not of all at midnight.
            self._generator.days.day(self.coins[place], minute // DAY_MS + 1)

    def advance(self, now: int) -> list[Released]:
        """Return what has left the exchange until `now`; each part is later than the one before, coin by coin."""
        parts = []
        state = self._state
        until = released_before(self._kind, self._manners, np.int64(now)) - state["minute"]
        places = np.flatnonzero(until > 0)
        while len(places):
            part = self._release(places, np.minimum(until[places], MINUTE_MS))
            if part is not None:
                parts.append(part)
            places = places[until[places] >= MINUTE_MS]
            for place in places.tolist():
                self._enter(place, int(state["minute"][place]) + MINUTE_MS)
            until[places] -= MINUTE_MS
            places = places[until[places] > 0]
        return parts

    def _release(self, places: Integers, until: Integers) -> Released | None:
        state = self._state[places]
        tape = self._generator.tape
        totals = np.maximum(1, state["end"] - state["first"] + state["skipped"])
        done = state["next"] - state["first"] + state["skipped"]
        counts = np.minimum(tape.places_before(totals, state["warp"], until) - done, state["end"] - state["next"])
        counts = np.maximum(0, counts)
        chosen = np.repeat(np.arange(len(places)), counts)
        if not len(chosen):
            return None
        ahead = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
        its = state[chosen]
        ids, at, totals = its["next"] + ahead, done[chosen] + ahead, totals[chosen]
        times = self._offsets(ids, at, totals, its)
        keep = times < until[chosen]
        if not keep.all():
            chosen, its, ids, at, totals, times = (column[keep] for column in (chosen, its, ids, at, totals, times))
            if not len(chosen):
                return None
        self._state["next"][places] += np.bincount(chosen, minlength=len(places))
        owners = places[chosen]
        who = self._manners.of(owners)
        if self._kind == "aggTrade":
            return Released(aggregates(tape, who, ids, its["minute"] + times, its["ticks"]), owners)
        is_last = at == totals - 1
        nexts = np.where(is_last, 59_999, self._offsets(ids + 1, np.minimum(at + 1, totals - 1), totals, its))
        rows, of = single_trades(
            tape, who, ids, its["minute"] + times, its["minute"] + nexts, its["ticks"], is_last & (its["late"] > 0)
        )
        return Released(rows, owners[of])

    def _offsets(self, ids: Integers, at: Integers, totals: Integers, its: Any) -> Integers:
        return offsets(self._generator.tape, self._generator.quirks, ids, at, totals, its["warp"], its["late"])

    def last_ids(self) -> Integers:
        """Return int64[n]: each coin's last aggregate that has left."""
        return self._state["next"] - 1
