"""The book: every kline in memory, laid out once, and the moves that keep it whole.

`rows` is KLINE[symbol][interval][window]; a kline's slot in its window is its bucket modulo the window. A row whose
`open_time` is not the one that its slot should hold is not there. The rules:

1. All symbols share one clock. `calendars` says which kline of each interval is the newest, for each of the three 3d
   grids; `next_minute` moves them on, closes what has ended and opens a flat kline for every symbol that trades.
2. No row is ever made for a time that the calendars have not reached, so a trade belongs to the newest row, which is
   found without arithmetic, or to an older one.
3. A flat kline's prices are the close before it. Whoever changes a close carries it on into the flat klines behind it.
4. What changes is marked: for saving always, for publishing if its topic is watched.
5. What is traded in the newest minute gathers in one kline a symbol, `gathered`, in no row until it is *settled*.
   Merging comes to the same whenever it is done, so it waits until somebody looks: a trade touches one kline, not 15.

What ids say is decided elsewhere (gaps.py, proof.py): here a gap only keeps a replay from losing the rows that it
belongs to. Knows no message and no socket, and of time what it is told.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.engine.dirty import ChangeList, Changes, Dirty, DirtyRows, add, mark_dirty
from services.engine.gaps import GAP, GAPS_MAX
from shared.arrays import Record, Rows
from shared.calendar import anchor_of, bucket_of, bucket_start
from shared.compiled import compiled
from shared.interval import DAY_MS, GRID_3D_MS, INTERVALS
from shared.kline import CLOSED, FINAL, KLINE, REVISION_MAX, SATURATED
from shared.merging import merge

GRIDS = GRID_3D_MS // DAY_MS
"""3d klines open on one of three grids, which differs by symbol; everything else is the same for all."""

SYMBOL = np.dtype(
    [
        ("last_id", "<i8"),
        ("gap_count", "<i8"),
        ("newest_time", "<i8"),  # T of the last id, at the least
        ("seen_time", "<i8"),  # and at the most
        ("fall_ms", "<i8"),  # how far times have fallen from one id to the next
        ("final_at", "<i8"),  # once every trade before this time was applied, there are klines to declare final
        ("withdrawn", "<i8"),  # 1: so are older ones, of which that had to be taken back
        ("contradicted", "<i8"),  # the end of the minute in which ids restarted; 0: they did not
        ("seam_time", "<i8"),  # trades before it are in the rows by way of the exchange's klines
        ("price_decimals", "<i8"),
        ("quantity_decimals", "<i8"),
        ("grid", "<i8"),  # which of the 3d grids
        ("active", "<i8"),
        ("saturated", "<i8"),  # 1: a kline of it is, or was since the engine began
        ("mark_changed", "<i8"),  # since the last batch
    ]
)

CALENDAR = np.dtype(
    [
        ("length", "<i8"),  # ms; 0 for months
        ("anchor", "<i8"),
        ("bucket", "<i8"),  # the newest kline's, ...
        ("open_time", "<i8"),
        ("end_time", "<i8"),  # ... exclusive
        ("slot", "<i8"),
    ]
)

COUNTERS = np.dtype(
    [
        ("applied", "<i8"),
        ("duplicates", "<i8"),
        ("late", "<i8"),  # applied to a row that was closed
        ("withdrawn", "<i8"),  # minutes that were final and then got a trade all the same
        ("contradictions", "<i8"),  # not applied: ids have restarted, and the symbol has not yet
        ("void_before_first", "<i8"),  # not applied: before a symbol's first trade there is no row to be in
        ("before_seam", "<i8"),  # not applied: already in the exchange's own klines
        ("refused", "<i8"),  # not applied: impossible numbers
        ("unknown_symbol", "<i8"),
        ("gap_list_full", "<i8"),  # not applied, and fetched later
        ("beyond_window", "<i8"),  # not applied: its row has left memory
        ("unsaved_overwritten", "<i8"),  # rows that left memory before they were saved
    ]
)


LOST = np.dtype([("first", "<i8"), ("last", "<i8")])
"""Open times of rows that left memory before they were saved; 0: none."""


class Book(NamedTuple):
    """The arrays, for compiled code."""

    symbols: Rows
    """SYMBOL[symbols]"""
    gaps: Rows
    """GAP[symbols, GAPS_MAX]"""
    calendars: Rows
    """CALENDAR[GRIDS, intervals]"""
    rows: Rows
    """KLINE[symbols, intervals, window]. In memory all symbols' rows of one slot lie side by side, and so do those in
    use. A row's id (`row_id_of`) counts them as they lie there, and so do marks."""
    gathered: Rows
    """KLINE[symbols]"""
    unsettled: Changes
    """Of symbols: those that have something gathered."""
    gapped: Changes
    """Of symbols: those that have a new gap, or are contradicted."""
    unsaved: Dirty
    changed: Changes
    watched: NDArray[np.uint8]
    """[symbols, intervals]: whether the topic has a subscriber."""
    counters: Rows
    """COUNTERS[1]"""
    lost: Rows
    """LOST[symbols, intervals]"""
    any_lost: NDArray[np.int64]
    """int64[1]: whether there is any."""
    scratch: Rows
    """KLINE[1]"""


class Trackers(NamedTuple):
    """Who takes what the book marks."""

    unsaved: DirtyRows
    changed: ChangeList
    gapped: ChangeList


def lay_out(symbols_max: int, window: int, interval_count: int = len(INTERVALS)) -> tuple[Book, Trackers]:
    """Return an empty book of the first intervals, and its trackers. Pages are used up as they are written."""
    intervals = INTERVALS[:interval_count]
    size = interval_count * window
    trackers = Trackers(DirtyRows(symbols_max, size), ChangeList(symbols_max * size), ChangeList(symbols_max))
    calendars = np.zeros((GRIDS, interval_count), CALENDAR)
    for grid in range(GRIDS):
        for index, interval in enumerate(intervals):
            calendars[grid, index]["length"] = interval.length_ms
            calendars[grid, index]["anchor"] = anchor_of(interval.name, grid * DAY_MS)
    book = Book(
        np.zeros(symbols_max, SYMBOL),
        np.zeros((symbols_max, GAPS_MAX), GAP),
        calendars,
        # One more than there are: the rows of a single symbol would be of another type, for which nothing is compiled.
        np.zeros((interval_count, window, symbols_max + 1), KLINE).transpose(2, 0, 1)[:symbols_max],
        np.zeros(symbols_max, KLINE),
        ChangeList(symbols_max).changes,
        trackers.gapped.changes,
        trackers.unsaved.dirty,
        trackers.changed.changes,
        np.zeros((symbols_max, interval_count), np.uint8),
        np.zeros(1, COUNTERS),
        np.zeros((symbols_max, interval_count), LOST),
        np.zeros(1, np.int64),
        np.zeros(1, KLINE),
    )
    return book, trackers


@compiled
def set_calendars(book: Book, time_ms: int) -> None:
    """Make the klines that `time_ms` falls into the newest, without opening any."""
    window = book.rows.shape[2]
    for grid in range(book.calendars.shape[0]):
        for interval in range(book.calendars.shape[1]):
            calendar = book.calendars[grid, interval]
            bucket = bucket_of(calendar.length, calendar.anchor, time_ms)
            calendar.bucket = bucket
            calendar.open_time = bucket_start(calendar.length, calendar.anchor, bucket)
            calendar.end_time = bucket_start(calendar.length, calendar.anchor, bucket + 1)
            calendar.slot = bucket % window


@compiled
def next_minute(book: Book, symbol_count: int) -> None:
    """Move the clock to the next minute: close what has ended, open flat klines for all symbols that trade."""
    settle(book, False)
    time_ms = book.calendars[0, 0].end_time
    for symbol in range(symbol_count):
        grid = book.symbols[symbol].grid
        for interval in range(book.calendars.shape[1]):
            calendar = book.calendars[grid, interval]
            if calendar.end_time > time_ms:
                continue
            ended = book.rows[symbol, interval, calendar.slot]
            if ended.open_time != calendar.open_time:
                continue
            if not ended.flags & CLOSED:
                ended.flags |= CLOSED
                touch(book, symbol, interval, calendar.slot)
            if book.symbols[symbol].active:
                open_row(book, symbol, interval, calendar.bucket + 1, calendar.end_time, ended.close, 0)
    set_calendars(book, time_ms)


@compiled
def would_lose(book: Book, symbol_count: int) -> bool:
    """Say whether the next minute takes the slot of a row that is not saved yet, or that lacks what is asked for."""
    window = book.rows.shape[2]
    time_ms = book.calendars[0, 0].end_time
    memory_begin_ms = time_ms - (window - 1) * book.calendars[0, 0].length
    for symbol in range(symbol_count):
        grid = book.symbols[symbol].grid
        for index in range(book.symbols[symbol].gap_count):
            gap = book.gaps[symbol, index]
            if not gap.unexplained and gap.from_time < memory_begin_ms:
                return True
        for interval in range(book.rows.shape[1]):
            calendar = book.calendars[grid, interval]
            row_id = row_id_of(book, symbol, interval, (calendar.bucket + 1) % window)
            if calendar.end_time <= time_ms and book.unsaved.states[row_id]:
                return True
    return False


@compiled
def row_id_of(book: Book, symbol: int, interval: int, slot: int) -> int:
    """Return a row's id."""
    row_id: int = (interval * book.rows.shape[2] + slot) * book.rows.shape[0] + symbol
    return row_id


@compiled
def locate(book: Book, row_id: int) -> tuple[int, int, int]:
    """Return the symbol, the interval and the slot of the row that has this id."""
    symbol, at = row_id % book.rows.shape[0], row_id // book.rows.shape[0]
    return symbol, at // book.rows.shape[2], at % book.rows.shape[2]


@compiled
def touch(book: Book, symbol: int, interval: int, slot: int) -> None:
    """Mark a row as changed."""
    row_id = row_id_of(book, symbol, interval, slot)
    mark_dirty(book.unsaved, row_id)
    if book.watched[symbol, interval]:
        add(book.changed, row_id)


@compiled
def open_row(book: Book, symbol: int, interval: int, bucket: int, open_time: int, price: int, flags: int) -> Record:
    """Open a flat row and return it."""
    slot = bucket % book.rows.shape[2]
    row = book.rows[symbol, interval, slot]
    if row.open_time != 0 and book.unsaved.states[row_id_of(book, symbol, interval, slot)]:
        _lose(book, symbol, interval, row.open_time)
    blank(row, open_time, price, flags)
    touch(book, symbol, interval, slot)
    return row


@compiled
def _lose(book: Book, symbol: int, interval: int, open_time: int) -> None:
    """Note that a row leaves memory before the store has acknowledged it."""
    lost = book.lost[symbol, interval]
    lost.first = min(lost.first, open_time) if lost.first else open_time
    lost.last = max(lost.last, open_time)
    book.any_lost[0] = 1
    book.counters[0].unsaved_overwritten += 1


@compiled
def blank(row: Record, open_time: int, price: int, flags: int) -> None:
    """Make a row a kline without trades."""
    row.open_time = open_time
    row.open = price
    row.high = price
    row.low = price
    row.close = price
    row.volume = 0
    row.quote_volume = 0
    row.trade_count = 0
    row.taker_buy_volume = 0
    row.taker_buy_quote_volume = 0
    row.quote_volume_high = 0
    row.taker_buy_quote_volume_high = 0
    row.first_id = 0
    row.last_id = 0
    row.id_count = 0
    row.open_id = 0
    row.close_id = 0
    row.flags = flags
    row.revision = 0


@compiled
def slot_of(book: Book, symbol: int, interval: int, time_ms: int) -> int:
    """Return the slot of the row that `time_ms` falls into, opening it if it is not there; -1 beyond the window.

    A symbol that trades has a row for every kline from its first to the newest, so what lies between is opened too.
    """
    window: int = book.rows.shape[2]
    grid = book.symbols[symbol].grid
    calendar = book.calendars[grid, interval]
    bucket: int = calendar.bucket
    if time_ms < calendar.open_time:
        bucket = bucket_of(calendar.length, calendar.anchor, time_ms)
    if calendar.bucket - bucket >= window:
        return -1
    open_time = bucket_start(calendar.length, calendar.anchor, bucket)
    if book.rows[symbol, interval, bucket % window].open_time == open_time:
        return bucket % window
    last = calendar.bucket if book.symbols[symbol].active else bucket
    price = 0
    before = book.rows[symbol, interval, (bucket - 1) % window]
    if before.open_time == bucket_start(calendar.length, calendar.anchor, bucket - 1):
        price = before.close
    else:
        # Before a symbol's first kline there is no close to carry; a void id there still needs a price to show.
        for later in range(bucket + 1, last + 1):
            row = book.rows[symbol, interval, later % window]
            if row.open_time == bucket_start(calendar.length, calendar.anchor, later):
                price = row.open
                break
    for missing in range(bucket, last + 1):
        start = bucket_start(calendar.length, calendar.anchor, missing)
        if book.rows[symbol, interval, missing % window].open_time == start:
            break
        open_row(book, symbol, interval, missing, start, price, CLOSED if missing < calendar.bucket else 0)
    return bucket % window


@compiled
def memory_begin(book: Book, symbol: int, interval: int) -> int:
    """Return the open time of the oldest row that there is a slot for."""
    calendar = book.calendars[book.symbols[symbol].grid, interval]
    return bucket_start(calendar.length, calendar.anchor, calendar.bucket - book.rows.shape[2] + 1)


@compiled
def carry(book: Book, symbol: int, interval: int, time_ms: int) -> None:
    """Carry the close of the row that `time_ms` falls into on into the flat rows behind it."""
    window = book.rows.shape[2]
    calendar = book.calendars[book.symbols[symbol].grid, interval]
    bucket = bucket_of(calendar.length, calendar.anchor, time_ms)
    price = book.rows[symbol, interval, bucket % window].close
    for later in range(bucket + 1, calendar.bucket + 1):
        slot = later % window
        row = book.rows[symbol, interval, slot]
        if row.open_time != bucket_start(calendar.length, calendar.anchor, later) or row.trade_count > 0:
            break
        if row.close == price:
            break
        row.open = price
        row.high = price
        row.low = price
        row.close = price
        if row.flags & CLOSED:
            correct(book, symbol, interval, row)
        touch(book, symbol, interval, slot)


@compiled
def correct(book: Book, symbol: int, interval: int, row: Record) -> None:
    """Note that a closed row has changed: one that was final is not, until what follows has proven it again."""
    if row.revision < REVISION_MAX:
        row.revision += 1
    if row.flags & FINAL:
        row.flags &= ~FINAL
        state = book.symbols[symbol]
        state.withdrawn = 1
        state.final_at = max(state.final_at, book.calendars[0, 0].end_time)
        if interval == 0:
            book.counters[0].withdrawn += 1


@compiled
def add_to_rows(book: Book, symbol: int, time_ms: int, kline: Record) -> None:
    """Merge a kline of trades of one moment into the rows of all intervals. The minute's row must be in the window."""
    grid = book.symbols[symbol].grid
    for interval in range(book.rows.shape[1]):
        calendar = book.calendars[grid, interval]
        slot = calendar.slot
        open_time = book.rows[symbol, interval, slot].open_time
        is_newest = time_ms >= calendar.open_time and open_time == calendar.open_time
        if not is_newest:
            slot = slot_of(book, symbol, interval, time_ms)
        row = book.rows[symbol, interval, slot]
        merge(row, kline)
        if not is_newest:
            if row.flags & CLOSED:
                correct(book, symbol, interval, row)
                if interval == 0:
                    book.counters[0].late += 1
            carry(book, symbol, interval, time_ms)
        touch(book, symbol, interval, slot)
    # What is saturated makes its month so; a week that is and goes over its end is noted when it could be final.
    if row.flags & SATURATED:
        book.symbols[symbol].saturated = 1


@compiled
def settle(book: Book, only_watched: bool) -> None:
    """Bring what was gathered into the rows: of all symbols, or of those with a topic that somebody watches."""
    unsettled = book.unsettled
    left = 0
    for n in range(unsettled.total[0]):
        symbol = unsettled.items[n]
        if only_watched and not book.watched[symbol].any():
            unsettled.items[left] = symbol
            left += 1
            continue
        unsettled.marked[symbol] = 0
        add_to_rows(book, symbol, book.calendars[0, 0].open_time, book.gathered[symbol])
        blank(book.gathered[symbol], 0, 0, 0)
    unsettled.total[0] = left
