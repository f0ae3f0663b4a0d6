"""What makes trades other than the market's function has them: ids that restart, and times that fall.

Decides how such trades look on streams, in REST's pages and in klines, so that all three agree. The market counts on
under its own ids, which are called raw here. Knows no clock.
"""

from typing import NamedTuple

import numpy as np

from services.simulator.grid import MINUTE_MS, open_time
from services.simulator.market.trades import SPREAD_MAX_MS
from services.simulator.rows import SUMS, Rows


class Chain(NamedTuple):
    """Ids that restart at 1."""

    aggregate: int
    """The raw id of the first aggregate, ..."""
    trade: int
    """... and of the first single trade."""

    def begins(self, kind: str) -> int:
        return self.aggregate if kind == "aggTrade" else self.trade


class Late(NamedTuple):
    """An aggregate whose time is before that of the one before it."""

    id: int
    first: int
    beyond: int
    """Single trades from `first` on, raw; the first that is not its."""
    time: int
    """When it happens, ..."""
    stated: int
    """... and the time that it says, in the minute before."""
    price: int
    amounts: tuple[int, ...]
    """Of SUMS, what it adds to a kline."""


class Altered:
    """Of all coins, by symbol."""

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.late: dict[str, list[Late]] = {}

    def refine(self, symbol: str) -> None:
        """A symbol's numbers have one decimal more."""
        factors = (10, 100, 1, 10, 100)
        for index, one in enumerate(self.late.get(symbol, [])):
            amounts = tuple(amount * factor for amount, factor in zip(one.amounts, factors, strict=True))
            self.late[symbol][index] = one._replace(price=one.price * 10, amounts=amounts)

    def raw_id(self, symbol: str, kind: str, trade_id: int) -> int:
        """Return the raw id of one that somebody names."""
        chain = self.chains.get(symbol)
        return trade_id + chain.begins(kind) - 1 if chain else trade_id

    def begins(self, symbol: str, kind: str) -> int:
        """Return the first raw id that can be asked for."""
        chain = self.chains.get(symbol)
        return chain.begins(kind) if chain else 0

    def wire_id(self, symbol: str, kind: str, raw: int) -> int:
        """Return what a raw id is called."""
        chain = self.chains.get(symbol)
        return raw - chain.begins(kind) + 1 if chain and raw >= chain.begins(kind) else raw

    def as_sent(self, symbol: str, kind: str, rows: Rows) -> Rows:
        """Return AGG_ROW[n] or TRADE_ROW[n] of a symbol as they are sent."""
        late, chain = self.late.get(symbol, ()), self.chains.get(symbol)
        if not len(rows) or not (late or chain):
            return rows
        rows = rows.copy()
        for one in late:
            moved = (
                rows["id"] == one.id if kind == "aggTrade" else (rows["id"] >= one.first) & (rows["id"] < one.beyond)
            )
            rows["time"][moved] -= one.time - one.stated
        if chain:
            of_chain = rows["id"] >= chain.begins(kind)
            rows["id"][of_chain] -= chain.begins(kind) - 1
            for name in ("first", "last") if kind == "aggTrade" else ():
                rows[name][of_chain] -= chain.trade - 1
        return rows

    def klines(self, symbol: str, interval: str, grid_3d: int, rows: Rows, now: int) -> Rows:
        """Return KLINE_ROW[n] of a symbol with its late trades in the minutes that they say.

        A late trade has another one at its price before it and one after it in its own minute, and there are some in
        the minute that it says: no price of a kline is its own but in those that end with that minute.
        """
        late = [one for one in self.late.get(symbol, ()) if one.time + SPREAD_MAX_MS < now]
        if not len(rows) or not late:
            return rows
        rows = rows.copy()
        for one in late:
            left, taken = open_time(interval, one.time, grid_3d), open_time(interval, one.stated, grid_3d)
            if left == taken:
                continue
            for opened, sign in ((left, -1), (taken, 1)):
                for at in np.flatnonzero(rows["open_time"] == opened).tolist():
                    for name, amount in zip(SUMS, one.amounts, strict=True):
                        rows[name][at] += sign * amount
                    if sign > 0:
                        rows["high"][at] = max(int(rows["high"][at]), one.price)
                        rows["low"][at] = min(int(rows["low"][at]), one.price)
                        rows["close"][at] = one.price
        return rows


def earlier(time: int, ms: int) -> int:
    """Return the time that an aggregate of `time` says which is late by `ms`: in the minute before, at the most."""
    begin = time // MINUTE_MS * MINUTE_MS
    return max(begin - MINUTE_MS, min(begin - 1, time - ms))
