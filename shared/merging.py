"""How klines merge: the algebra that everything in klagg stands on.

Decides nothing about symbols, intervals or time; the only rule here is `merge`.
"""

from shared.compiled import compiled
from shared.kline import EXCHANGE


@compiled
def merge(into, kline):  # type: ignore[no-untyped-def]
    """Merge a kline into another: both are records of `KLINE` with the same decimals, of disjoint trades.

    Associative and commutative for klines made of ids. Figures from the exchange's own klines have `open_id` and
    `close_id` 0, which puts them before every id, and among themselves in the order of merging: merge those ascending.
    A kline without trades is the identity: its prices are carried over and mean nothing.
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
        into.volume += kline.volume
        into.quote_volume += kline.quote_volume
        into.trade_count += kline.trade_count
        into.taker_buy_volume += kline.taker_buy_volume
        into.taker_buy_quote_volume += kline.taker_buy_quote_volume
    into.flags |= kline.flags & EXCHANGE


@compiled
def kline_of(trade, into):  # type: ignore[no-untyped-def]
    """Write the kline of one trade into a record of `KLINE`. `open_time` is left to the caller."""
    into.open = trade.price
    into.high = trade.price
    into.low = trade.price
    into.close = trade.price
    into.trade_count = trade.trade_count
    if trade.trade_count > 0:
        into.volume = trade.quantity
        into.quote_volume = trade.price * trade.quantity
    else:
        into.volume = 0
        into.quote_volume = 0
    if trade.buyer_is_maker != 0:
        into.taker_buy_volume = 0
        into.taker_buy_quote_volume = 0
    else:
        into.taker_buy_volume = into.volume
        into.taker_buy_quote_volume = into.quote_volume
    into.first_id = trade.id
    into.last_id = trade.id
    into.id_count = 1
    into.open_id = trade.id
    into.close_id = trade.id
    into.flags = 0
    into.revision = 0
