"""The hot path: a batch of trades into the book, each id once.

Decides which trades count: those whose numbers are possible, whose id is new, and which are not already in the rows by
way of the exchange's own klines. Compiled; one call a batch, and no work but for what is in it.

What a symbol trades in the newest minute gathers in one kline, which the book settles into the rows of all intervals
when somebody looks. Trades of older minutes, which are few, go into the rows directly.
"""

from services.engine.book import add_to_rows, blank, mark_final, measure_room, rescale, settle, touch_between
from services.engine.continuity import DUPLICATE, NEW_GAP, NO_ROOM, cover, take_id
from services.engine.dirty import note
from shared.compiled import compiled
from shared.merging import kline_of, merge


@compiled
def apply_trades(book, trades, begin, symbols, price_factors, quantity_factors, time_max):  # type: ignore[no-untyped-def]
    """Apply TRADE[n] from `begin` on, in order; return the place of the first trade whose minute is not open yet, or n.

    symbols: int64[instruments], the book's index of each, -1 if it has none; factors: int64[instruments], from the
    batch's units to the book's; time_max: a trade after it cannot be, ms.

    A trade that is refused leaves its id missing, so it is asked for again.
    """
    counters = book.counters[0]
    minute = book.calendars[0, 0]
    minute_begin, minute_end = minute.open_time, minute.end_time
    window_ms = minute.length * book.rows.shape[2]
    kline = book.scratch[0]
    applied = 0
    done = len(trades)
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
        state = book.symbols[symbol]
        price_factor, quantity_factor = price_factors[instrument], quantity_factors[instrument]
        product = float(trade.price) * price_factor * trade.quantity * quantity_factor
        if not _possible(trade, time_max) or (product > state.room and product > measure_room(book, symbol)):
            counters.refused += 1
            continue
        counts = trade.time >= state.seam_time
        if counts and trade.time >= minute_end:
            done = n
            break
        if counts and minute_end - trade.time > window_ms:
            counters.beyond_window += 1
            continue
        if trade.trade_count == 0 and book.gathered[symbol].id_count == 0 and not _has_rows(book, symbol):
            counters.void_before_first += 1
            continue
        outcome = take_id(state, book.gaps[symbol], trade.id, trade.time)
        if outcome == DUPLICATE:
            counters.duplicates += 1
            continue
        if outcome == NO_ROOM:
            counters.no_room_for_gap += 1
            continue
        state.mark_changed = 1
        if outcome == NEW_GAP:
            gap = book.gaps[symbol, state.gap_count - 1]
            touch_between(book, symbol, gap.from_time, gap.to_time)
            note(book.gapped, symbol)
        if not counts:
            counters.before_seam += 1
            continue
        kline_of(trade, kline)
        if price_factor != 1 or quantity_factor != 1:
            rescale(book.scratch, price_factor, quantity_factor)
        state.room -= kline.quote_volume
        if trade.time >= minute_begin:
            merge(book.gathered[symbol], kline)
            note(book.unsettled, symbol)
        else:
            add_to_rows(book, symbol, trade.time, kline)
        applied += 1
        if state.newest_time >= state.final_at:
            mark_final(book, symbol)
    counters.applied += applied
    return done


@compiled
def apply_covered(book, symbol, first_id, last_id):  # type: ignore[no-untyped-def]
    """Note a range of ids as answered for. Those of it that are still missing are void, and count as such.

    They belong to the row of the trade before them: nobody knows their time, and the chain of ids stays whole. Where
    the id before them is missing too, they stay missing with it, and are asked for again. Ids before a symbol's first
    are none of its rows'.
    """
    settle(book, False)
    state = book.symbols[symbol]
    for place in range(state.gap_count):
        gap = book.gaps[symbol, place]
        if gap.first_id > 0 and first_id <= gap.first_id <= last_id:
            _add_void(book, symbol, gap.first_id, min(last_id, gap.last_id), gap.from_time)
    if state.last_id >= 0 and first_id <= state.last_id + 1 <= last_id:
        _add_void(book, symbol, state.last_id + 1, last_id, state.newest_time)
    cover(state, book.gaps[symbol], first_id, last_id)
    mark_final(book, symbol)
    state.mark_changed = 1


@compiled
def _add_void(book, symbol, first_id, last_id, time):  # type: ignore[no-untyped-def]
    if time < book.symbols[symbol].seam_time or not _has_rows(book, symbol):
        return
    minute = book.calendars[0, 0]
    # Of a row that has left memory, the oldest that is there is as good: nothing was traded in between.
    time = max(time, minute.end_time - minute.length * book.rows.shape[2])
    kline = book.scratch[0]
    blank(kline, 0, 0, 0)
    kline.first_id = first_id
    kline.last_id = last_id
    kline.id_count = last_id - first_id + 1
    add_to_rows(book, symbol, time, kline)


@compiled
def _has_rows(book, symbol):  # type: ignore[no-untyped-def]
    newest = book.calendars[0, 0]
    return book.rows[symbol, 0, newest.place].open_time == newest.open_time


@compiled
def _possible(trade, time_max):  # type: ignore[no-untyped-def]
    if trade.id < 0 or trade.time <= 0 or trade.time > time_max or trade.trade_count < 0:
        return False
    return trade.trade_count == 0 or (trade.price > 0 and trade.quantity >= 0)
