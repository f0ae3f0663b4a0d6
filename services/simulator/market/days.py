"""A coin's days: how many trades each minute has, and what their prices wander around.

Follows from the seed, the coin and the day alone, so any day can be made at any time, and ids count on from genesis
without anything before them being made. Sums are of integers, so a day is the same whether it is made alone or among
others. Knows no trade.
"""

from bisect import bisect_left
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from services.simulator.grid import DAY_MS, MINUTE_MS
from services.simulator.market.coins import ENDLESS, GENESIS_MS, Coin
from services.simulator.market.moments import JITTER, MASK, SEGMENTS, share_ms
from services.simulator.market.tape import WARPS, Integers, Tape

DAY_MINUTES = 1440
STEADY = 5
"""Minutes for which the price that trades wander around stays the same; it divides an hour."""
TABLES_MAX = 4_500
"""Days kept, 17 KB each: today and tomorrow of 2,000 coins, and what REST looks back for."""
PACES_MAX = 512
"""Days of the whole market's activity kept, 12 KB each: more than a history that is asked for coin by coin."""
BATCH_MAX = 16
"""Days made in one go: fewer calls, and what they work on still fits the processor's cache."""
MEMORY_DAYS = 128
"""How long a price remembers a shock, ..."""
FORGET = 0.98
"""... and what is left of it after each day."""
BY_THE_HOUR = 0.08
"""How much of a day's volatility an hour adds by itself; most of it comes from the trades' own walk."""

_GENESIS = GENESIS_MS // DAY_MS
_NORMAL = 65_536 * (4 / 12) ** 0.5
"""The deviation of the sum of four 16-bit parts of a noise."""
_FADING_SCALE = 2**20
_FADING = np.rint(_FADING_SCALE * FORGET ** np.arange(MEMORY_DAYS)).astype(np.int64)
_OWN_PACE = np.rint(16 * np.exp(0.8 * np.linspace(-2.2, 2.2, 256))).astype(np.int64)
_SLOTS = 60 // STEADY


class Tables(NamedTuple):
    """Some days of a coin, one after another, by minutes."""

    ids: Integers
    """int64[days * 1440 + 1]: the first aggregate id of each minute; the last is that of the minute after."""
    ticks: Integers
    """int32[days * 288]: the price that trades wander around, in ticks, by STEADY minutes."""
    warps: Integers
    """uint8[days * 1440]: which pace a minute has."""
    late: Integers
    """uint16[days * 1440]: when the last aggregate happens if some of its fills happen in the next minute, else 0."""
    listing_minute: int
    """The minute in which the coin was listed, if it is among these, ..."""
    skipped: int
    """... and how many trades it would have had before."""


def noise(key: int, indices: Integers) -> Any:
    """Return uint64[n] that look random and follow from `key` and each index (splitmix64)."""
    x = indices.astype(np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def normal(key: int, indices: Integers) -> Integers:
    """Return int64[n], about normal around 0 with deviation _NORMAL: sums of four parts of a noise."""
    parts = noise(key, indices).view(np.uint16).reshape(len(indices), 4)
    return parts.sum(axis=1, dtype=np.int64) - 2 * 65_535


class Days:
    def __init__(self, seed: int, tape: Tape, quirks: bool) -> None:
        self._seed = seed
        self._tape = tape
        self._quirks = quirks
        self._paces: OrderedDict[int, Integers] = OrderedDict()
        self._known: OrderedDict[tuple[str, int], Tables] = OrderedDict()
        self._spans: dict[str, tuple[int, int]] = {}

    def day(self, coin: Coin, day: int) -> Tables:
        """Return one day, which is kept for a while."""
        known = self._known.get((coin.symbol, day))
        if known is None:
            known = self._known[(coin.symbol, day)] = self._make(coin, day, day + 1)
            while len(self._known) > TABLES_MAX:
                self._known.popitem(last=False)
        return known

    def many(self, coin: Coin, first: int, end: int) -> Tables:
        """Return the days [first, end), which are not kept: they would only push out those of now."""
        parts = [self._make(coin, at, min(at + BATCH_MAX, end)) for at in range(first, end, BATCH_MAX)]
        if len(parts) == 1:
            return parts[0]
        listed = [(at * DAY_MINUTES * BATCH_MAX + part.listing_minute, part.skipped) for at, part in enumerate(parts)]
        listing_minute, skipped = next((found for found in listed if found[1]), (-1, 0))
        return Tables(
            np.concatenate([*(part.ids[:-1] for part in parts), parts[-1].ids[-1:]]),
            np.concatenate([part.ticks for part in parts]),
            np.concatenate([part.warps for part in parts]),
            np.concatenate([part.late for part in parts]),
            listing_minute,
            skipped,
        )

    def forget(self, coin: Coin) -> None:
        """Drop what is kept of a coin that is gone, or another one now."""
        self._spans.pop(coin.symbol, None)
        for key in [key for key in self._known if key[0] == coin.symbol]:
            del self._known[key]

    def first_id(self, coin: Coin, day: int) -> int:
        """Return the id at which a day begins, of a coin that was always there."""
        return int(self._before(coin, np.array([day]))[0])

    def _before(self, coin: Coin, days: Integers) -> Integers:
        """Return the id at which each day begins, not counting from a listing: evenly, but for some unrest."""
        unrest = (noise(coin.key("days"), days) & np.uint64(0xFFFF)).astype(np.int64)
        return coin.base + coin.daily * (days - _GENESIS) + (coin.daily * 3 // 10 * unrest >> 16)

    def _pace(self, day: int) -> Integers:
        """Return the whole market's activity by minutes: the time of day, restlessness, bursts."""
        pace = self._paces.get(day)
        if pace is None:
            minutes = np.arange(DAY_MINUTES)
            dice = np.random.default_rng([self._seed, day, 3])
            level = 40 * (1 + 0.5 * np.cos((minutes - 870) / DAY_MINUTES * 2 * np.pi)) * dice.lognormal(0, 0.3, 1440)
            for start in dice.integers(0, DAY_MINUTES, 10):
                level[start : start + 12] *= 1 + dice.uniform(2, 12) * 0.75 ** np.arange(len(level[start : start + 12]))
            pace = self._paces[day] = np.clip(np.rint(level), 4, 3_000).astype(np.int64)
            while len(self._paces) > PACES_MAX:
                self._paces.popitem(last=False)
        return pace

    def _raw(self, coin: Coin, first: int, end: int) -> tuple[Integers, Integers]:
        """Return (ids by minutes as in `Tables`, but not counting from a listing; uint64[days * 1440]: dice)."""
        dice = noise(coin.key("minutes"), np.arange(first * DAY_MINUTES, end * DAY_MINUTES))
        shares = _OWN_PACE[(dice & np.uint64(0xFF)).astype(np.intp)].reshape(end - first, DAY_MINUTES)
        for row, day in zip(shares, range(first, end), strict=True):
            row *= self._pace(day)
        np.cumsum(shares, axis=1, out=shares)
        begins = self._before(coin, np.arange(first, end + 1))
        total = shares[:, -1:].copy()
        shares *= np.diff(begins)[:, None]
        shares //= total
        shares += begins[:-1, None]
        return np.concatenate([begins[:1], shares.ravel()]), dice

    def _make(self, coin: Coin, first: int, end: int) -> Tables:
        raw, dice = self._raw(coin, first, end)
        ids, minute, skipped = raw, -1, 0
        if coin.listed:
            begin, beyond = self._span(coin)
            ids = np.clip(raw, begin, beyond) - (begin - 1)
            at = (coin.listed - first * DAY_MS) // MINUTE_MS
            if 0 <= at < len(dice):
                minute, skipped = at, begin - int(raw[at])
        elif coin.delisted < ENDLESS:
            ids = np.minimum(raw, self._end(coin))
        late = np.zeros(len(dice), np.uint16)
        if self._quirks and coin.delay:
            asked = np.flatnonzero((dice >> np.uint64(16)) & np.uint64(0xFF) < 48)
            count = ids[asked + 1] - ids[asked]
            fitting = (count > 0) & (count == raw[asked + 1] - raw[asked]) & (asked % DAY_MINUTES < DAY_MINUTES - 1)
            fitting &= self._tape.fills[(ids[asked + 1] - 1) & MASK] > 1
            asked = asked[fitting]
            late[asked] = np.uint64(59_999) - ((dice[asked] >> np.uint64(16)) & np.uint64(15))
        return Tables(ids, self._ticks(coin, first, end), _warps(dice), late, minute, skipped)

    def _span(self, coin: Coin) -> tuple[int, int]:
        """Return the raw ids between which a coin that is listed and delisted trades."""
        span = self._spans.get(coin.symbol)
        if span is None:
            day = coin.listed // DAY_MS
            raw, dice = self._raw(coin, day, day + 1)
            minute = coin.listed % DAY_MS // MINUTE_MS
            count = int(raw[minute + 1] - raw[minute])
            # Without their jitter trades are early: whatever comes after the listing so, does so with it.
            pace = self._tape.warp_ms[_warps(dice)[minute]]
            early = bisect_left(
                range(count),
                coin.listed % MINUTE_MS,
                key=lambda index: share_ms(index * (JITTER * SEGMENTS) // count, pace),
            )
            first = int(raw[minute]) + early
            span = self._spans[coin.symbol] = (first, self._end(coin))
        return span

    def _end(self, coin: Coin) -> int:
        """Return the raw id at which a delisted coin ends."""
        day = coin.delisted // DAY_MS
        return int(self._raw(coin, day, day + 1)[0][coin.delisted % DAY_MS // MINUTE_MS])

    def _ticks(self, coin: Coin, first: int, end: int) -> Integers:
        """Return the price by STEADY minutes: from day to day by shocks that fade, between them by the hour.

        Because shocks fade, a price stays around what is familiar.
        """
        shocks = normal(coin.key("shocks"), np.arange(first - MEMORY_DAYS, end))
        levels = np.convolve(shocks, _FADING, "valid")[: end - first + 1] * (coin.volatility / _NORMAL / _FADING_SCALE)
        hours = np.arange(25)
        path = np.zeros((end - first, 25))
        path[:, 1:] = np.cumsum(
            normal(coin.key("hours"), np.arange(first * 24, end * 24)).reshape(end - first, 24), axis=1
        )
        path -= path[:, -1:] * (hours / 24)
        path *= coin.volatility * BY_THE_HOUR / _NORMAL
        path += levels[:-1, None] + (levels[1:] - levels[:-1])[:, None] * (hours / 24)
        fine = path[:, :-1, None] + (path[:, 1:] - path[:, :-1])[:, :, None] * (np.arange(_SLOTS) / _SLOTS)
        ticks = np.rint(np.exp(fine.ravel()) * coin.price)
        return np.maximum(ticks, coin.swing * self._tape.reach + 1).astype(np.int32)


def _warps(dice: Any) -> Integers:
    return ((dice >> np.uint64(8)) & np.uint64(WARPS - 1)).astype(np.uint8)
