"""What the store keeps of a symbol beside its rows: its mark, with which another engine goes on.

Decides what is in it. Changes nothing, and knows no clock.
"""

import numpy as np
from numpy.typing import NDArray

from services.engine.audit import Audit
from services.engine.book import Book
from services.engine.gaps import missing_ids, proven_times
from services.engine.repair import Repair
from services.engine.symbols import SymbolTable
from shared.wire import SymbolMark

KEPT = ["price_decimals", "quantity_decimals", "active", "seam_time", "last_id", "gap_count"]
"""Of a symbol's state, what is stored as it is."""


class Marks:
    def __init__(self, book: Book, symbols: SymbolTable, repair: Repair, audit: Audit) -> None:
        self._book = book
        self._symbols = symbols
        self._repair = repair
        self._audit = audit

    def of(self, symbols: NDArray[np.int64]) -> list[SymbolMark]:
        """Return what is known of each of these symbols."""
        states, gaps = self._book.symbols, self._book.gaps
        proven_until = np.empty(len(symbols), np.int64)
        proven_times(states, gaps, symbols, proven_until)
        lacking = self._repair.lacking()
        marks = []
        kept = zip(symbols.tolist(), states[KEPT][symbols].tolist(), proven_until.tolist(), strict=True)
        for symbol, (price, quantity, active, seam_time, last_id, gap_count), proven in kept:
            mark = SymbolMark(
                self._symbols.names[symbol],
                price,
                quantity,
                self._symbols.streams[symbol],
                bool(active),
                self._symbols.grids[symbol],
                seam_time,
                last_id,
                missing_ids(states[symbol], gaps[symbol]) if gap_count else [],
                lacking.get(symbol, []),
                max(seam_time, proven),
                self._audit.mark_of(symbol),
                self._repair.unexplained(symbol),
            )
            marks.append(mark)
        return marks
