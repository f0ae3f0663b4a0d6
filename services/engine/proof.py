"""What is said of a kline beyond its numbers: that it is final, and that ids are unexplained which may belong to it.

Decides when rows say so and when they take it back (`correct` in book.py withdraws `final` where a row changes all the
same). Which ids are applied, missing or unexplained is gaps.py's. Knows no message and no clock.
"""

from services.engine.book import Book, correct, touch
from services.engine.gaps import proven_time
from shared.calendar import bucket_of, bucket_start
from shared.compiled import compiled
from shared.kline import AUDITED, FINAL, SATURATED, UNEXPLAINED


@compiled
def mark_final(book: Book, symbol: int) -> None:
    """Declare the klines final that can change no more: every trade before their end was applied."""
    state = book.symbols[symbol]
    proven = proven_time(state, book.gaps[symbol])
    if proven < state.final_at:
        return
    window = book.rows.shape[2]
    for interval in range(book.rows.shape[1]):
        calendar = book.calendars[state.grid, interval]
        bucket = min(bucket_of(calendar.length, calendar.anchor, proven), calendar.bucket)
        for earlier in range(bucket - 1, calendar.bucket - window, -1):
            row = book.rows[symbol, interval, earlier % window]
            if row.open_time != bucket_start(calendar.length, calendar.anchor, earlier):
                break
            if row.flags & FINAL:
                if state.withdrawn:
                    continue
                break
            if row.flags & SATURATED:
                state.saturated = 1
            if row.flags & (UNEXPLAINED | SATURATED):
                continue
            row.flags |= FINAL
            touch(book, symbol, interval, earlier % window)
    minute = book.calendars[0, 0].length
    state.final_at = (proven // minute + 1) * minute
    state.withdrawn = 0


@compiled
def flag_unexplained(book: Book, symbol: int, from_time: int, to_time: int, audited: bool) -> None:
    """Bring the rows that trades of [from_time, to_time] may belong to in line with the symbol's unexplained gaps.

    audited: what was unexplained there, and is no more, carries no trade by the exchange's own klines.
    """
    state = book.symbols[symbol]
    window = book.rows.shape[2]
    is_cleared = False
    for interval in range(book.rows.shape[1]):
        calendar = book.calendars[state.grid, interval]
        first = bucket_of(calendar.length, calendar.anchor, from_time)
        last = min(bucket_of(calendar.length, calendar.anchor, max(from_time, to_time)), calendar.bucket)
        for bucket in range(max(first, calendar.bucket - window + 1), last + 1):
            start = bucket_start(calendar.length, calendar.anchor, bucket)
            row = book.rows[symbol, interval, bucket % window]
            if row.open_time != start:
                continue
            if _is_unexplained(book, symbol, start, bucket_start(calendar.length, calendar.anchor, bucket + 1)):
                if row.flags & FINAL:
                    correct(book, symbol, interval, row)
                row.flags |= UNEXPLAINED
            elif row.flags & UNEXPLAINED:
                row.flags &= ~UNEXPLAINED
                if audited:
                    row.flags |= AUDITED
                is_cleared = True
            touch(book, symbol, interval, bucket % window)
    state.mark_changed = 1
    if is_cleared:
        state.withdrawn = 1  # They may be older than what is final.
        state.final_at = min(state.final_at, proven_time(state, book.gaps[symbol]))
        mark_final(book, symbol)


@compiled
def _is_unexplained(book: Book, symbol: int, open_time: int, end_time: int) -> bool:
    for index in range(book.symbols[symbol].gap_count):
        gap = book.gaps[symbol, index]
        if gap.unexplained and gap.from_time < end_time and gap.to_time >= open_time:
            return True
    return False


@compiled
def touch_between(book: Book, symbol: int, from_time: int, to_time: int) -> None:
    """Mark the rows that trades of [from_time, to_time] may belong to."""
    window = book.rows.shape[2]
    for interval in range(book.rows.shape[1]):
        calendar = book.calendars[book.symbols[symbol].grid, interval]
        first = bucket_of(calendar.length, calendar.anchor, from_time)
        last = min(bucket_of(calendar.length, calendar.anchor, to_time), calendar.bucket)
        for bucket in range(max(first, calendar.bucket - window + 1), last + 1):
            start = bucket_start(calendar.length, calendar.anchor, bucket)
            if book.rows[symbol, interval, bucket % window].open_time == start:
                touch(book, symbol, interval, bucket % window)
