"""What the store does not have yet, and the batches that bring it there.

Decides when a batch is due and what is in it: a consistent cut of rows and of their symbols' marks. There is one batch
at a time; until it is acknowledged its rows count as under way, and when it is lost they are unsaved again. Knows no
trades, and of a row's contents only that it is there.
"""

import numpy as np
from numpy.typing import NDArray

from services.engine.book import Book, locate
from services.engine.dirty import DirtyRows
from services.engine.marks import Marks
from services.engine.passing import Passing
from services.engine.symbols import SymbolTable
from shared.arrays import Integers, Integers32, Rows
from shared.compiled import compiled
from shared.config import EngineConfig
from shared.interval import INTERVALS
from shared.kline import PLACED_KLINE
from shared.wire import DirtyBatch, Persisted, StorePoint

BATCH_ROWS_MAX = 1_500
"""Rows a batch, about, a new symbol's: to make it takes some 1 ms, in which no trade is applied."""
REST = 19
"""So many times as long as a batch took nothing is saved for the number of rows alone: a busy market changes the same
rows again and again, and saving them must not take the machine from the trades."""
BACKLOG_REST = 3
"""And only so many times while there are more rows than trades change, as after a first start: they come once."""
AWAY_MS = 50
"""How soon to look again for a store that is not there."""
REFUSED_AGAIN_NS = 20_000_000_000
"""How soon the rows of a symbol that the store refuses are sent again; the store itself tries once a minute."""


class Saving:
    def __init__(
        self,
        config: EngineConfig,
        session: int,
        book: Book,
        unsaved: DirtyRows,
        symbols: SymbolTable,
        passing: Passing,
        marks: Marks,
    ) -> None:
        self._config = config
        self._session = session
        self._book = book
        self._unsaved = unsaved
        self._symbols = symbols.names
        self._passing = passing
        self._marks = marks
        self._at = 0
        """When the next batch is due, ns."""
        self._sent_at = 0
        self._rest_until = 0
        """However many rows are waiting, ns."""
        self.batch = 0
        self.point = StorePoint()
        """What the store has, as far as it was told."""
        self.refused: dict[int, int] = {}
        """Symbols that the store does not take, and when (monotonic ns) their unsaved rows are sent again."""
        self._under_way: NDArray[np.int64] | None = None
        self._marked = np.zeros(0, np.int64)
        """The symbols whose marks are in the batch under way."""

    @property
    def under_way(self) -> bool:
        """A batch is unacknowledged."""
        return self._under_way is not None

    @property
    def unsaved_rows(self) -> int:
        """How many rows the store does not have yet."""
        under_way = 0 if self._under_way is None else len(self._under_way)
        return len(self._unsaved) + under_way + len(self._passing)

    def due_at(self) -> int | None:
        """Return when to look whether there is something to be saved, ns; None while a batch is under way."""
        return self._at if self._under_way is None else None

    def wait(self, now_ns: int) -> None:
        """The next batch is due after the configured interval."""
        self._at = now_ns + self._config.save_interval_ms * 1_000_000

    def store_absent(self, now_ns: int) -> None:
        """There is no store: to make a batch costs more than all of a turn's trades, and would be for nothing."""
        self._at = self._rest_until = now_ns + AWAY_MS * 1_000_000

    def save_now(self) -> None:
        """The next batch is due at once."""
        self._at = 0

    def due(self, now_ns: int) -> bool:
        """Say whether it is time to save what is unsaved, if anything is."""
        if self._under_way is not None:
            return False
        # What is gathered and not settled will be a row an interval, at the most.
        waiting = len(self._unsaved) + int(self._book.unsettled.total[0]) * len(INTERVALS)
        waiting -= sum(int(self._unsaved.dirty.by_group[symbol]) for symbol in self.refused)
        return now_ns >= self._at or (waiting >= self._config.save_rows and now_ns >= self._rest_until)

    def take(self, now_ns: int, exchange_time: int) -> DirtyBatch | None:
        """Return a batch of what is unsaved, if anything is. None may be under way, and all must be settled."""
        self.wait(now_ns)
        kept = np.zeros(len(self._book.symbols), bool)
        kept[[symbol for symbol, again_at in self.refused.items() if now_ns < again_at]] = True
        row_ids = self._unsaved.take(BATCH_ROWS_MAX, kept)
        # What is left of a symbol is in a later batch, and neither its frontier nor older klines must come before that.
        complete = ~(self._unsaved.groups() | kept)[: len(self._symbols)]
        marked = self._book.symbols["mark_changed"][: len(self._symbols)].astype(bool) & complete
        passing = self._passing.take(complete)
        if not len(row_ids) and not marked.any() and not passing:
            return None
        marked[row_ids % len(self._book.symbols)] = True
        marked[[part.symbol for part in passing]] = True
        self._under_way, self._sent_at = row_ids, now_ns
        self._marked = np.flatnonzero(marked)
        self._book.symbols["mark_changed"][self._marked] = 0
        self.batch += 1
        marks = self._marks.of(self._marked)
        return DirtyBatch(self._session, self.batch, exchange_time, marks, self._placed(row_ids), self.point)

    def _placed(self, row_ids: NDArray[np.int64]) -> bytes:
        """Return PLACED_KLINE[n] of these rows and of what passes through."""
        indices = np.zeros(len(self._symbols), np.int32)
        indices[self._marked] = np.arange(len(self._marked))
        rows = np.empty(len(row_ids), PLACED_KLINE)
        parts = [rows[: place_rows(self._book, row_ids, indices, rows)]]
        for symbol, interval, klines in self._passing.under_way:
            placed = np.zeros(len(klines), PLACED_KLINE)
            placed["symbol"], placed["interval"], placed["kline"] = indices[symbol], interval, klines
            parts.append(placed)
        return b"".join(part.tobytes() for part in parts)

    def acknowledge(self, event: Persisted, now_ns: int) -> bool:
        """The store has a batch, except for the symbols that it refuses; False if it is not the one under way."""
        if (event.session, event.batch) != (self._session, self.batch) or self._under_way is None:
            return False
        if self.point.tables not in ("", event.tables):
            # Other tables than all before it, which are gone: it is sent again, and the store says what it has.
            self.lost(now_ns)
            return False
        self.point = StorePoint(event.tables, event.session, event.batch)
        self._unsaved.release(self._under_way)
        names = set(event.refused)
        refused = [symbol for symbol in self._marked.tolist() if self._symbols[symbol] in names]
        for symbol in self._marked.tolist() if self.refused else ():
            self.refused.pop(symbol, None)
        self.refused |= dict.fromkeys(refused, now_ns + REFUSED_AGAIN_NS)
        if refused:
            # A row of these that leaves memory leaves it unsaved.
            self._unsaved.mark(self._under_way[np.isin(self._under_way % len(self._book.symbols), refused)])
            self._book.symbols["mark_changed"][refused] = 1
        self._under_way = None
        self._passing.acknowledge(self.refused)
        # What trades change are the newest rows, and at the end of a minute those before them.
        in_use = 2 * len(self._symbols) * len(INTERVALS)
        rest = REST if len(self._unsaved) <= in_use else BACKLOG_REST
        self._rest_until = now_ns + (now_ns - self._sent_at) * rest
        return True

    def lost(self, now_ns: int) -> None:
        """The batch under way could not be sent or is lost: its rows are unsaved again."""
        if self._under_way is None:
            return
        self._unsaved.release(self._under_way)
        self._unsaved.mark(self._under_way)
        self._book.symbols["mark_changed"][self._marked] = 1
        self._passing.lost()
        self._under_way = None
        self.wait(now_ns)


@compiled
def place_rows(book: Book, row_ids: Integers, indices: Integers32, placed: Rows) -> int:
    """Write the rows of these ids into PLACED_KLINE[n], and return how many there are.

    indices: int32[symbols], what the batch calls each symbol. A row that was dropped while it was unsaved is no row.
    """
    count = 0
    for row_id in row_ids:
        symbol, interval, slot = locate(book, row_id)
        row = book.rows[symbol, interval, slot]
        if row.open_time > 0:
            placed[count].symbol = indices[symbol]
            placed[count].interval = interval
            placed[count].kline = row
            count += 1
    return count
