"""A symbol's past put into the book in one piece: from the store, or as the exchange announced it.

Decides how rows of different origins and times become whole again; knows no messages, no ids and no clock.
"""

from services.engine.book import Book, blank, open_row, touch
from shared.arrays import Integers, Integers32, Record, Rows
from shared.calendar import bucket_of, bucket_start
from shared.compiled import compiled
from shared.interval import CHILD_INDEX
from shared.kline import CLOSED, EXCHANGE, SATURATED
from shared.merging import merge


@compiled
def forget_rows(book: Book, symbol: int, interval: int, from_time: int) -> None:
    """Take a symbol's rows out of the book, from an open time on."""
    for slot in range(book.rows.shape[2]):
        row = book.rows[symbol, interval, slot]
        if row.open_time >= from_time:
            row.open_time = 0


@compiled
def put_rows(book: Book, symbol: int, interval: int, klines: Rows, changed: bool) -> int:
    """Put whole rows into their slots: KLINE[n], in the book's decimals. Return how many lie outside the window."""
    outside = 0
    for n in range(len(klines)):
        slot = _put_row(book, symbol, interval, klines[n])
        if slot < 0:
            outside += 1
        elif changed:
            touch(book, symbol, interval, slot)
    return outside


@compiled
def announce_rows(book: Book, symbol: int, intervals: Integers32, klines: Rows, begins: Integers) -> int:
    """Put the exchange's own closed klines into their slots; return how many lie outside the window or off the grid.

    intervals: int32[n], of each of KLINE[n]; begins: int64[intervals], an open time of each interval: what the book has
    from there on is forgotten, and what it has from before stays.
    """
    for interval in range(len(begins)):
        forget_rows(book, symbol, interval, begins[interval])
    outside = 0
    for n in range(len(klines)):
        interval, kline = intervals[n], klines[n]
        is_older = kline.open_time < begins[interval]
        if is_older and _is_held(book, symbol, interval, kline.open_time):
            continue
        slot = _put_row(book, symbol, interval, kline)
        if slot < 0:
            outside += 1
        elif not is_older:
            touch(book, symbol, interval, slot)
    return outside


@compiled
def _is_held(book: Book, symbol: int, interval: int, open_time: int) -> bool:
    calendar = book.calendars[book.symbols[symbol].grid, interval]
    slot = bucket_of(calendar.length, calendar.anchor, open_time) % book.rows.shape[2]
    is_held: bool = book.rows[symbol, interval, slot].open_time == open_time
    return is_held


@compiled
def restore_rows(book: Book, symbol: int, intervals: Integers32, klines: Rows) -> None:
    """Put what the store has of a symbol into its slots, and bring it to the time of the calendars.

    intervals: int32[n], of each of KLINE[n]. Those that lie outside the window are left out.
    """
    for n in range(len(klines)):
        _put_row(book, symbol, intervals[n], klines[n])
    _catch_up(book, symbol)


@compiled
def _put_row(book: Book, symbol: int, interval: int, kline: Record) -> int:
    """Put a row into its slot and return that; -1 if it lies outside the window or off the calendar."""
    window: int = book.rows.shape[2]
    calendar = book.calendars[book.symbols[symbol].grid, interval]
    bucket = bucket_of(calendar.length, calendar.anchor, kline.open_time)
    if (
        bucket > calendar.bucket
        or calendar.bucket - bucket >= window
        or bucket_start(calendar.length, calendar.anchor, bucket) != kline.open_time
    ):
        return -1
    book.rows[symbol, interval, bucket % window] = kline
    if kline.flags & SATURATED:
        book.symbols[symbol].saturated = 1
    return bucket % window


@compiled
def _catch_up(book: Book, symbol: int) -> None:
    """Bring rows, of whichever minute they were saved in, to the time of the calendars."""
    window = book.rows.shape[2]
    for interval in range(book.rows.shape[1]):
        calendar = book.calendars[book.symbols[symbol].grid, interval]
        newest = -1
        for bucket in range(calendar.bucket - window + 1, calendar.bucket + 1):
            row = book.rows[symbol, interval, bucket % window]
            if row.open_time == bucket_start(calendar.length, calendar.anchor, bucket):
                newest = bucket
                if bucket < calendar.bucket and not row.flags & CLOSED:
                    row.flags |= CLOSED
                    touch(book, symbol, interval, bucket % window)
        if newest >= 0:
            price = book.rows[symbol, interval, newest % window].close
            for missing in range(newest + 1, calendar.bucket + 1):
                start = bucket_start(calendar.length, calendar.anchor, missing)
                open_row(book, symbol, interval, missing, start, price, CLOSED if missing < calendar.bucket else 0)


@compiled
def _merge_next(row: Record, piece: Record) -> None:
    """Merge a kline that is later in time, of whichever source: only among trades do ids tell the order.

    Where figures of the exchange's own follow on ids, the ids before them are not told: they may not go on behind it.
    """
    began = row.trade_count > 0
    if piece.flags & EXCHANGE:
        row.first_id = 0
        row.last_id = 0
        row.id_count = 0
        row.open_id = 0
        row.close_id = 0
    open_, open_id = row.open, row.open_id
    merge(row, piece)
    if began:
        row.open = open_
        row.open_id = open_id
    if piece.trade_count > 0:
        row.close = piece.close
        row.close_id = piece.close_id


@compiled
def build_open_rows(book: Book, symbol: int, until: int) -> None:
    """Make a symbol's rows whole from `until` to the newest, where every trade before `until` is in its closed rows.

    The row that `until` falls into is the merge of its children before `until`; those behind it are flat. For symbols
    without any closed row nothing is known, and nothing is done.
    """
    window = book.rows.shape[2]
    grid = book.symbols[symbol].grid
    for interval in range(book.rows.shape[1]):
        calendar = book.calendars[grid, interval]
        bucket = bucket_of(calendar.length, calendar.anchor, until)
        open_time = bucket_start(calendar.length, calendar.anchor, bucket)
        known = False
        price = 0
        before = book.rows[symbol, interval, (bucket - 1) % window]
        if before.open_time == bucket_start(calendar.length, calendar.anchor, bucket - 1):
            known = True
            price = before.close
        row = book.scratch[0]
        blank(row, open_time, price, 0)
        child = CHILD_INDEX[interval]
        if child >= 0:
            nested = book.calendars[grid, child]
            first = bucket_of(nested.length, nested.anchor, open_time)
            last = min(bucket_of(nested.length, nested.anchor, until), nested.bucket)
            for part in range(max(first, nested.bucket - window + 1), last + 1):
                start = bucket_start(nested.length, nested.anchor, part)
                piece = book.rows[symbol, child, part % window]
                if piece.open_time == start and start < until:
                    if not known and row.trade_count == 0:
                        blank(row, open_time, piece.close, row.flags)
                    known = True
                    _merge_next(row, piece)
        if not known:
            continue
        for missing in range(bucket, calendar.bucket + 1):
            start = bucket_start(calendar.length, calendar.anchor, missing)
            flags = CLOSED if missing < calendar.bucket else 0
            slot = missing % window
            if missing == bucket:
                row.flags |= flags
                book.rows[symbol, interval, slot] = row
                if row.flags & SATURATED:
                    book.symbols[symbol].saturated = 1
                price = row.close
                touch(book, symbol, interval, slot)
            else:
                open_row(book, symbol, interval, missing, start, price, flags)
