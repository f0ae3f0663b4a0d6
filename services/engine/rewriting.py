"""What the store had and has no more: marked to be saved again, and where memory has it no more, asked of the exchange.

Decides which klines those are, of a store that was set back or emptied, and of rows that left memory too early. When
that is so, is the engine's to notice. Knows no clock.
"""

import numpy as np

from services.engine.book import Book
from services.engine.dirty import DirtyRows
from services.engine.repair import NEVER, Repair
from services.engine.symbols import SymbolTable
from shared.calendar import open_time_of
from shared.interval import INTERVAL_INDEX, INTERVAL_NAMES, INTERVALS
from shared.wire import StoreState


class Rewriting:
    def __init__(self, book: Book, unsaved: DirtyRows, symbols: SymbolTable, repair: Repair) -> None:
        self._book = book
        self._unsaved = unsaved
        self._symbols = symbols
        self._repair = repair

    def all_of(self, state: StoreState, waiting: list[tuple[int, int, int]]) -> None:
        """Save again whatever is in memory, and want what a store in this state lacks besides.

        `waiting`: symbol, interval and first open time of klines that are no longer in memory, and will be saved.
        """
        self.want_lost()
        for symbol in range(len(self._symbols.names)):
            self._again(symbol, state.exchange_time)
        if not state.exchange_time:
            # They, and those that are on their way, would stand alone in an empty store, with a hole up to memory.
            for symbol, lacking in self._repair.lacking().items():
                waiting = [*waiting, *((symbol, INTERVAL_INDEX[name], first) for name, first, _ in lacking)]
            for symbol, index, first in waiting:
                self._want(symbol, index, first, NEVER)
            for symbol in range(len(self._symbols.names)):
                self._want_parents(symbol)
        for name, interval, first, last in state.unfinished:
            symbol = self._symbols.index.get(name, -1)
            if symbol >= 0 and interval in INTERVAL_INDEX:
                self._want(symbol, INTERVAL_INDEX[interval], first, last)

    def want_lost(self) -> None:
        """Want what left memory before the store could have it."""
        lost = self._book.lost
        for symbol, interval in np.argwhere(lost["first"] > 0).tolist():
            first, last = lost[symbol, interval].tolist()
            self._repair.want_klines(symbol, interval, first, last)
        self._book.any_lost[0] = 0
        lost[:] = 0

    def _again(self, symbol: int, time_ms: int) -> None:
        """Save a symbol again, of which the store may lack all klines from a time on; 0: it has nothing."""
        rows = self._book.rows[symbol]
        intervals, slots = np.nonzero(rows["open_time"])
        # Their ids (row_id_of).
        self._unsaved.mark((intervals * rows.shape[1] + slots) * len(self._book.rows) + symbol)
        self._book.symbols[symbol]["mark_changed"] = 1
        for interval, name in enumerate(INTERVAL_NAMES) if time_ms else ():
            first = open_time_of(name, time_ms, self._symbols.grids[symbol])
            self._want(symbol, interval, first, max(first, self._oldest(symbol, interval) - 1))

    def _want_parents(self, symbol: int) -> None:
        """Want what memory lacks of longer klines, so that in an empty store none begins later than those in it.

        An engine that has restarted has loaded only the newest of them (window.py).
        """
        begins = {name: self._oldest(symbol, interval) for interval, name in enumerate(INTERVAL_NAMES)}
        for name, first, _ in self._repair.lacking().get(symbol, []):
            begins[name] = min(begins[name] or first, first)
        for interval, (name, _, child) in enumerate(INTERVALS):
            if child and begins[child] and begins[name]:
                first = open_time_of(name, begins[child], self._symbols.grids[symbol])
                self._want(symbol, interval, first, begins[name] - 1)
                begins[name] = min(begins[name], first)

    def _want(self, symbol: int, interval: int, first: int, last: int) -> None:
        """Want the klines of this range that memory does not have."""
        last = min(last, self._oldest(symbol, interval) - 1)
        if first <= last and self._book.symbols[symbol]["active"]:
            self._repair.want_klines(symbol, interval, first, last)

    def _oldest(self, symbol: int, interval: int) -> int:
        """Return the open time of the oldest row in memory; 0 if there is none."""
        held = self._book.rows[symbol, interval]["open_time"]
        return int(held[held > 0].min(initial=2**62)) if held.any() else 0
