"""The generated market: what was, is and will be traded, as one function of the seed, the coin and the minute.

Nothing is stored that could not be computed again: a coin's ids, prices and trades of any minute follow from the seed,
so klines of years, a page of last night's trades and the stream of now agree, and a restarted simulator goes on with
the market that went on without it. Decides how many trade when and what prices do; how an aggregate looks is on the
tape. Reads no clock.

A day of a coin is two tables of its 1,440 minutes: the id at which each begins, and the price that its trades wander
around. Klines are made from sums over ranges of ids. Fills of a minute's last aggregate may happen in the next
minute ("late" ones, with quirks): official klines have them there, whoever builds klines from aggregates does not.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from services.simulator.grid import DAY_MS, HOUR_MS, LENGTHS, MINUTE_MS, open_time
from services.simulator.market.coins import ENDLESS, GENESIS_MS, Coin
from services.simulator.market.days import DAY_MINUTES, STEADY, Days
from services.simulator.market.moments import MASK, SIZE, count_before, moments
from services.simulator.market.tape import Integers, Tape
from services.simulator.market.trades import aggregates, released_before, single_trades, traits
from services.simulator.rows import (
    KLINE_ROW,
    SUMS,
    Rows,
    flat_rows,
    joined,
    kline_of_trades,
    merge,
)

RECENT_DAYS_MAX = 64
"""Days of minute klines kept, 115 KB each: what is asked of one coin is asked of several intervals in a row."""

FILLS_MAX = 16
"""Minutes of single trades kept: a forming kline is asked for in all intervals at once."""


class _Minute(NamedTuple):
    """What one minute of a coin is like."""

    first: int
    end: int
    """Past the last id."""
    skipped: int
    total: int
    """Aggregates, with those that were skipped before a listing."""
    pace: Integers
    late: int
    ticks: int


class _Timed(NamedTuple):
    """Some of a minute's aggregates."""

    ids: Integers
    times: Integers
    """When each happens, and then when the next could."""
    ticks: Integers
    late: bool
    """Fills of the last one happen in the next minute."""


class Generator:
    def __init__(self, seed: int, tape: Tape, quirks: bool, began: int) -> None:
        """`began`: the first millisecond that klines know of."""
        self.tape = tape
        self.quirks = quirks
        self.days = Days(seed, tape, quirks)
        self._began = began
        self._minutes: OrderedDict[tuple[str, int, int], Rows] = OrderedDict()
        self._fills: OrderedDict[tuple[str, int], tuple[Rows, int]] = OrderedDict()
        """(Fills of a coin's minute as far as they were asked for, the first aggregate id beyond them)."""
        self._hours: dict[str, Rows] = {}

    def forget(self, coin: Coin) -> None:
        """Drop what is kept of a coin that is gone, or another one now."""
        self._hours.pop(coin.symbol, None)
        self._minutes = OrderedDict(kept for kept in self._minutes.items() if kept[0][0] != coin.symbol)
        self._fills = OrderedDict(kept for kept in self._fills.items() if kept[0][0] != coin.symbol)
        self.days.forget(coin)

    def since(self, coin: Coin) -> int:
        """Return the first minute that a coin has klines of."""
        return max(self._began, coin.listed // MINUTE_MS * MINUTE_MS)

    # Klines.

    def _day_rows(self, coin: Coin, day: int, minutes: int) -> Rows:
        """Return the official klines of a day, KLINE_ROW[1440 / minutes], whatever of it has happened."""
        key = (coin.symbol, day, minutes)
        rows = self._minutes.get(key)
        if rows is None:
            rows = self._minutes[key] = self._rows(coin, day, day + 1, minutes)
            while len(self._minutes) > RECENT_DAYS_MAX:
                self._minutes.popitem(last=False)
        return rows

    def _rows(self, coin: Coin, day: int, end_day: int, minutes: int) -> Rows:
        """Return the official klines of whole days, `minutes` long: 1, or STEADY, for which prices wander around one.

        KLINE_ROW[(end_day - day) * 1440 / minutes]
        """
        tables = self.days.day(coin, day) if end_day == day + 1 else self.days.many(coin, day, end_day)
        ids = tables.ids[::minutes]
        ticks = np.repeat(tables.ticks, STEADY // minutes).astype(np.int64)
        late = np.flatnonzero(tables.late[minutes - 1 :: minutes])
        tick, wander, tape = coin.instrument.tick, self.tape.wander, self.tape
        rows = np.zeros(len(ticks), KLINE_ROW)
        rows["open_time"] = day * DAY_MS + np.arange(len(ticks)) * (MINUTE_MS * minutes)
        sums = np.diff(tape.sums(ids), axis=0)
        rows["volume"] = sums[:, 0] * coin.lot
        rows["quote_volume"] = (ticks * sums[:, 0] + coin.swing * sums[:, 1]) * (tick * coin.lot)
        rows["taker_buy_volume"] = sums[:, 2] * coin.lot
        rows["taker_buy_quote_volume"] = (ticks * sums[:, 2] + coin.swing * sums[:, 3]) * (tick * coin.lot)
        rows["count"] = sums[:, 4]
        counts = np.diff(ids)
        traded = np.flatnonzero(counts)
        firsts, base = ids[traded], ticks[traded]
        highest, lowest = tape.extremes(firsts, counts[traded])
        lasts = wander[(ids[traded + 1] - 1) & MASK]
        for name, steps in (("open", wander[firsts & MASK]), ("high", highest), ("low", lowest), ("close", lasts)):
            rows[name][traded] = (base + coin.swing * steps) * tick
        if len(late):
            self._move_late_fills(coin, rows, late, ids, ticks)
        self._carry_closes(coin, day, rows)
        return rows

    def _move_late_fills(self, coin: Coin, rows: Rows, late: Integers, ids: Integers, ticks: Integers) -> None:
        """Give the fills that happened after a kline's end to the next one. `late`: klines that have such fills."""
        indices = (ids[late + 1] - 1) & MASK
        price = (ticks[late] + coin.swing * self.tape.wander[indices]) * coin.instrument.tick
        volume = (self.tape.units[indices] - self.tape.head_units[indices]) * coin.lot
        bought = np.where(self.tape.buys[indices], volume, 0)
        moved = (volume, volume * price, self.tape.fills[indices] - 1, bought, bought * price)
        for name, amount in zip(SUMS, moved, strict=True):
            rows[name][late] -= amount
            rows[name][late + 1] += amount
        after = rows[late + 1]
        empty = ids[late + 2] == ids[late + 1]
        after["open"] = price
        after["high"] = np.where(empty, price, np.maximum(after["high"], price))
        after["low"] = np.where(empty, price, np.minimum(after["low"], price))
        after["close"] = np.where(empty, price, after["close"])
        rows[late + 1] = after

    def _carry_closes(self, coin: Coin, day: int, rows: Rows) -> None:
        silent = rows["count"] == 0
        if not silent.any():
            return
        sources = np.maximum.accumulate(np.where(silent, -1, np.arange(len(rows))))
        closes = rows["close"][sources]
        if sources[0] < 0:
            closes[sources < 0] = self._close_before(coin, day)
        for name in ("open", "high", "low", "close"):
            rows[name][silent] = closes[silent]

    def _close_before(self, coin: Coin, day: int) -> int:
        first = self.since(coin) // DAY_MS
        for earlier in range(day - 1, first - 1, -1):
            if coin.listed or self.days.first_id(coin, earlier) < self.days.first_id(coin, earlier + 1):
                table = self.days.day(coin, earlier)
                traded = np.flatnonzero(np.diff(table.ids))
                if len(traded):
                    minute = int(traded[-1])
                    wander = int(self.tape.wander[(table.ids[minute + 1] - 1) & MASK])
                    return (int(table.ticks[minute // STEADY]) + coin.swing * wander) * coin.instrument.tick
        return int(self.days.day(coin, max(first, min(day, first))).ticks[0]) * coin.instrument.tick

    def minute_klines(self, coin: Coin, start: int, end: int, minutes: int = 1) -> Rows:
        """Return the official klines of `minutes` (1 or STEADY) that open in [start, end), as they are when over."""
        length = minutes * MINUTE_MS
        start = max(-(-start // length) * length, self.since(coin) // length * length)
        end = min(end, coin.delisted)
        if start >= end:
            return np.empty(0, KLINE_ROW)
        parts = []
        for day in range(start // DAY_MS, -(-end // DAY_MS)):
            first = max(0, start - day * DAY_MS) // length
            parts.append(self._day_rows(coin, day, minutes)[first : -(-(end - day * DAY_MS) // length)])
        return joined(parts) if len(parts) > 1 else parts[0]

    def hour_klines(self, coin: Coin, end: int) -> Rows:
        """Return the official 1h klines from the beginning to `end`, a whole hour."""
        known = self._hours.get(coin.symbol, np.empty(0, KLINE_ROW))
        begin = int(known["open_time"][-1]) + HOUR_MS if len(known) else self.since(coin)
        end = min(end, -(-coin.delisted // HOUR_MS) * HOUR_MS)
        if begin < end:
            # Whole days at once, where they are: their minutes are not needed one by one.
            today = max(end // DAY_MS, -(-begin // DAY_MS))
            parts = [known, merge(self.minute_klines(coin, begin, min(end, -(-begin // DAY_MS) * DAY_MS)), "1h", 0)]
            if -(-begin // DAY_MS) < today:
                parts.append(merge(self._rows(coin, -(-begin // DAY_MS), today, STEADY), "1h", 0))
            parts.append(merge(self.minute_klines(coin, max(begin, today * DAY_MS), end), "1h", 0))
            known = joined(parts)
            self._hours[coin.symbol] = known
        return known[: np.searchsorted(known["open_time"], end)]

    def klines(self, coin: Coin, interval: str, start: int, now: int) -> Rows:
        """Return the official klines of an interval that end after `start` and open until `now`, the last one forming.

        The first is whole only if it opens within what the market knows.
        """
        grid = coin.instrument.grid_3d
        start = max(open_time(interval, start, grid), open_time(interval, self.since(coin), grid))
        end = min(now, coin.delisted - 1) + 1
        minute = end // MINUTE_MS * MINUTE_MS
        if LENGTHS[interval] and LENGTHS[interval] < HOUR_MS:
            coarse = start
            parts = []
            if LENGTHS[interval] % (STEADY * MINUTE_MS) == 0 and not self._began % HOUR_MS and not coin.listed:
                coarse = minute // (STEADY * MINUTE_MS) * (STEADY * MINUTE_MS)
                parts = [self.minute_klines(coin, start, coarse, STEADY)]
            rows = joined([*parts, self.minute_klines(coin, max(start, coarse), minute)])
        else:
            hour = end // HOUR_MS * HOUR_MS
            hours = self.hour_klines(coin, hour)
            hours = hours[np.searchsorted(hours["open_time"], start) :]
            rows = joined([hours, self.minute_klines(coin, max(start, hour), minute)])
        if max(minute, self.since(coin), coin.listed) < end:
            rows = joined([rows, self._forming(coin, minute, end)])
        return rows if interval == "1m" else merge(rows, interval, grid)

    def _forming(self, coin: Coin, minute: int, end: int) -> Rows:
        row = kline_of_trades(minute, self.fills(coin, minute, end))
        if len(row):
            return row
        before = self.minute_klines(coin, minute - MINUTE_MS, minute)
        close = int(before["close"][-1]) if len(before) else self._close_before(coin, minute // DAY_MS)
        return flat_rows(np.array([minute]), close)

    def last_day(self, coin: Coin, now: int) -> Rows:
        """Return the klines of STEADY minutes of the last 24 hours."""
        start, end = max(now - DAY_MS, self.since(coin)), min(now, coin.delisted)
        if start >= end:
            return np.empty(0, KLINE_ROW)
        return self.minute_klines(coin, start, end // (STEADY * MINUTE_MS) * STEADY * MINUTE_MS, STEADY)

    def price_at(self, coin: Coin, time: int) -> int:
        """Return what a coin's price wanders around."""
        ticks = self.days.day(coin, time // DAY_MS).ticks[time % DAY_MS // MINUTE_MS // STEADY]
        return int(ticks) * coin.instrument.tick

    # Trades, one by one.

    def aggregates(self, coin: Coin, minute: int, first: int = 0, count: int = ENDLESS) -> Rows:
        """Return a minute's aggregate trades, AGG_ROW[n], ascending: `count` from id `first` on."""
        timed = self._timed(coin, minute, first, count)
        owners = np.zeros(len(timed.ids), np.int64)
        return aggregates(self.tape, traits([coin]), owners, timed.ids, timed.times[:-1], timed.ticks)

    def single_trades(self, coin: Coin, minute: int, first: int = 0, count: int = ENDLESS) -> Rows:
        """Return the single trades of the aggregates of a minute, TRADE_ROW[n], burnt ids among them.

        Those of the last aggregate may have happened in the next minute. `first`, `count`: of aggregates.
        """
        ids, times, ticks, late = self._timed(coin, minute, first, count)
        is_late = np.zeros(len(ids), bool)
        is_late[-1:] = late
        return single_trades(self.tape, traits([coin]), ids, times[:-1], times[1:], ticks, is_late)[0]

    def _minute(self, coin: Coin, minute: int) -> _Minute:
        table = self.days.day(coin, minute // DAY_MS)
        at = minute % DAY_MS // MINUTE_MS
        first, end = int(table.ids[at]), int(table.ids[at + 1])
        skipped = table.skipped if at == table.listing_minute else 0
        pace = self.tape.warp_ms[table.warps[at]]
        return _Minute(
            first,
            end,
            skipped,
            max(1, skipped + end - first),
            pace,
            int(table.late[at]),
            int(table.ticks[at // STEADY]),
        )

    def _timed(self, coin: Coin, minute: int, first: int, count: int) -> _Timed:
        of_minute = self._minute(coin, minute)
        begin = min(max(of_minute.first, first), of_minute.end)
        ids = np.arange(begin, min(of_minute.end, begin + count))
        times = np.empty(len(ids) + 1, np.int64)
        index = of_minute.skipped + begin - of_minute.first
        moments(self.tape.jitter, self.quirks, begin, index, of_minute.total, of_minute.pace, of_minute.late, times)
        ticks = np.full(len(ids), of_minute.ticks, np.int64)
        return _Timed(
            ids, minute + times, ticks, bool(of_minute.late) and len(ids) > 0 and ids[-1] == of_minute.end - 1
        )

    def released(self, coin: Coin, kind: str, now: int) -> int:
        """Return the first aggregate id that has not left the exchange at `now`, on the stream of this kind."""
        return self.id_at(coin, int(released_before(kind, traits([coin]), now)[0]))

    def fills(self, coin: Coin, minute: int, until: int) -> Rows:
        """Return the single trades that happened from a minute's beginning to before `until` in it, TRADE_ROW[n]."""
        kept = self._fills.get((coin.symbol, minute))
        if kept is None:
            # Only the last aggregate of the minute before may have fills in this one.
            end = self._minute(coin, minute - MINUTE_MS).end
            before = self.single_trades(coin, minute - MINUTE_MS, end - 1)
            kept = (before[before["time"] >= minute], self._minute(coin, minute).first)
        rows, known = kept
        beyond = self.id_at(coin, until)
        if known < beyond:
            rows, known = np.concatenate([rows, self.single_trades(coin, minute, known, beyond - known)]), beyond
        self._fills[(coin.symbol, minute)] = rows, known
        while len(self._fills) > FILLS_MAX:
            self._fills.popitem(last=False)
        return rows[rows["time"] < until]

    def minute_of(self, coin: Coin, aggregate_id: int, now: int) -> int:
        """Return the minute in which an aggregate id happens; the first or the one of `now` if it is outside."""
        day, lowest = now // DAY_MS, max(GENESIS_MS, coin.listed) // DAY_MS
        if coin.daily and not coin.listed:
            day = max(lowest, min(day, GENESIS_MS // DAY_MS + (aggregate_id - coin.base) // coin.daily + 1))
        while day > lowest and int(self.days.day(coin, day).ids[0]) > aggregate_id:
            day -= 1
        at = int(np.searchsorted(self.days.day(coin, day).ids[1:], aggregate_id, side="right"))
        return min(day * DAY_MS + min(at, DAY_MINUTES - 1) * MINUTE_MS, now // MINUTE_MS * MINUTE_MS)

    def id_at(self, coin: Coin, time: int) -> int:
        """Return the first aggregate id that happens at `time` or later."""
        of_minute = self._minute(coin, time // MINUTE_MS * MINUTE_MS)
        return of_minute.first + int(
            count_before(
                self.tape.jitter,
                self.quirks,
                of_minute.first,
                of_minute.skipped,
                of_minute.end,
                of_minute.total,
                of_minute.pace,
                of_minute.late,
                time % MINUTE_MS,
            )
        )

    def aggregate_of(self, trade_id: int) -> int:
        """Return the aggregate that a single trade is part of."""
        rounds, index = divmod(trade_id, self.tape.ids)
        return rounds * SIZE + int(np.searchsorted(self.tape.first, index, side="right")) - 1
