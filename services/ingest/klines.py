"""The exchange's own klines as rows of `KLINE`: which are taken, and in which decimals.

A row is taken if its numbers are exact, its prices in order, and it stands on the calendar's grid: the exchange's
archives hold klines that opened off-grid after an outage (protocol §4.6), and those have no place in a book whose
places are arithmetic. Knows nothing of JSON, requests or time.
"""

from typing import NamedTuple

import numpy as np

from services.ingest.exact import DECIMALS_MAX, Integers, Rows, numbers
from shared.calendar import anchor_of, next_open_time, open_time_of
from shared.decimals import INT64_MAX
from shared.interval import INTERVAL_INDEX, INTERVALS
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE

HEADROOM = 16
"""How many times the largest quote volume of a symbol's history must still fit an int64 for its decimals to grow."""

NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
"""The order of a row's eight decimal numbers in `Columns.texts`."""
_PRICES, _VOLUMES, _QUOTES = slice(0, 4), [4, 6], [5, 7]


class Columns(NamedTuple):
    """Kline rows as they were answered, taken apart."""

    open_times: list[int]
    close_times: list[int]
    trade_counts: list[int]
    texts: list[str]
    """Eight a row, in the order of `NUMBERS`."""


class Parsed(NamedTuple):
    """Rows of one interval, ascending, each number as (mantissa, decimals)."""

    interval: str
    open_times: Integers
    close_times: Integers
    trade_counts: Integers
    mantissas: Integers
    decimals: Integers

    def chosen(self, mask: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> "Parsed":
        return Parsed(self.interval, *(column[mask] for column in self[1:]))

    def closed_before(self, time_ms: int) -> "Parsed":
        """Keep the rows whose last millisecond lies before `time_ms`."""
        return self.chosen(self.close_times < time_ms)


def parse(interval: str, columns: Columns) -> tuple[Parsed, int]:
    """Return (rows, how many were refused)."""
    count = len(columns.open_times)
    mantissas, decimals = numbers(columns.texts)
    parsed = Parsed(
        interval,
        np.array(columns.open_times, np.int64),
        np.array(columns.close_times, np.int64),
        np.array(columns.trade_counts, np.int64),
        mantissas.reshape(count, len(NUMBERS)),
        decimals.reshape(count, len(NUMBERS)),
    )
    good = (parsed.decimals >= 0).all(axis=1) & (parsed.mantissas[:, _PRICES] > 0).all(axis=1)
    good &= _on_grid(interval, parsed.open_times, parsed.close_times)
    if count:
        good[1:] &= parsed.open_times[1:] > np.maximum.accumulate(parsed.open_times)[:-1]
    return parsed.chosen(good), count - int(good.sum())


def decimals_for(parts: list[Parsed], price_decimals: int, quantity_decimals: int) -> tuple[int, int]:
    """Return the decimals that hold all of a symbol's history, or those given where growing would cost too much.

    Old klines can be finer than today's grid. They must not take the room that the symbol's future needs: a quote
    volume is an int64 of both decimals together.
    """
    decimals = np.concatenate([part.decimals for part in parts]) if parts else np.empty((0, len(NUMBERS)), np.int64)
    if not len(decimals):
        return price_decimals, quantity_decimals
    mantissas = np.concatenate([part.mantissas for part in parts])
    prices = max(price_decimals, int(decimals[:, _PRICES].max()))
    quantities = max(quantity_decimals, int(decimals[:, _VOLUMES].max()), int(decimals[:, _QUOTES].max()) - prices)
    largest = float((mantissas[:, 5] / 10.0 ** decimals[:, 5]).max())
    if max(prices, quantities) > DECIMALS_MAX or largest * HEADROOM * 10.0 ** (prices + quantities) > INT64_MAX:
        return price_decimals, quantity_decimals
    return prices, quantities


def kline_rows(parsed: Parsed, price_decimals: int, quantity_decimals: int) -> tuple[Rows, int]:
    """Return (KLINE[n], how many rows do not fit these decimals and were left out)."""
    target = np.full(len(NUMBERS), price_decimals, np.int64)
    target[_VOLUMES] = quantity_decimals
    target[_QUOTES] = price_decimals + quantity_decimals
    shift = target - parsed.decimals
    powers = np.array([10**power for power in range(19)], np.int64)[np.clip(shift, 0, 18)]
    good = ((shift >= 0) & (shift <= 18) & (parsed.mantissas <= INT64_MAX // powers)).all(axis=1)
    values = np.where(good[:, None], parsed.mantissas, 0) * np.where(good[:, None], powers, 0)
    low, high = values[:, 2], values[:, 1]
    good &= (low <= values[:, _PRICES].min(axis=1, initial=INT64_MAX)) & (
        high >= values[:, _PRICES].max(axis=1, initial=0)
    )
    rows = np.zeros(int(good.sum()), KLINE)
    for place, name in enumerate(NUMBERS):
        rows[name] = values[good, place]
    rows["open_time"] = parsed.open_times[good]
    rows["trade_count"] = parsed.trade_counts[good]
    rows["flags"] = EXCHANGE | FINAL | CLOSED
    return rows, len(good) - len(rows)


def _on_grid(
    interval: str, open_times: Integers, close_times: Integers
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    length = INTERVALS[INTERVAL_INDEX[interval]].length_ms
    if not length:
        pairs = zip(open_times.tolist(), close_times.tolist(), strict=True)
        return np.array(
            [
                open_time_of(interval, start) == start and next_open_time(interval, start) == end + 1
                for start, end in pairs
            ],
            bool,
        )
    good = close_times - open_times + 1 == length
    if interval == "3d":
        # The grid of 3d differs by symbol; what can be said is that all rows share one.
        return np.asarray(good & (open_times % length == (open_times[-1] % length if len(open_times) else 0)))
    return np.asarray(good & ((open_times - anchor_of(interval)) % length == 0))
