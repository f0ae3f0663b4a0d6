"""Who trades on the generated market: names, prices, grids and how active each is.

Everything about a coin follows from the seed and its name, so every start of the simulator finds the same ones.
Knows nothing of time but when a coin is listed and delisted.
"""

import functools
import hashlib
import math

import msgspec
import numpy as np

from services.simulator.grid import DAY_MS, MINUTE_MS
from services.simulator.market.tape import UNITS_MEAN, Tape
from services.simulator.rows import Instrument

FAMILIAR: tuple[tuple[str, float], ...] = (
    ("BTC", 83_000), ("ETH", 2_900), ("SOL", 145), ("XRP", 2.1), ("DOGE", 0.16), ("BNB", 890), ("1000PEPE", 0.0051),
    ("SUI", 1.62), ("ADA", 0.47), ("LINK", 13.2), ("AVAX", 14.1), ("LTC", 92), ("BCH", 520), ("币安人生", 0.134),
    ("HYPE", 33.5), ("ENA", 0.26), ("TRX", 0.281), ("WIF", 0.37), ("AAVE", 172), ("NEAR", 1.94), ("TON", 1.61),
    ("DOT", 2.31), ("ARB", 0.214), ("UNI", 6.1), ("ZEC", 510), ("FIL", 1.61), ("APT", 2.28), ("OP", 0.33),
    ("WLD", 0.63), ("TAO", 290), ("ORDI", 3.7), ("1000SHIB", 0.0083), ("1000BONK", 0.0097), ("ETC", 13.6),
    ("ATOM", 2.51), ("INJ", 5.7), ("SEI", 0.137), ("TIA", 0.61), ("LDO", 0.63), ("CRV", 0.41), ("JUP", 0.24),
    ("PENDLE", 2.3), ("FET", 0.27), ("RENDER", 1.7), ("GALA", 0.0073), ("SAND", 0.154), ("MANA", 0.162), ("AXS", 0.93),
    ("ALGO", 0.139), ("VET", 0.0132), ("XLM", 0.251), ("HBAR", 0.147), ("ICP", 4.1), ("EOS", 0.24), ("THETA", 0.36),
    ("GRT", 0.043), ("SNX", 0.51), ("COMP", 33), ("MKR", 1_400), ("DASH", 61), ("XMR", 390), ("KSM", 8.7),
    ("ZIL", 0.0056), ("CHZ", 0.031), ("ENJ", 0.033), ("IOTA", 0.107), ("QTUM", 1.6), ("NEO", 4.3), ("ONT", 0.067),
    ("KAVA", 0.111),
)  # fmt: skip
"""Well-known names in the order of their activity, with a price that is about right; prices wander around it."""

ENDLESS = 2**62
"""When a coin is delisted that is not."""
GENESIS_MS = 1_483_228_800_000
"""2017-01-01: ids are counted from here, so they only grow, whenever the simulator starts."""
PENDING_MS = 300_000
"""A new coin is announced this long before it trades, or as long as one listing interval if that is shorter."""
LIFE = 12
"""Listing intervals that a new coin trades for; after that it is delisted, so that there is not one more for ever."""
SETTLING = 2
"""Listing intervals that a delisted one is still in exchangeInfo."""
EXTRA_LIFE_MS = 30 * DAY_MS
LISTED_RANK = 25
"""A new coin is as active as the one at this rank."""
SWING = 6e-4
"""How far a price goes in a minute, as a share of it, by its own trades."""


class Coin(msgspec.Struct, frozen=True, kw_only=True):
    instrument: Instrument
    seed: int
    price: float
    """What its price wanders around, in ticks."""
    swing: int
    """Ticks of one step on the tape."""
    lot: int
    """Quantity of one unit on the tape, in units of the last decimal."""
    daily: int
    """Aggregate trades a day, on average."""
    base: int
    """Its first id at genesis."""
    volatility: float
    """Of a day, as a share of the price."""
    delay: int
    """Ms for which fills of one price and side are collected into an aggregate; 0 to 100."""
    phase: int
    """Aggregates leave every 50 ms at this phase."""
    listed: int = 0
    """When it begins to trade, ms; 0: before anything the simulator knows."""
    delisted: int = ENDLESS

    @property
    def symbol(self) -> str:
        return self.instrument.symbol

    def key(self, purpose: str) -> int:
        return key_of(self.seed, self.symbol, purpose)


@functools.lru_cache(65_536)
def key_of(*parts: object) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def coin(
    seed: int, name: str, price: float, fills_a_day: float, tape: Tape, listed: int = 0, delisted: int = ENDLESS
) -> Coin:
    """Make the coin `name`, whose grid and manners follow from its price and its name."""
    symbol = f"{name}USDT"
    dice = np.random.default_rng([seed, key_of(seed, symbol, "coin") & 0xFFFFFFFF])
    digits = max(0, min(8, 4 - math.floor(math.log10(price))))
    price_decimals = digits if price < 1_000 else 2
    # As BTCUSDT has it: one decimal more than the tick needs.
    tick = 10 if name == "BTC" or dice.random() < 0.1 else 1
    quantity_decimals = 3 if price > 100 else 2 if price > 30 else 1 if price > 5 else 0
    ticks = price * 10**price_decimals / tick
    daily = int(fills_a_day / tape.fills_mean)
    steps = math.sqrt(max(1.0, daily / 1440) / 2)
    lot = max(1, round(900 / (price * UNITS_MEAN) * 10**quantity_decimals))
    instrument = Instrument(
        symbol=symbol,
        price_decimals=price_decimals,
        quantity_decimals=quantity_decimals,
        tick=tick,
        onboard=listed or GENESIS_MS + int(dice.integers(0, 1_000)) * DAY_MS,
        delivery=delisted if delisted < ENDLESS else 4_133_404_800_000,
        grid_3d=(listed // DAY_MS if listed else int(dice.integers(0, 3))) * DAY_MS,
    )
    return Coin(
        instrument=instrument,
        seed=seed,
        price=ticks,
        swing=max(1, min(round(SWING * ticks / steps), int(0.2 * ticks / tape.reach))),
        lot=lot,
        daily=daily,
        base=1 if listed else int(dice.integers(10**6, 10**9)),
        volatility=float(dice.uniform(0.02, 0.05)) if name not in ("BTC", "ETH") else 0.02,
        delay=0 if dice.random() < 0.3 else int(dice.integers(30, 101)),
        phase=int(dice.integers(0, 50)),
        listed=listed,
        delisted=delisted,
    )


def standing_coins(seed: int, count: int, trades_per_second: float, tape: Tape) -> list[Coin]:
    """Return the coins that have always been there: activity falls with rank, and some hardly ever trade."""
    names = [*FAMILIAR, *((f"COIN{rank:03d}", 0.0) for rank in range(len(FAMILIAR) + 1, count + 1))][:count]
    dice = np.random.default_rng([seed, 11])
    prices = [price or float(np.exp(dice.normal(-1.0, 2.0))) for _, price in names]
    quiet = [rank >= 8 and rank % 12 == 8 for rank in range(count)]
    shares = np.array([(0.002 if quiet[rank] else 1.0) / (rank + 2) for rank in range(count)])
    shares *= trades_per_second * 86_400 / shares.sum()
    return [
        coin(seed, name, price, share, tape)
        for (name, _), price, share in zip(names, prices, shares.tolist(), strict=True)
    ]


class Listings:
    """The coins that come and go: coin k is listed at k intervals since 1970, whenever the simulator starts."""

    def __init__(self, seed: int, interval_s: float, fills_a_day: float, tape: Tape) -> None:
        self._seed = seed
        self._interval = int(interval_s * 1000)
        self._fills_a_day = fills_a_day
        self._tape = tape
        self._coins: dict[int, Coin] = {}
        self._extras = 0

    @property
    def _pending(self) -> int:
        return min(PENDING_MS, self._interval)

    def known(self, now: int) -> list[Coin]:
        """Return those that exchangeInfo names at `now`: pending, trading and settling ones."""
        if not self._interval:
            return []
        last = (now + self._pending) // self._interval
        indices = range(max(1, now // self._interval - LIFE - SETTLING), last + 1)
        self._coins = {index: self._coins.get(index) or self._make(index) for index in indices}
        return list(self._coins.values())

    def extra(self, now: int) -> Coin:
        """Return one that is listed at `now`, between two intervals, and stays."""
        self._extras += 1
        return self._coin(f"EXTRA{self._extras}", -self._extras, now, now + EXTRA_LIFE_MS)

    def _make(self, index: int) -> Coin:
        listed = index * self._interval
        # Whole minutes: a delisted coin ends with a kline.
        delisted = -(-(listed + LIFE * self._interval) // MINUTE_MS) * MINUTE_MS
        return self._coin(f"NEW{index}", index, listed, delisted)

    def _coin(self, name: str, index: int, listed: int, delisted: int) -> Coin:
        price = float(np.exp(np.random.default_rng([self._seed, index % 2**32]).normal(-1.5, 1.5)))
        return coin(self._seed, name, price, self._fills_a_day, self._tape, listed, delisted)


def status_of(instrument: Instrument, now: int) -> str:
    if now < instrument.onboard:
        return "PENDING_TRADING"
    return "TRADING" if now < instrument.delivery else "SETTLING"
