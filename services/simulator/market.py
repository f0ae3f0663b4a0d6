"""The generated market: what was, is and will be traded, as one function of the seed, the coin and the minute.

Nothing is stored that could not be computed again: a coin's ids, prices and trades of any minute follow from the seed,
so klines of years, a page of last night's trades and the stream of now agree, and a restarted simulator goes on with
the market that went on without it. Decides how many trade when and what prices do; how an aggregate looks is on the
tape. Reads no clock.

A day of a coin is two tables of its 1,440 minutes: the id at which each begins, and the price that its trades wander
around. Klines are made from sums over ranges of ids. Fills of a minute's last aggregate may take place in the next
minute ("late" ones, with quirks): official klines have them there, whoever builds klines from aggregates does not.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from services.simulator.coins import GENESIS_MS, Coin
from services.simulator.grid import DAY_MS, HOUR_MS, LENGTHS, MINUTE_MS, open_time
from services.simulator.rows import (
    KLINE_ROW,
    SUMS,
    Rows,
    flat_rows,
    kline_of_trades,
    merge,
)
from services.simulator.tape import JITTER, MASK, SEGMENTS, SIZE, WARPS, Integers, Tape
from services.simulator.trades import aggregates, manner, offsets, released_before, single_trades

DAY_MINUTES = 1440
RECENT_DAYS_MAX = 64
"""Days of minute klines kept, 115 KB each: what is asked of one coin is asked of several intervals in a row."""
TABLES_MAX = 4_500
"""Days of tables kept, 17 KB each: today and tomorrow of 2,000 coins, and what REST looks back for."""
PACES_MAX = 512
"""Days of the whole market's activity kept, 12 KB each: more than a history that is asked for coin by coin."""
LEVELS_MAX = 100_000
"""Prices at the beginning of a day kept; the history of a coin is mostly made of these."""
STEADY = 5
"""Minutes for which the price that trades wander around stays the same; it divides an hour."""
MEMORY_DAYS = 128
"""How long a price remembers, by days."""
FORGET = 0.98
BY_THE_HOUR = 0.08
"""How much of a day's volatility an hour adds by itself; most of it comes from the trades' own walk."""

_NORMAL = 65_536 * (4 / 12) ** 0.5
_FADING = FORGET ** np.arange(MEMORY_DAYS, dtype=np.float64)[::-1]
_HOURS = np.arange(25)
_OWN_PACE = np.rint(16 * np.exp(0.8 * np.linspace(-2.2, 2.2, 256))).astype(np.int64)


def noise(key: int, places: Integers) -> Any:
    """Return uint64[n] that look random and follow from `key` and each place (splitmix64)."""
    x = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def normal(key: int, places: Integers) -> Any:
    """Return float64[n] of mean 0 and deviation 1, about normal: the sum of four parts of a noise."""
    parts = noise(key, places).view(np.uint16).reshape(len(places), 4)
    return (parts.sum(axis=1, dtype=np.int64) - 2 * 65_535) / _NORMAL


class Day(NamedTuple):
    """A coin's day, by minutes."""

    ids: Integers
    """int64[1441]: the first aggregate id of each minute; the last is the next day's."""
    ticks: Integers
    """int32[288]: the price that trades wander around, in ticks, by STEADY minutes."""
    warps: Integers
    """uint8[1440]: which pace a minute has."""
    late: Integers
    """uint16[1440]: when the last aggregate happens, if some of its fills happen in the next minute; 0 if not."""
    listing_minute: int
    """The minute in which the coin was listed, if it was on this day, ..."""
    skipped: int
    """... and how many trades it would have had before."""


class Generator:
    def __init__(self, seed: int, tape: Tape, quirks: bool, began: int) -> None:
        """`began`: the first millisecond that klines know of."""
        self.tape = tape
        self._seed = seed
        self.quirks = quirks
        self._began = began
        self._paces: OrderedDict[int, Integers] = OrderedDict()
        self._levels: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._tables: OrderedDict[tuple[str, int], Day] = OrderedDict()
        self._minutes: OrderedDict[tuple[str, int], Rows] = OrderedDict()
        self._hours: dict[str, Rows] = {}
        self._spans: dict[str, tuple[int, int]] = {}

    def forget(self, coin: Coin) -> None:
        """Drop what is kept of a coin that is gone."""
        self._hours.pop(coin.symbol, None)
        self._spans.pop(coin.symbol, None)

    def since(self, coin: Coin) -> int:
        """Return the first minute that a coin has klines of."""
        return max(self._began, coin.listed // MINUTE_MS * MINUTE_MS)

    # How many trade when.

    def _raw_before(self, coin: Coin, day: int) -> int:
        """Return the id before which all trades happened before `day`, not counting from its listing."""
        days = day - GENESIS_MS // DAY_MS
        uneven = int(noise(coin.key("days"), np.array([day]))[0]) & 0xFFFF
        return coin.base + coin.daily * days + (coin.daily * 3 // 10 * uneven >> 16)

    def _pace(self, day: int) -> Integers:
        """Return the whole market's activity by minutes: the time of day, restlessness, bursts."""
        pace = self._paces.get(day)
        if pace is None:
            minutes = np.arange(DAY_MINUTES)
            dice = np.random.default_rng([self._seed, day, 3])
            level = 40 * (1 + 0.5 * np.cos((minutes - 870) / DAY_MINUTES * 2 * np.pi)) * dice.lognormal(0, 0.3, 1440)
            for start in dice.integers(0, DAY_MINUTES, 10):
                level[start : start + 12] *= 1 + dice.uniform(2, 12) * 0.75 ** np.arange(len(level[start : start + 12]))
            pace = np.clip(np.rint(level), 4, 3_000).astype(np.int64)
            _keep(self._paces, day, pace, PACES_MAX)
        return pace

    def day(self, coin: Coin, day: int) -> Day:
        key = (coin.symbol, day)
        known = self._tables.get(key)
        if known is None:
            known = self._make_day(coin, day)
            _keep(self._tables, key, known, TABLES_MAX)
        return known

    def _raw_day(self, coin: Coin, day: int) -> tuple[Integers, Integers]:
        """Return (int64[1441]: ids by minutes, not counting from its listing; uint64[1440]: dice)."""
        dice = noise(coin.key("minutes"), np.arange(day * DAY_MINUTES, (day + 1) * DAY_MINUTES))
        shares = np.cumsum(self._pace(day) * _OWN_PACE[(dice & np.uint64(0xFF)).astype(np.intp)])
        start = self._raw_before(coin, day)
        raw = np.empty(DAY_MINUTES + 1, np.int64)
        raw[0] = start
        raw[1:] = start + (self._raw_before(coin, day + 1) - start) * shares // shares[-1]
        return raw, dice

    def _make_day(self, coin: Coin, day: int) -> Day:
        raw, dice = self._raw_day(coin, day)
        full = np.diff(raw)
        first, last = self._span(coin)
        ids = np.clip(raw, first, last) - (first - 1 if coin.listed else 0)
        late = np.zeros(DAY_MINUTES, np.uint16)
        if self.quirks and coin.delay:
            asked = (dice >> np.uint64(16)) & np.uint64(0xFF)
            fitting = (asked < 48) & (full > 0) & (np.diff(ids) == full) & (self.tape.fills[(ids[1:] - 1) & MASK] > 1)
            fitting[-1] = False
            late[fitting] = np.uint64(59_999) - (asked[fitting] & np.uint64(15))
        minute = coin.listed % DAY_MS // MINUTE_MS if coin.listed // DAY_MS == day else -1
        skipped = first - int(raw[minute]) if minute >= 0 else 0
        return Day(ids, self._ticks(coin, day), _warps(dice), late, minute, skipped)

    def _span(self, coin: Coin) -> tuple[int, int]:
        """Return the raw ids between which a coin trades: all of them, but for one that is listed and delisted."""
        if not coin.listed:
            return 0, 2**62
        span = self._spans.get(coin.symbol)
        if span is None:
            raw, dice = self._raw_day(coin, coin.listed // DAY_MS)
            minute = coin.listed % DAY_MS // MINUTE_MS
            count = int(raw[minute + 1] - raw[minute])
            # Without their jitter trades are early: whatever comes after the listing so, does so with it.
            shares = np.arange(count) * (JITTER * SEGMENTS) // max(1, count)
            times = self.tape.share_ms(shares, _warps(dice)[minute])
            first = int(raw[minute] + np.searchsorted(times, coin.listed % MINUTE_MS))
            ends, _ = self._raw_day(coin, coin.delisted // DAY_MS)
            span = self._spans[coin.symbol] = (first, int(ends[coin.delisted % DAY_MS // MINUTE_MS]))
        return span

    # What prices do.

    def _level(self, coin: Coin, day: int) -> float:
        """Return the logarithm of the price at a day's beginning, in ticks: shocks that fade, so it stays familiar."""
        level = self._levels.get((coin.symbol, day))
        if level is None:
            shocks = normal(coin.key("shocks"), np.arange(day - MEMORY_DAYS, day))
            level = float(np.log(coin.price) + coin.volatility * float((shocks * _FADING).sum()))
            _keep(self._levels, (coin.symbol, day), level, LEVELS_MAX)
        return level

    def _ticks(self, coin: Coin, day: int) -> Integers:
        """Return the price by minutes: between two days' levels, by the hour, on a path of its own."""
        start, end = self._level(coin, day), self._level(coin, day + 1)
        steps = np.concatenate([[0.0], np.cumsum(normal(coin.key("hours"), np.arange(day * 24, day * 24 + 24)))])
        path = start + (end - start) * _HOURS / 24 + (steps - steps[-1] * _HOURS / 24) * (coin.volatility * BY_THE_HOUR)
        levels = np.interp(np.arange(DAY_MINUTES // STEADY) * (STEADY / 60), _HOURS, path)
        return np.maximum(np.rint(np.exp(levels)), coin.swing * self.tape.reach + 1).astype(np.int32)

    # Klines.

    def _minute_rows(self, coin: Coin, day: int) -> Rows:
        """Return the official 1m klines of a day, KLINE_ROW[1440], whatever of it has happened."""
        key = (coin.symbol, day)
        rows = self._minutes.get(key)
        if rows is None:
            rows = self._rows(coin, day, day + 1, 1)
            _keep(self._minutes, key, rows, RECENT_DAYS_MAX)
        return rows

    def _rows(self, coin: Coin, day: int, end_day: int, minutes: int) -> Rows:
        """Return the official klines of whole days, `minutes` long: 1, or STEADY, for which prices wander around one.

        KLINE_ROW[(end_day - day) * 1440 / minutes]
        """
        # Long ago is asked for once, and its tables would only take the place of those of now.
        tables = [self.day(coin, at) if minutes == 1 else self._make_day(coin, at) for at in range(day, end_day)]
        ids = np.concatenate([*(table.ids[:-1:minutes] for table in tables), tables[-1].ids[-1:]])
        ticks = np.concatenate([np.repeat(table.ticks, STEADY // minutes) for table in tables]).astype(np.int64)
        late = np.flatnonzero(np.concatenate([table.late[minutes - 1 :: minutes] for table in tables]))
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
        places = (ids[late + 1] - 1) & MASK
        price = (ticks[late] + coin.swing * self.tape.wander[places]) * coin.instrument.tick
        volume = (self.tape.units[places] - self.tape.head_units[places]) * coin.lot
        bought = np.where(self.tape.buys[places], volume, 0)
        moved = (volume, volume * price, self.tape.fills[places] - 1, bought, bought * price)
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
            if coin.listed or self._raw_before(coin, earlier) < self._raw_before(coin, earlier + 1):
                table = self.day(coin, earlier)
                traded = np.flatnonzero(np.diff(table.ids))
                if len(traded):
                    minute = int(traded[-1])
                    wander = int(self.tape.wander[(table.ids[minute + 1] - 1) & MASK])
                    return (int(table.ticks[minute // STEADY]) + coin.swing * wander) * coin.instrument.tick
        return int(self.day(coin, max(first, min(day, first))).ticks[0]) * coin.instrument.tick

    def minute_klines(self, coin: Coin, start: int, end: int) -> Rows:
        """Return the official 1m klines that open in [start, end), as they are when they are over."""
        start = max(-(-start // MINUTE_MS) * MINUTE_MS, self.since(coin))
        end = min(end, coin.delisted)
        if start >= end:
            return np.empty(0, KLINE_ROW)
        parts = []
        for day in range(start // DAY_MS, -(-end // DAY_MS)):
            first = max(0, start - day * DAY_MS) // MINUTE_MS
            parts.append(self._minute_rows(coin, day)[first : -(-(end - day * DAY_MS) // MINUTE_MS)])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

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
            known = np.concatenate(parts)
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
            rows = self.minute_klines(coin, start, minute)
        else:
            hour = end // HOUR_MS * HOUR_MS
            hours = self.hour_klines(coin, hour)
            hours = hours[np.searchsorted(hours["open_time"], start) :]
            rows = np.concatenate([hours, self.minute_klines(coin, max(start, hour), minute)])
        if max(minute, self.since(coin), coin.listed) < end:
            rows = np.concatenate([rows, self._forming(coin, minute, end)])
        return rows if interval == "1m" else merge(rows, interval, grid)

    def _forming(self, coin: Coin, minute: int, end: int) -> Rows:
        fills = self.fills(coin, minute)
        row = kline_of_trades(minute, fills[fills["time"] < end])
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
        rows = self._rows(coin, start // DAY_MS, -(-end // DAY_MS), STEADY)
        length = STEADY * MINUTE_MS
        return rows[(rows["open_time"] >= start) & (rows["open_time"] + length <= end)]

    def price_at(self, coin: Coin, time: int) -> int:
        """Return what a coin's price wanders around."""
        ticks = self.day(coin, time // DAY_MS).ticks[time % DAY_MS // MINUTE_MS // STEADY]
        return int(ticks) * coin.instrument.tick

    # Trades, one by one.

    def aggregates(self, coin: Coin, minute: int) -> Rows:
        """Return a minute's aggregate trades, AGG_ROW[n], ascending; `minute` is its first millisecond."""
        ids, times, ticks, _ = self._timed(coin, minute)
        return aggregates(self.tape, manner(coin), ids, times[:-1], ticks)

    def single_trades(self, coin: Coin, minute: int) -> Rows:
        """Return the single trades of the aggregates of a minute, TRADE_ROW[n], burnt ids among them.

        Those of the last aggregate may have happened in the next minute.
        """
        ids, times, ticks, late = self._timed(coin, minute)
        is_late = np.zeros(len(ids), bool)
        is_late[-1:] = late
        return single_trades(self.tape, manner(coin), ids, times[:-1], times[1:], ticks, is_late)[0]

    def _timed(self, coin: Coin, minute: int) -> tuple[Integers, Integers, Integers, bool]:
        """Return (ids of a minute's aggregates, when each happens and then when the next could, ticks, late fills?)."""
        table = self.day(coin, minute // DAY_MS)
        at = minute % DAY_MS // MINUTE_MS
        ids = np.arange(table.ids[at], table.ids[at + 1])
        skipped = table.skipped if at == table.listing_minute else 0
        places = np.arange(skipped, skipped + len(ids))
        total, late = np.int64(max(1, skipped + len(ids))), np.int64(table.late[at])
        times = offsets(self.tape, self.quirks, ids, places, total, table.warps[at], late)
        ticks = np.full(len(ids), table.ticks[at // STEADY], np.int64)
        return ids, minute + np.append(times, 59_999), ticks, bool(late)

    def released(self, coin: Coin, kind: str, now: int) -> int:
        """Return the first aggregate id that has not left the exchange at `now`, on the stream of this kind."""
        until = int(released_before(kind, manner(coin), np.int64(now)))
        _, times, _, _ = self._timed(coin, until // MINUTE_MS * MINUTE_MS)
        table = self.day(coin, until // DAY_MS)
        first = int(table.ids[until % DAY_MS // MINUTE_MS])
        return first + int(np.searchsorted(times[:-1], until))

    def fills(self, coin: Coin, minute: int) -> Rows:
        """Return the single trades that happened in a minute, TRADE_ROW[n], ascending."""
        before = self.single_trades(coin, minute - MINUTE_MS)
        own = self.single_trades(coin, minute)
        return np.concatenate([before[before["time"] >= minute], own[own["time"] < minute + MINUTE_MS]])

    def minute_of(self, coin: Coin, aggregate_id: int, now: int) -> int:
        """Return the minute in which an aggregate id happens; the first or the one of `now` if it is outside."""
        day, lowest = now // DAY_MS, max(GENESIS_MS, coin.listed) // DAY_MS
        if coin.daily and not coin.listed:
            day = max(lowest, min(day, GENESIS_MS // DAY_MS + (aggregate_id - coin.base) // coin.daily + 1))
        while day > lowest and int(self.day(coin, day).ids[0]) > aggregate_id:
            day -= 1
        at = int(np.searchsorted(self.day(coin, day).ids[1:], aggregate_id, side="right"))
        return min(day * DAY_MS + min(at, DAY_MINUTES - 1) * MINUTE_MS, now // MINUTE_MS * MINUTE_MS)

    def id_at(self, coin: Coin, time: int) -> int:
        """Return the first aggregate id that happens at `time` or later."""
        _, times, _, _ = self._timed(coin, time // MINUTE_MS * MINUTE_MS)
        first = int(self.day(coin, time // DAY_MS).ids[time % DAY_MS // MINUTE_MS])
        return first + int(np.searchsorted(times[:-1], time))

    def aggregate_of(self, trade_id: int) -> int:
        """Return the aggregate that a single trade is part of."""
        rounds, place = divmod(trade_id, self.tape.ids)
        return rounds * SIZE + int(np.searchsorted(self.tape.first, place, side="right")) - 1


def _warps(dice: Any) -> Integers:
    return ((dice >> np.uint64(8)) & np.uint64(WARPS - 1)).astype(np.uint8)


def _keep(cache: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
