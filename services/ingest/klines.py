"""The exchange's own klines as rows of `KLINE`: which are taken, and in which decimals.

A row is taken if its numbers are exact, its prices in order, and its open time one of the calendar's: the exchange's
archives hold klines that opened off-grid after an outage (protocol §4.6), for which the engine has no slot. Knows
nothing of JSON, requests or time.
"""

from typing import NamedTuple

import numpy as np

from services.ingest.decimals import DECIMALS_MAX, POWERS
from shared.arrays import Integers, Rows
from shared.calendar import anchor_of, bucket_of, bucket_start
from shared.compiled import compiled
from shared.decimals import INT64_MAX
from shared.interval import INTERVAL_INDEX, INTERVALS, MINUTE_MS
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, QUOTE_BASE, QUOTE_HIGH_MAX, QUOTE_MAX
from shared.merging import scaled_quote

HEADROOM = 16
"""How many times the largest volumes of a symbol's history must still fit a kline for its decimals to grow."""

DECIMAL_FIELDS = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
"""A row's eight decimal numbers, in the order of `KlineColumns.mantissas`."""
_PRICES, _VOLUMES, _QUOTES = slice(0, 4), (4, 6), (5, 7)
_VOLUME, _QUOTE = 4, 5
_PRICE_COUNT = 4


class KlineColumns(NamedTuple):
    """Rows of an answer to /klines, in columns."""

    open_times: Integers
    close_times: Integers
    trade_counts: Integers
    mantissas: Integers
    """int64[n, 8], in the order of `DECIMAL_FIELDS`."""
    decimals: Integers
    """The same; -1 where the number cannot be taken."""
    highs: Integers
    """The same: how many times `QUOTE_BASE` is to be added to the mantissa, of quote volumes."""


class ParsedKlines(NamedTuple):
    """Rows of one interval, ascending, each number as (mantissa, decimals)."""

    interval: str
    open_times: Integers
    close_times: Integers
    trade_counts: Integers
    mantissas: Integers
    decimals: Integers
    highs: Integers

    def closed_before(self, time_ms: int) -> "ParsedKlines":
        """Keep the rows whose last millisecond lies before `time_ms`."""
        end = int(np.searchsorted(self.close_times, time_ms))
        return ParsedKlines(self.interval, *(column[:end] for column in self[1:]))

    def newest(self, count: int) -> "ParsedKlines":
        return ParsedKlines(self.interval, *(column[-count:] for column in self[1:]))


def parse(interval: str, columns: KlineColumns) -> tuple[ParsedKlines, int]:
    """Return (rows, how many were refused). The rows are views of the columns, which are overwritten."""
    # The grid of 3d differs by symbol; it can only be checked that all rows are on the same one.
    anchor = anchor_of(interval, int(columns.open_times[-1]) if len(columns.open_times) else 0)
    kept = _keep(INTERVALS[INTERVAL_INDEX[interval]].length_ms, anchor, *columns)
    return ParsedKlines(interval, *(column[:kept] for column in columns)), len(columns.open_times) - kept


def decimals_for(parts: list[ParsedKlines], price_decimals: int, quantity_decimals: int) -> tuple[int, int]:
    """Return the decimals that hold all of a symbol's history, or those given if more would leave too little headroom.

    Old klines can have more decimals than today's, and more decimals leave less of an int64 to future volumes.
    """
    if not any(len(part.decimals) for part in parts):
        return price_decimals, quantity_decimals
    decimals = np.concatenate([part.decimals for part in parts])
    mantissas = np.concatenate([part.mantissas for part in parts])
    price = max(price_decimals, int(decimals[:, _PRICES].max()))
    quantity = max(quantity_decimals, int(decimals[:, [*_VOLUMES]].max()), int(decimals[:, [*_QUOTES]].max()) - price)
    whole = mantissas + np.concatenate([part.highs for part in parts]) * float(QUOTE_BASE)
    volume, quote = (whole / 10.0**decimals)[:, _VOLUME : _QUOTE + 1].max(axis=0)
    if (
        max(price, quantity) > DECIMALS_MAX
        or volume * HEADROOM * 10.0**quantity > INT64_MAX
        or quote * HEADROOM * 10.0 ** (price + quantity) > QUOTE_MAX
    ):
        return price_decimals, quantity_decimals
    return price, quantity


def kline_rows(parsed: ParsedKlines, price_decimals: int, quantity_decimals: int) -> tuple[Rows, int]:
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
    ones = np.ones((1, len(DECIMAL_FIELDS)), np.int64)
    times = np.zeros(1, np.int64), np.full(1, MINUTE_MS - 1)
    columns = KlineColumns(*times, np.ones(1, np.int64), ones, ones - 1, ones - 1)
    kline_rows(parse("1m", columns)[0], 0, 0)


@compiled
def _keep(
    length: int,
    anchor: int,
    open_times: Integers,
    close_times: Integers,
    trade_counts: Integers,
    mantissas: Integers,
    decimals: Integers,
    highs: Integers,
) -> int:
    """Move the rows that are taken to the front, in place, and return how many there are."""
    count = 0
    newest = np.int64(-1)
    for n in range(len(open_times)):
        opened = open_times[n]
        bucket = bucket_of(length, anchor, opened)
        taken = (
            opened > newest
            and bucket_start(length, anchor, bucket) == opened
            and bucket_start(length, anchor, bucket + 1) == close_times[n] + 1
        )
        newest = max(newest, opened)
        for field in range(len(DECIMAL_FIELDS)):
            taken &= decimals[n, field] >= 0 and (field >= _PRICE_COUNT or mantissas[n, field] > 0)
            taken &= highs[n, field] == 0 or field in _QUOTES
        if taken:
            open_times[count] = opened
            close_times[count] = close_times[n]
            trade_counts[count] = trade_counts[n]
            for field in range(len(DECIMAL_FIELDS)):
                mantissas[count, field] = mantissas[n, field]
                decimals[count, field] = decimals[n, field]
                highs[count, field] = highs[n, field]
            count += 1
    return count


@compiled
def _fill(
    open_times: Integers,
    trade_counts: Integers,
    mantissas: Integers,
    decimals: Integers,
    highs: Integers,
    price_decimals: int,
    quantity_decimals: int,
    rows: Rows,
) -> int:
    """Write the rows that fit, and return how many there are."""
    count = 0
    quote_decimals = price_decimals + quantity_decimals
    for n in range(len(open_times)):
        row = rows[count]
        row.open_time = open_times[n]
        row.open = _scaled(mantissas[n, 0], decimals[n, 0], price_decimals)
        row.high = _scaled(mantissas[n, 1], decimals[n, 1], price_decimals)
        row.low = _scaled(mantissas[n, 2], decimals[n, 2], price_decimals)
        row.close = _scaled(mantissas[n, 3], decimals[n, 3], price_decimals)
        row.volume = _scaled(mantissas[n, 4], decimals[n, 4], quantity_decimals)
        row.quote_volume, row.quote_volume_high = _scaled_quote(
            highs[n, 5], mantissas[n, 5], decimals[n, 5], quote_decimals
        )
        row.taker_buy_volume = _scaled(mantissas[n, 6], decimals[n, 6], quantity_decimals)
        row.taker_buy_quote_volume, row.taker_buy_quote_volume_high = _scaled_quote(
            highs[n, 7], mantissas[n, 7], decimals[n, 7], quote_decimals
        )
        row.trade_count = trade_counts[n]
        row.flags = EXCHANGE | FINAL | CLOSED
        in_order = 0 <= row.low <= min(row.open, row.close) and max(row.open, row.close) <= row.high
        least_volume = min(row.volume, row.quote_volume, row.taker_buy_volume, row.taker_buy_quote_volume)
        if in_order and least_volume >= 0:
            count += 1
    return count


@compiled
def _scaled(mantissa: int, decimals: int, target: int) -> int:
    """Return a number in units of 10**-target, or -1 if it does not fit."""
    shift = target - decimals
    if shift < 0 or shift >= len(POWERS) or mantissa > INT64_MAX // POWERS[shift]:
        return -1
    scaled: int = mantissa * POWERS[shift]
    return scaled


@compiled
def _scaled_quote(high: int, mantissa: int, decimals: int, target: int) -> tuple[int, int]:
    """Return both fields of a quote volume in units of 10**-target, or (-1, 0) if it does not fit."""
    shift = target - decimals
    quote, quote_high = mantissa % QUOTE_BASE, high + mantissa // QUOTE_BASE
    while shift > 0 and quote_high <= QUOTE_HIGH_MAX:
        step = min(shift, len(POWERS) - 1)
        quote, quote_high = scaled_quote(quote, quote_high, POWERS[step])
        shift -= step
    return (quote, quote_high) if shift == 0 and quote_high <= QUOTE_HIGH_MAX else (-1, 0)
