"""How klines merge: the algebra that everything in klagg stands on.

Decides nothing about symbols, intervals or time; the only rule here is `merge`.
"""

import numpy as np

from shared.arrays import Int, Record, Rows
from shared.compiled import compiled
from shared.decimals import INT64_MAX
from shared.kline import EXCHANGE, FINAL, QUOTE_BASE, QUOTE_HIGH_MAX, SATURATED


@compiled
def merge(into: Record, kline: Record) -> None:
    """Merge a kline into another: both are records of `KLINE` with the same decimals, of disjoint trades.

    Associative and commutative for klines made of ids. Figures from the exchange's own klines have `open_id` and
    `close_id` 0, which puts them before every id, and among themselves in the order of merging: merge those ascending.
    A kline without trades is the identity: its prices are carried over and mean nothing. A volume that does not fit is
    the most that does, however it came about, and the kline saturated.
    """
    if kline.id_count > 0:
        if into.id_count == 0:
            into.first_id = kline.first_id
            into.last_id = kline.last_id
        else:
            into.first_id = min(into.first_id, kline.first_id)
            into.last_id = max(into.last_id, kline.last_id)
        into.id_count += kline.id_count
    if kline.trade_count > 0:
        if into.trade_count == 0:
            into.open = kline.open
            into.high = kline.high
            into.low = kline.low
            into.close = kline.close
            into.open_id = kline.open_id
            into.close_id = kline.close_id
        else:
            if kline.open_id < into.open_id:
                into.open = kline.open
                into.open_id = kline.open_id
            if kline.close_id >= into.close_id:
                into.close = kline.close
                into.close_id = kline.close_id
            into.high = max(into.high, kline.high)
            into.low = min(into.low, kline.low)
        into.trade_count += kline.trade_count
        # What is too much for 64 bits wraps around to less than 0. Nearly always nothing is, nor has a high field.
        volume = into.volume + kline.volume
        taker = into.taker_buy_volume + kline.taker_buy_volume
        quote = into.quote_volume + kline.quote_volume
        taker_quote = into.taker_buy_quote_volume + kline.taker_buy_quote_volume
        highs = kline.quote_volume_high | kline.taker_buy_quote_volume_high
        if volume | taker | (QUOTE_BASE - 1 - quote) | (QUOTE_BASE - 1 - taker_quote) | -highs >= 0:
            into.volume = volume
            into.quote_volume = quote
            into.taker_buy_volume = taker
            into.taker_buy_quote_volume = taker_quote
        else:
            quote_high = np.int64(into.quote_volume_high) + kline.quote_volume_high + quote // QUOTE_BASE
            taker_high = np.int64(into.taker_buy_quote_volume_high) + kline.taker_buy_quote_volume_high
            taker_high += taker_quote // QUOTE_BASE
            _put_sums(into, volume, quote % QUOTE_BASE, quote_high, taker, taker_quote % QUOTE_BASE, taker_high)
    into.flags |= kline.flags & (EXCHANGE | SATURATED)


@compiled
def _put_sums(
    into: Record, volume: int, quote: int, quote_high: Int, taker: int, taker_quote: int, taker_high: Int
) -> None:
    """Write volumes into a record of `KLINE`; those below 0, and high fields above the most, are too much for it."""
    if volume | taker | (QUOTE_HIGH_MAX - quote_high) | (QUOTE_HIGH_MAX - taker_high) < 0:
        into.flags |= SATURATED
        if volume < 0:
            volume = INT64_MAX
        if taker < 0:
            taker = INT64_MAX
        if quote_high > QUOTE_HIGH_MAX:
            quote = QUOTE_BASE - 1
            quote_high = QUOTE_HIGH_MAX
        if taker_high > QUOTE_HIGH_MAX:
            taker_quote = QUOTE_BASE - 1
            taker_high = QUOTE_HIGH_MAX
    into.volume = volume
    into.quote_volume = quote
    into.quote_volume_high = quote_high
    into.taker_buy_volume = taker
    into.taker_buy_quote_volume = taker_quote
    into.taker_buy_quote_volume_high = taker_high


@compiled
def kline_of(trade: Record, into: Record) -> None:
    """Write the kline of one trade into a record of `KLINE`. `open_time` is left to the caller.

    Price times quantity fits an int64.
    """
    into.open = trade.price
    into.high = trade.price
    into.low = trade.price
    into.close = trade.price
    into.trade_count = trade.trade_count
    into.quote_volume_high = 0
    if trade.trade_count > 0:
        into.volume = trade.quantity
        into.quote_volume = trade.price * trade.quantity
        if into.quote_volume >= QUOTE_BASE:
            into.quote_volume_high = into.quote_volume // QUOTE_BASE
            into.quote_volume %= QUOTE_BASE
    else:
        into.volume = 0
        into.quote_volume = 0
    if trade.buyer_is_maker != 0:
        into.taker_buy_volume = 0
        into.taker_buy_quote_volume = 0
        into.taker_buy_quote_volume_high = 0
    else:
        into.taker_buy_volume = into.volume
        into.taker_buy_quote_volume = into.quote_volume
        into.taker_buy_quote_volume_high = into.quote_volume_high
    into.first_id = trade.id
    into.last_id = trade.id
    into.id_count = 1
    into.open_id = trade.id
    into.close_id = trade.id
    into.flags = 0
    into.revision = 0


@compiled
def scaled_quote(quote: int, high: Int, factor: int) -> tuple[int, Int]:
    """Return both fields of a quote volume times a power of ten, 10**18 at the most.

    A high field above `QUOTE_HIGH_MAX` says that it does not fit.
    """
    if high > QUOTE_HIGH_MAX // factor:
        return quote, np.int64(QUOTE_HIGH_MAX + 1)
    above = QUOTE_BASE // factor
    carried = quote // above
    return (quote - carried * above) * factor, high * factor + carried


@compiled
def rescale(klines: Rows, price_factor: int, quantity_factor: int) -> None:
    """Multiply the numbers of KLINE[n] to finer decimals, by powers of ten, 10**18 at the most. All prices must fit.

    A kline whose volumes do not fit is saturated.
    """
    for n in range(len(klines)):
        row = klines[n]
        row.open *= price_factor
        row.high *= price_factor
        row.low *= price_factor
        row.close *= price_factor
        volume = row.volume * quantity_factor if row.volume <= INT64_MAX // quantity_factor else -1
        taker = row.taker_buy_volume * quantity_factor if row.taker_buy_volume <= INT64_MAX // quantity_factor else -1
        quote, high = row.quote_volume, np.int64(row.quote_volume_high)
        taker_quote, taker_high = row.taker_buy_quote_volume, np.int64(row.taker_buy_quote_volume_high)
        for factor in (price_factor, quantity_factor):
            quote, high = scaled_quote(quote, high, factor)
            taker_quote, taker_high = scaled_quote(taker_quote, taker_high, factor)
        _put_sums(row, volume, quote, high, taker, taker_quote, taker_high)
        if row.flags & SATURATED:
            row.flags &= ~FINAL
