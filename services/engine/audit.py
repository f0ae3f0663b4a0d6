"""The standing audit: every closed minute that was made of trades, compared with the exchange's own kline.

Decides what is compared when, and what a difference means. Official klines are made of single trades, ours of
aggregates, which carry the time of their first fill: fills of a minute's last aggregate may count in the next minute at
the exchange, and ids that were never executed may be inside of one (protocol §0.7, §4.4). Such differences are
recognised, exactly: what a minute has too much is a part of its last trade at that trade's price, and the next one has
as much too little. And the exchange cuts what each trade is worth after 8 decimals (spot, where prices and quantities
have more together): its quote volumes may be less by so much a trade. Everything else is a mismatch. Knows no messages
that come in and changes no row.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from services.engine.book import Book, memory_begin
from shared.arrays import Rows
from shared.config import AuditConfig
from shared.decimals import INT64_MAX
from shared.interval import MINUTE_MS
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, QUOTES, figure
from shared.wire import AuditMark, FetchKlines, Mismatch

FIELDS = (KLINE.names or ())[1:10]
"""What both have: prices, volumes and the count, but no ids."""
MINUTES_MAX = 100
"""Minutes of one question: they cost weight 1 (protocol §3.3)."""
QUOTE_DECIMALS = 8
"""Of a trade's worth, as the exchange counts it."""
BURNT_MIN, BURNT_SHARE = 3, 20
"""Ids inside of aggregates that were never executed: so many a minute, or one in so many."""
MISMATCHES_MAX = 10
"""Of a symbol, the newest are kept; all are counted."""

MATCHED, BURNT, STRADDLED, MISMATCHED = "matched", "burnt", "straddled", "mismatched"


class Carry(NamedTuple):
    """Fills of a minute's last trade that the exchange counts in the next minute."""

    volume: int = 0
    taker: int = 0
    price: int = 0


NONE = Carry()


class Outcome(NamedTuple):
    mismatches: list[Mismatch]
    unproven: bool
    """A minute differs that lacks its last trades for all we know: they are to be asked for."""


class Audit:
    def __init__(self, config: AuditConfig, book: Book, symbols: list[str]) -> None:
        """`symbols` are the engine's, by the book's index."""
        self._config = config
        self._book = book
        self._symbols = symbols
        self.marks: list[AuditMark] = []
        """By the book's index."""

    @property
    def adopts(self) -> bool:
        return self._config.policy == "adopt"

    def mark_of(self, symbol: int) -> AuditMark:
        """Return what is known of a symbol at this moment. It does not change: another one takes its place."""
        while len(self.marks) <= symbol:
            self.marks.append(AuditMark())
        return self.marks[symbol]

    def restore(self, symbol: int, mark: AuditMark) -> None:
        self.mark_of(symbol)
        self.marks[symbol] = mark

    def due(self, minute_end: int) -> list[FetchKlines]:
        """Return what is to be asked in the minute that ends at `minute_end`: each symbol has its turn."""
        if not self._config.every_minutes:
            return []
        turn = minute_end // MINUTE_MS % self._config.every_minutes
        asks = []
        for symbol in range(turn, len(self._symbols), self._config.every_minutes):
            # The minute before the first one to compare tells what was carried over from it.
            first = max(self.mark_of(symbol).until - MINUTE_MS, int(memory_begin(self._book, symbol, 0)))
            last = minute_end - 3 * MINUTE_MS
            if self._book.symbols[symbol]["active"] and first < last:
                first = max(first, last - (MINUTES_MAX - 1) * MINUTE_MS)
                asks.append(FetchKlines(self._symbols[symbol], "1m", first, last, audit=True))
        return asks

    def take(self, symbol: int, theirs: Rows) -> Outcome:
        """Compare the exchange's 1m klines, KLINE[n] ascending in the book's decimals.

        Minutes that cannot be compared, because they are the exchange's own or no longer in memory, are left out.
        """
        known = self.mark_of(symbol)
        until, counts = known.until, dict(known.counts)
        rows = self._book.rows[symbol, 0]
        held = {int(row["open_time"]): row for row in rows[(rows["flags"] & CLOSED) != 0]}
        carried: Carry | None = None
        found: list[Mismatch] = []
        unproven = False
        for row in theirs:
            open_time = int(row["open_time"])
            ours, before = held.get(open_time), held.get(open_time - MINUTE_MS)
            if ours is None or ours["flags"] & EXCHANGE:
                carried = None
                until = max(until, open_time + MINUTE_MS)
                continue
            close_before = int(before["close"]) if before is not None else 0
            verdict, carried = judge(ours, row, carried, close_before, self._cut(symbol))
            if open_time < until:
                continue
            if verdict == MISMATCHED and not ours["flags"] & FINAL:
                unproven = True
                break
            until = open_time + MINUTE_MS
            counts[verdict] = counts.get(verdict, 0) + 1
            if verdict == MISMATCHED:
                fields = differences(ours, row)
                for name in fields:
                    counts[name] = counts.get(name, 0) + 1
                found.append(Mismatch(open_time, {name: (_sent(a), _sent(b)) for name, (a, b) in fields.items()}))
        self.marks[symbol] = AuditMark(until, counts, [*known.mismatches, *found][-MISMATCHES_MAX:])
        return Outcome(found, unproven)

    def equal(self, symbol: int, theirs: Rows) -> tuple[list[int], list[bool]]:
        """Return the open times of the exchange's 1m klines, KLINE[n], that we hold too, and whether both are the same.

        Same are all prices, volumes and the count of trades: no fill may count in a neighbouring minute here.
        """
        rows = self._book.rows[symbol, 0]
        held = {int(row["open_time"]): row for row in rows[(rows["flags"] & CLOSED) != 0]}
        both = [row for row in theirs if int(row["open_time"]) in held]
        cut = self._cut(symbol)
        matches = [_is_equal(held[int(row["open_time"])], row, cut) for row in both]
        return [int(row["open_time"]) for row in both], matches

    def _cut(self, symbol: int) -> int:
        state = self._book.symbols[symbol]
        return cut_of(int(state["price_decimals"]), int(state["quantity_decimals"]))

    def totals(self) -> dict[str, int]:
        """Return what was counted of all symbols."""
        totals: Counter[str] = Counter(dict.fromkeys((MATCHED, BURNT, STRADDLED, MISMATCHED), 0))
        for mark in self.marks:
            totals.update(mark.counts)
        return dict(totals)


def differences(ours: np.void, theirs: np.void) -> dict[str, tuple[int, int]]:
    """Return ours and theirs of the fields in which two klines differ."""
    both = {name: (figure(ours, name), figure(theirs, name)) for name in FIELDS}
    return {name: (a, b) for name, (a, b) in both.items() if a != b}


def cut_of(price_decimals: int, quantity_decimals: int) -> int:
    """Return by how much less than ours a trade may be worth at the exchange, in units of our quote volumes."""
    more = price_decimals + quantity_decimals - QUOTE_DECIMALS
    return 10**more - 1 if more > 0 else 0


def judge(
    ours: np.void, theirs: np.void, carried: Carry | None, price_before: int, cut: int = 0
) -> tuple[str, Carry | None]:
    """Compare a minute of ours with the exchange's; return (what it is, what is carried over into the next one).

    `carried` from the minute before, None if that is not known; `price_before`: that minute's close; `cut`: by how much
    less than ours a trade may be worth at the exchange.
    """
    for candidate in (carried,) if carried is not None else _candidates(ours, theirs, price_before):
        left = _left_over(ours, theirs, candidate, cut)
        if left is None or not _prices_fit(ours, theirs, candidate):
            continue
        if candidate.volume or left.volume:
            return STRADDLED, left
        burnt = int(ours["trade_count"]) - int(theirs["trade_count"])
        if burnt == 0:
            return MATCHED, NONE
        if 0 < burnt <= max(BURNT_MIN, int(ours["trade_count"]) // BURNT_SHARE):
            return BURNT, NONE
    return MISMATCHED, None


def _candidates(ours: np.void, theirs: np.void, price_before: int) -> Iterator[Carry]:
    """Yield what may have been carried over into a minute: nothing, all that is too much, or what both sums tell."""
    yield NONE
    more, taker = int(theirs["volume"] - ours["volume"]), int(theirs["taker_buy_volume"] - ours["taker_buy_volume"])
    if more > 0:
        yield Carry(more, taker, price_before)
    close, quote = int(ours["close"]), figure(theirs, "quote_volume") - figure(ours, "quote_volume")
    if price_before != close:
        # What came in at the price before and what went out at the close: two sums, two unknowns.
        volume, rest = divmod(quote - more * close, price_before - close)
        taker_quote = figure(theirs, "taker_buy_quote_volume") - figure(ours, "taker_buy_quote_volume")
        taker, taker_rest = divmod(taker_quote - taker * close, price_before - close)
        if rest == 0 == taker_rest and volume > 0:
            yield Carry(volume, taker, price_before)


def _left_over(ours: np.void, theirs: np.void, carried: Carry, cut: int) -> Carry | None:
    """Return the fills of our last trade that the exchange counts later; None if sums differ by something else."""
    volume = int(ours["volume"]) + carried.volume - int(theirs["volume"])
    taker = int(ours["taker_buy_volume"]) + carried.taker - int(theirs["taker_buy_volume"])
    quote = figure(ours, "quote_volume") + carried.volume * carried.price - figure(theirs, "quote_volume")
    taker_quote = figure(ours, "taker_buy_quote_volume") + carried.taker * carried.price
    taker_quote -= figure(theirs, "taker_buy_quote_volume")
    price = int(ours["close"])
    cut_max = cut * int(theirs["trade_count"])
    if volume < 0 or taker not in (0, volume):
        return None
    if not (0 <= quote - volume * price <= cut_max and 0 <= taker_quote - taker * price <= cut_max):
        return None
    if volume and not ours["trade_count"]:
        return None
    return Carry(volume, taker, price)


def _is_equal(ours: np.void, theirs: np.void, cut: int) -> bool:
    """Say whether a minute of ours is the exchange's in every field."""
    cut_max = cut * int(theirs["trade_count"])
    same = all(ours[name] == theirs[name] for name in FIELDS if name not in QUOTES)
    return same and all(0 <= figure(ours, name) - figure(theirs, name) <= cut_max for name in QUOTES)


def _sent(value: int) -> int | str:
    """Return a number as messages can carry it."""
    return value if value <= INT64_MAX else str(value)


def _prices_fit(ours: np.void, theirs: np.void, carried: Carry) -> bool:
    """Say whether the exchange's prices are ours, with what was carried over coming first."""
    prices = [int(ours[name]) for name in FIELDS[:4]]
    if carried.volume and not ours["trade_count"]:
        prices = [carried.price] * 4
    elif carried.volume:
        _, high, low, close = prices
        prices = [carried.price, max(high, carried.price), min(low, carried.price), close]
    return prices == [int(theirs[name]) for name in FIELDS[:4]]
