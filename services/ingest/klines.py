"""The exchange's own klines as rows of `KLINE`: which are taken, and in which decimals.

A row is taken if its numbers are exact, its prices in order, and it stands on the calendar's grid: the exchange's
archives hold klines that opened off-grid after an outage (protocol §4.6), and those have no place in a book whose
places are arithmetic. Knows nothing of JSON, requests or time.
"""

from typing import NamedTuple

import numpy as np

from services.ingest.exact import DECIMALS_MAX, POWERS, Integers, Rows
from shared.calendar import anchor_of, bucket_of, bucket_start
from shared.compiled import compiled
from shared.decimals import INT64_MAX
from shared.interval import INTERVAL_INDEX, INTERVALS, MINUTE_MS
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, QUOTE_BASE, QUOTE_HIGH_MAX, QUOTE_MAX
from shared.merging import scaled_quote

HEADROOM = 16
"""How many times the largest volumes of a symbol's history must still fit a kline for its decimals to grow."""

NUMBERS = ("open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
"""The order of a row's eight decimal numbers in `Columns`."""
_PRICES, _VOLUMES, _QUOTES = slice(0, 4), (4, 6), (5, 7)
_VOLUME, _QUOTE = 4, 5
_PRICE_COUNT = 4


class Columns(NamedTuple):
    """Kline rows as they were answered, taken apart."""

    open_times: Integers
    close_times: Integers
    trade_counts: Integers
    mantissas: Integers
    """int64[n, 8], in the order of `NUMBERS`."""
    decimals: Integers
    """The same; -1 where the number cannot be taken."""
    highs: Integers
    """The same: how many times `QUOTE_BASE` is to be added to the mantissa, of quote volumes."""


class Parsed(NamedTuple):
    """Rows of one interval, ascending, each number as (mantissa, decimals)."""

    interval: str
    open_times: Integers
    close_times: Integers
    trade_counts: Integers
    mantissas: Integers
    decimals: Integers
    highs: Integers

    def closed_before(self, time_ms: int) -> "Parsed":
        """Keep the rows whose last millisecond lies before `time_ms`."""
        end = int(np.searchsorted(self.close_times, time_ms))
        return Parsed(self.interval, *(column[:end] for column in self[1:]))

    def newest(self, count: int) -> "Parsed":
        return Parsed(self.interval, *(column[-count:] for column in self[1:]))


def parse(interval: str, columns: Columns) -> tuple[Parsed, int]:
    """Return (rows, how many were refused). The columns are its own from here on."""
    # The grid of 3d differs by symbol; what can be said is that all rows share one.
    anchor = anchor_of(interval, int(columns.open_times[-1]) if len(columns.open_times) else 0)
    kept = _keep(INTERVALS[INTERVAL_INDEX[interval]].length_ms, anchor, *columns)
    return Parsed(interval, *(column[:kept] for column in columns)), len(columns.open_times) - kept


def decimals_for(parts: list[Parsed], price_decimals: int, quantity_decimals: int) -> tuple[int, int]:
    """Return the decimals that hold all of a symbol's history, or those given where growing would cost too much.

    Old klines can be finer than today's grid. They must not take the room that the symbol's future needs.
    """
    decimals = np.concatenate([part.decimals for part in parts]) if parts else np.empty((0, len(NUMBERS)), np.int64)
    if not len(decimals):
        return price_decimals, quantity_decimals
    mantissas = np.concatenate([part.mantissas for part in parts])
    prices = max(price_decimals, int(decimals[:, _PRICES].max()))
    quantities = max(
        quantity_decimals, int(decimals[:, [*_VOLUMES]].max()), int(decimals[:, [*_QUOTES]].max()) - prices
    )
    whole = mantissas + np.concatenate([part.highs for part in parts]) * float(QUOTE_BASE)
    volume, quote = (whole / 10.0**decimals)[:, _VOLUME : _QUOTE + 1].max(axis=0)
    if (
        max(prices, quantities) > DECIMALS_MAX
        or volume * HEADROOM * 10.0**quantities > INT64_MAX
        or quote * HEADROOM * 10.0 ** (prices + quantities) > QUOTE_MAX
    ):
        return price_decimals, quantity_decimals
    return prices, quantities


def kline_rows(parsed: Parsed, price_decimals: int, quantity_decimals: int) -> tuple[Rows, int]:
    """Return (KLINE[n], how many rows do not fit these decimals and were left out)."""
    rows = np.zeros(len(parsed.open_times), KLINE)
    count = _fill(
        parsed.open_times,
        parsed.trade_counts,
        parsed.mantissas,
        parsed.decimals,
        parsed.highs,
        price_decimals,
        quantity_decimals,
        rows,
    )
    return rows[:count], len(rows) - count


def warm_up() -> None:
    """Compile, or load what was compiled: trades must not wait for the first klines."""
    ones = np.ones((1, len(NUMBERS)), np.int64)
    columns = Columns(np.zeros(1, np.int64), np.full(1, MINUTE_MS - 1), np.ones(1, np.int64), ones, ones - 1, ones - 1)
    kline_rows(parse("1m", columns)[0], 0, 0)


@compiled
def _keep(length, anchor, open_times, close_times, trade_counts, mantissas, decimals, highs):  # type: ignore[no-untyped-def]
    """Move the rows that are taken to the front, in place, and return how many they are."""
    count = 0
    newest = np.int64(-1)
    for place in range(len(open_times)):
        opened = open_times[place]
        bucket = bucket_of(length, anchor, opened)
        taken = (
            opened > newest
            and bucket_start(length, anchor, bucket) == opened
            and bucket_start(length, anchor, bucket + 1) == close_times[place] + 1
        )
        newest = max(newest, opened)
        for number in range(len(NUMBERS)):
            taken &= decimals[place, number] >= 0 and (number >= _PRICE_COUNT or mantissas[place, number] > 0)
            taken &= highs[place, number] == 0 or number in _QUOTES
        if taken:
            open_times[count] = opened
            close_times[count] = close_times[place]
            trade_counts[count] = trade_counts[place]
            for number in range(len(NUMBERS)):
                mantissas[count, number] = mantissas[place, number]
                decimals[count, number] = decimals[place, number]
                highs[count, number] = highs[place, number]
            count += 1
    return count


@compiled
def _fill(  # type: ignore[no-untyped-def]
    open_times, trade_counts, mantissas, decimals, highs, price_decimals, quantity_decimals, rows
):
    """Write the rows that fit, and return how many they are."""
    count = 0
    quote_decimals = price_decimals + quantity_decimals
    for place in range(len(open_times)):
        row = rows[count]
        row.open_time = open_times[place]
        row.open = _scaled(mantissas[place, 0], decimals[place, 0], price_decimals)
        row.high = _scaled(mantissas[place, 1], decimals[place, 1], price_decimals)
        row.low = _scaled(mantissas[place, 2], decimals[place, 2], price_decimals)
        row.close = _scaled(mantissas[place, 3], decimals[place, 3], price_decimals)
        row.volume = _scaled(mantissas[place, 4], decimals[place, 4], quantity_decimals)
        row.quote_volume, row.quote_volume_high = _scaled_quote(
            highs[place, 5], mantissas[place, 5], decimals[place, 5], quote_decimals
        )
        row.taker_buy_volume = _scaled(mantissas[place, 6], decimals[place, 6], quantity_decimals)
        row.taker_buy_quote_volume, row.taker_buy_quote_volume_high = _scaled_quote(
            highs[place, 7], mantissas[place, 7], decimals[place, 7], quote_decimals
        )
        row.trade_count = trade_counts[place]
        row.flags = EXCHANGE | FINAL | CLOSED
        prices = 0 <= row.low <= min(row.open, row.close) and max(row.open, row.close) <= row.high
        volumes = min(row.volume, row.quote_volume, row.taker_buy_volume, row.taker_buy_quote_volume)
        if prices and volumes >= 0:
            count += 1
    return count


@compiled
def _scaled(mantissa, decimals, target):  # type: ignore[no-untyped-def]
    """Return a number in units of the decimals of `target`, or -1 if it does not fit."""
    shift = target - decimals
    if shift < 0 or shift >= len(POWERS) or mantissa > INT64_MAX // POWERS[shift]:
        return -1
    return mantissa * POWERS[shift]


@compiled
def _scaled_quote(high, mantissa, decimals, target):  # type: ignore[no-untyped-def]
    """Return the fields of a quote volume in units of the decimals of `target`, or (-1, 0) if it does not fit."""
    shift = target - decimals
    quote, quote_high = mantissa % QUOTE_BASE, high + mantissa // QUOTE_BASE
    while shift > 0 and quote_high <= QUOTE_HIGH_MAX:
        step = min(shift, len(POWERS) - 1)
        quote, quote_high = scaled_quote(quote, quote_high, POWERS[step])
        shift -= step
    return (quote, quote_high) if shift == 0 and quote_high <= QUOTE_HIGH_MAX else (-1, 0)
