"""The hot path: a batch of trades into the book, each id once.

Decides which trades count: those whose numbers are possible, whose id is new, and which are not already in the rows by
way of the exchange's own klines. Compiled; one call a batch.
"""

from services.engine.book import add_to_rows, rescale
from services.engine.continuity import DUPLICATE, NO_ROOM, take_id
from shared.compiled import compiled
from shared.kline import kline_of

PRODUCT_MAX = 9.0e18
"""A quote volume must fit an int64."""


@compiled
def apply_trades(book, trades, begin, symbols, price_factors, quantity_factors, time_max):  # type: ignore[no-untyped-def]
    """Apply TRADE[n] from `begin` on, in order; return the place of the first trade whose minute is not open yet, or n.

    symbols: int64[instruments], the book's index of each, -1 if it has none; factors: int64[instruments], from the
    batch's units to the book's; time_max: a trade after it cannot be, ms.

    A trade that is refused leaves its id missing, so it is asked for again.
    """
    counters = book.counters[0]
    minute = book.calendars[0, 0]
    minute_end = minute.end_time
    window_ms = minute.length * book.rows.shape[2]
    kline = book.scratch[0]
    for n in range(begin, len(trades)):
        trade = trades[n]
        instrument = trade.symbol
        if instrument < 0 or instrument >= len(symbols):
            counters.refused += 1
            continue
        symbol = symbols[instrument]
        if symbol < 0:
            counters.unknown_symbol += 1
            continue
        if not _possible(trade, price_factors[instrument], quantity_factors[instrument], time_max):
            counters.refused += 1
            continue
        state = book.symbols[symbol]
        counts = trade.time >= state.seam_time
        if counts and trade.time >= minute_end:
            return n
        if counts and minute_end - trade.time > window_ms:
            counters.beyond_window += 1
            continue
        outcome = take_id(state, book.gaps[symbol], trade.id)
        if outcome == DUPLICATE:
            counters.duplicates += 1
            continue
        if outcome == NO_ROOM:
            counters.no_room_for_gap += 1
            continue
        state.mark_changed = 1
        if not counts:
            counters.before_seam += 1
            continue
        kline_of(trade, kline)
        if price_factors[instrument] != 1 or quantity_factors[instrument] != 1:
            rescale(book.scratch, price_factors[instrument], quantity_factors[instrument])
        add_to_rows(book, symbol, trade.time, kline)
        counters.applied += 1
    return len(trades)


@compiled
def _possible(trade, price_factor, quantity_factor, time_max):  # type: ignore[no-untyped-def]
    if trade.id < 0 or trade.time <= 0 or trade.time > time_max or trade.trade_count < 0:
        return False
    if trade.trade_count == 0:
        return True
    if trade.price <= 0 or trade.quantity < 0:
        return False
    return float(trade.price) * price_factor * trade.quantity * quantity_factor < PRODUCT_MAX
