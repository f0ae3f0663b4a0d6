"""How a symbol begins: with what the store has of it, or with the exchange's own klines up to a seam.

Decides what of a symbol's past goes into the book, what of it must be asked for, and what the store keeps for that.
When a symbol begins, and that its minute is open, is the engine's. Knows no clock.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.engine.audit import Audit
from services.engine.backfill import announce_rows, build_open_rows, restore_rows
from services.engine.book import Book
from services.engine.gaps import GAP, GAPS_MAX
from services.engine.repair import Repair
from services.engine.symbols import SymbolTable
from shared.arrays import Rows
from shared.calendar import next_open_time, open_time_of
from shared.decimals import INT64_MAX
from shared.interval import DAY_MS, INTERVAL_INDEX, INTERVAL_NAMES, INTERVALS, MINUTE_MS
from shared.merging import rescale
from shared.wire import AddSymbol, SymbolMark, kline_rows

LENGTHS = np.array([interval.length_ms for interval in INTERVALS], np.int64)


class Announced(NamedTuple):
    """The klines of an `AddSymbol`, in the decimals that the symbol will have."""

    intervals: NDArray[np.int32]
    """int32[n], ascending."""
    klines: Rows
    """KLINE[n], of these intervals, ascending by time within each."""

    def of(self, interval: int) -> Rows:
        """Return the klines of an interval."""
        begin, end = np.searchsorted(self.intervals, (interval, interval + 1)).tolist()
        return self.klines[begin:end]


class Seeding:
    def __init__(self, book: Book, symbols: SymbolTable, repair: Repair, audit: Audit) -> None:
        self._book = book
        self._symbols = symbols
        self._repair = repair
        self._audit = audit

    def resume(self, symbol: int, mark: SymbolMark, rows: Rows, now_ns: int) -> None:
        """Go on with what the store has of a symbol: PLACED_KLINE[n], ascending by interval and open time."""
        state = self._book.symbols[symbol]
        self._symbols.set_decimals(symbol, mark.price_decimals, mark.quantity_decimals)
        state["seam_time"], state["last_id"] = mark.seam_time, mark.last_id
        intervals, klines = rows["interval"].copy(), rows["kline"].copy()
        minutes = klines[(intervals == 0) & (klines["id_count"] > 0)]
        # Right after the seam it is proven without a trade from there on.
        proven = mark.proven_time if mark.proven_time > mark.seam_time else mark.seam_time - 1
        state["newest_time"] = minutes["open_time"].max(initial=proven)
        state["seen_time"] = state["newest_time"] + MINUTE_MS
        self._resume_gaps(symbol, mark, minutes, proven)
        self._repair.remember(symbol, mark.unexplained, adopted=False)
        self._repair.note(np.array([symbol]), now_ns)
        if mark.last_id < 0:
            self._repair.begins(symbol, now_ns)
        restore_rows(self._book, symbol, intervals, klines)
        for interval, begin, end in _holes(intervals, klines["open_time"]):
            self._repair.want_klines(symbol, interval, begin, end)
        self._want_lacking(symbol, mark)
        self._audit.restore(symbol, mark.audit)

    def _resume_gaps(self, symbol: int, mark: SymbolMark, minutes: Rows, proven: int) -> None:
        """Go on with a symbol's missing and unexplained ids; `minutes`: its 1m rows with ids, KLINE[n]."""
        minute_end = int(self._book.calendars[0, 0]["end_time"])
        minutes = minutes[minutes["open_time"] >= mark.seam_time]  # What is older may have ids of another chain.
        gaps = np.zeros(len(mark.gaps), GAP)
        for gap, (first_id, last_id) in zip(gaps, mark.gaps, strict=True):
            before, after = minutes["first_id"] < first_id, minutes["last_id"] > last_id
            gap["first_id"], gap["last_id"] = first_id, last_id
            gap["from_time"] = minutes["open_time"][before].max(initial=proven)
            gap["to_time"] = minutes["open_time"][after].min(initial=minute_end) + MINUTE_MS
        unexplained = [
            (ids.first_id, ids.last_id, ids.from_time, ids.to_time, 0, 0, 1)
            for ids in mark.unexplained
            if ids.outcome == "open"
        ]
        gaps = np.sort(np.concatenate([gaps, np.array(unexplained, GAP)]), order="first_id")[-GAPS_MAX:]
        self._book.gaps[symbol, : len(gaps)] = gaps
        self._book.symbols[symbol]["gap_count"] = len(gaps)

    def announced(self, event: AddSymbol) -> Announced | None:
        """Return a symbol's klines as they were announced.

        None if 64 bits are too few for their prices, or for what is known of the symbol.
        """
        symbol = self._symbols.index.get(event.symbol, -1)
        price_factor = quantity_factor = 1
        if symbol >= 0:
            if not self._symbols.grow(symbol, event.price_decimals, event.quantity_decimals):
                return None
            state = self._book.symbols[symbol]
            price_factor = 10 ** (int(state["price_decimals"]) - event.price_decimals)
            quantity_factor = 10 ** (int(state["quantity_decimals"]) - event.quantity_decimals)
        parts = {part.interval: kline_rows(part.rows) for part in event.klines}
        if any(int(rows["high"].max(initial=0)) * price_factor > INT64_MAX for rows in parts.values()):
            return None
        known = [(interval, parts[name]) for interval, name in enumerate(INTERVAL_NAMES) if name in parts]
        counts = [len(rows) for _, rows in known]
        intervals = np.repeat(np.array([interval for interval, _ in known], np.int32), counts)
        # Not np.concatenate, which takes 20 us to find that two structured types are the same.
        klines = kline_rows(b"".join(rows.tobytes() for _, rows in known)).copy()
        rescale(klines, price_factor, quantity_factor)
        return Announced(intervals, klines)

    def begin(self, symbol: int, event: AddSymbol, announced: Announced, absent: SymbolMark | None, now_ns: int) -> int:
        """Begin a symbol at a seam, with the exchange's own klines before it; return how many are off the calendar.

        `absent`: what was known of it. What was proven stays; from there on, nothing may count twice.
        """
        state = self._book.symbols[symbol]
        self._symbols.set_decimals(
            symbol,
            max(event.price_decimals, int(state["price_decimals"])),
            max(event.quantity_decimals, int(state["quantity_decimals"])),
        )
        state["seam_time"] = event.klines_until
        # Ids up to the first trade from the seam on lie before it, void ones and others.
        state["newest_time"] = state["seen_time"] = event.klines_until - 1
        begins = np.zeros(len(INTERVALS), np.int64)
        proven = 0
        if absent is not None:
            # What nobody could explain is replaced by the exchange's own klines.
            open_from = [ids.from_time for ids in absent.unexplained if ids.outcome == "open"]
            # A minute of the exchange's at the least stands where one chain of ids ends and another begins.
            proven = min(event.klines_until - MINUTE_MS, absent.proven_time, *open_from)
            self._repair.remember(symbol, absent.unexplained, adopted=True)
        if proven > 0:
            begins[:] = [open_time_of(name, proven, self._symbols.grids[symbol]) for name in INTERVAL_NAMES]
        off = int(announce_rows(self._book, symbol, *announced, begins))
        for interval, begin in enumerate(begins.tolist()):
            rows = announced.of(interval) if begin > 0 else announced.klines[:0]
            if len(rows) and begin < rows[0]["open_time"]:
                self._repair.want_klines(symbol, interval, begin, int(rows[0]["open_time"]) - 1)
        if absent is not None:
            self._want_lacking(symbol, absent)
            self._audit.restore(symbol, absent.audit)
        build_open_rows(self._book, symbol, event.klines_until)
        self._repair.begins(symbol, now_ns)
        return off

    def _want_lacking(self, symbol: int, mark: SymbolMark) -> None:
        for name, start_time, end_time in mark.lacking:
            if name in INTERVAL_INDEX:
                self._repair.want_klines(symbol, INTERVAL_INDEX[name], start_time, end_time)


def grid_3d_of(event: AddSymbol, announced: Announced) -> int:
    """Return an open time of a symbol's 3d klines; if the exchange has none yet, they count from its first day."""
    if event.grid_3d:
        return event.grid_3d
    days = announced.of(INTERVAL_INDEX["1d"])
    return int(days[0]["open_time"]) if len(days) else (event.klines_until or event.event_time) // DAY_MS * DAY_MS


def _holes(intervals: NDArray[np.int32], open_times: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return what is missing between open times: (interval, the first that is missing, the last ms of the hole).

    Both ascend, the open times within an interval.
    """
    holes = []
    # Months have no length, so that each of them is looked at.
    irregular = (np.diff(intervals) == 0) & (np.diff(open_times) != LENGTHS[intervals[1:]])
    for index in np.flatnonzero(irregular).tolist():
        interval, before, after = int(intervals[index]), int(open_times[index]), int(open_times[index + 1])
        missing = next_open_time(INTERVAL_NAMES[interval], before)
        if after != missing:
            holes.append((interval, missing, after - 1))
    return holes
