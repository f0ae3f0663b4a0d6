"""The hot path: a batch of trades into the book, each id once.

Decides which trades count: those whose numbers are possible, whose id is new, and which are not already in the rows by
way of the exchange's own klines. Compiled; one call a batch, and no work but for what is in it.

What a symbol trades in the newest minute gathers in one kline, which the book settles into the rows of all intervals
when somebody looks. Trades of older minutes, which are few, go into the rows directly.
"""

from services.engine.book import Book, add_to_rows, settle
from services.engine.dirty import add
from services.engine.gaps import (
    DUPLICATE,
    FOUND,
    FULL,
    NEW_GAP,
    is_after,
    leave_out,
    set_aside,
    skip_to,
    take_id,
)
from services.engine.proof import flag_unexplained, mark_final, touch_between
from shared.arrays import Integers, Record, Rows
from shared.bounds import ID_MAX
from shared.compiled import compiled
from shared.merging import kline_of, merge, rescale

NUMBER_MAX = 9_000_000_000_000_000_000
"""A trade's price, its quantity, and their product in the units that they came in must fit an int64."""

TRADES_MAX = 2**32
"""Of one row: a month of such rows fits an int64."""


@compiled
def apply_trades(
    book: Book,
    trades: Rows,
    begin: int,
    symbols: Integers,
    price_factors: Integers,
    quantity_factors: Integers,
    time_max: int,
    recorded: int,
) -> int:
    """Apply TRADE[n] from `begin` on, in order; return the place of the first trade whose minute is not open yet, or n.

    symbols: int64[instruments], the book's index of each, -1 if it has none; factors: int64[instruments], from the
    batch's units to the book's; time_max: a trade after it cannot be, ms; recorded: 1 in a replay, where what is set
    aside must not depend on how far the clock happens to be.

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
        if state.contradicted:
            counters.contradictions += 1
            continue
        price_factor, quantity_factor = price_factors[instrument], quantity_factors[instrument]
        if not _possible(trade, price_factor, quantity_factor, time_max):
            counters.refused += 1
            continue
        after_seam = trade.time >= state.seam_time
        if after_seam and trade.time >= minute_end:
            done = n
            break
        if after_seam and minute_end - trade.time > window_ms:
            counters.beyond_window += 1
            # What has been missing for so long is filled otherwise; what comes so old among newer ones is in no kline.
            if is_after(state, book.gaps[symbol], trade.id, state.seam_time if recorded else minute_end - window_ms):
                _set_aside(book, symbol, trade, minute_end, recorded)
            continue
        if not after_seam:
            # Older than all that counts, it says. Where its neighbours are not known yet, an answer tells (`older_to`).
            if is_after(state, book.gaps[symbol], trade.id, state.seam_time):
                _set_aside(book, symbol, trade, minute_end, recorded)
            else:
                counters.before_seam += 1
            continue
        if trade.trade_count == 0 and book.gathered[symbol].id_count == 0 and not _has_rows(book, symbol):
            counters.void_before_first += 1
            continue
        if trade.id == 0 and state.last_id < 0 and _traded_before_seam(book, symbol):
            _contradict(book, symbol, minute_end)
            continue
        outcome = take_id(state, book.gaps[symbol], trade.id, trade.time)
        if outcome == DUPLICATE:
            counters.duplicates += 1
            if trade.time > state.seen_time:
                # Nothing that came before was so new: this is another trade, under an id that was used.
                _contradict(book, symbol, minute_end)
            continue
        if outcome == FULL:
            counters.gap_list_full += 1
            continue
        state.mark_changed = 1
        if outcome == NEW_GAP:
            gap = book.gaps[symbol, state.gap_count - 1]
            touch_between(book, symbol, gap.from_time, gap.to_time)
            add(book.gapped, symbol)
        kline_of(trade, kline)
        if price_factor != 1 or quantity_factor != 1:
            rescale(book.scratch, price_factor, quantity_factor)
        if trade.time >= minute_begin:
            merge(book.gathered[symbol], kline)
            add(book.unsettled, symbol)
        else:
            add_to_rows(book, symbol, trade.time, kline)
        applied += 1
        if outcome == FOUND:
            settle(book, False)
            flag_unexplained(book, symbol, 0, minute_end, False)
        if state.newest_time >= state.final_at:
            mark_final(book, symbol)
    counters.applied += applied
    return done


@compiled
def apply_answer(
    book: Book, symbol: int, first_id: int, last_id: int, older_to: int, left_out_max: int, at_ms: int
) -> bool:
    """Note what an answer about a range of ids, both ends inclusive, does not name, once its trades were applied.

    older_to: ids up to here are older than the symbol's seam, -1 if none is; at_ms: monotonic ms. Return whether ids
    have become unexplained: so many answers have left them out.
    """
    state, gaps = book.symbols[symbol], book.gaps[symbol]
    if older_to >= 0:
        from_time, to_time = state.newest_time, -1
        for index in range(state.gap_count):
            if gaps[index].unexplained and gaps[index].last_id <= older_to:
                from_time, to_time = min(from_time, gaps[index].from_time), max(to_time, gaps[index].to_time)
        skip_to(state, gaps, older_to)
        if to_time >= 0:
            settle(book, False)
            flag_unexplained(book, symbol, from_time, to_time, False)
        first_id = max(first_id, older_to + 1)
    leave_out(state, gaps, first_id, last_id, at_ms)
    state.mark_changed = 1
    found = False
    for index in range(state.gap_count):
        gap = gaps[index]
        if gap.left_out >= left_out_max and not gap.unexplained:
            gap.unexplained = 1
            found = True
            settle(book, False)
            flag_unexplained(book, symbol, gap.from_time, gap.to_time, False)
    if found or older_to >= 0:
        mark_final(book, symbol)
    return found


@compiled
def _set_aside(book: Book, symbol: int, trade: Record, minute_end: int, recorded: int) -> None:
    """Note a trade that says a time for which there is no row to take it, and follows on newer trades."""
    state = book.symbols[symbol]
    to_time = max(state.seen_time, trade.time) if recorded else minute_end - 1
    if set_aside(state, book.gaps[symbol], trade.id, trade.time, to_time):
        settle(book, False)
        flag_unexplained(book, symbol, trade.time, minute_end, False)
        add(book.gapped, symbol)
    else:
        book.counters[0].gap_list_full += 1


@compiled
def _contradict(book: Book, symbol: int, minute_end: int) -> None:
    """Note that a symbol's ids have restarted: none of its trades counts before that minute is over."""
    state = book.symbols[symbol]
    book.counters[0].contradictions += 1
    state.contradicted = minute_end
    touch_between(book, symbol, state.newest_time, minute_end)
    add(book.gapped, symbol)


@compiled
def _traded_before_seam(book: Book, symbol: int) -> bool:
    """Say whether a symbol's klines have trades from before its seam: there were ids before its first one then."""
    seam_time = book.symbols[symbol].seam_time
    for interval in range(book.rows.shape[1]):
        for slot in range(book.rows.shape[2]):
            row = book.rows[symbol, interval, slot]
            if 0 < row.open_time < seam_time and row.trade_count > 0:
                return True
    return False


@compiled
def _has_rows(book: Book, symbol: int) -> bool:
    newest = book.calendars[0, 0]
    has_newest: bool = book.rows[symbol, 0, newest.slot].open_time == newest.open_time
    return has_newest


@compiled
def _possible(trade: Record, price_factor: int, quantity_factor: int, time_max: int) -> bool:
    if trade.id < 0 or trade.time <= 0 or trade.time > time_max or trade.trade_count < 0:
        return False
    if trade.id >= ID_MAX or trade.trade_count > TRADES_MAX:
        return False
    price, quantity = float(trade.price), float(trade.quantity)
    if max(price * quantity, price * price_factor, quantity * quantity_factor) > NUMBER_MAX:
        return False
    is_possible: bool = trade.trade_count == 0 or (trade.price > 0 and trade.quantity >= 0)
    return is_possible
