"""What the store does not have yet, and the batches that bring it there.

Decides when a batch is due and what is in it: a consistent cut of rows and of their symbols' marks. There is one batch
at a time; until it is acknowledged its rows count as under way, and when it is lost they are unsaved again. Knows no
trades, and only a row's place of its contents.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from services.engine.book import Book, numbered, settle
from services.engine.dirty import DirtyRows
from shared.compiled import compiled
from shared.config import Engine as EngineConfig
from shared.interval import INTERVALS
from shared.kline import PLACED_KLINE
from shared.wire import DirtyBatch, Persisted, Rows, StorePoint, SymbolMark

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
PASSING_MAX = 200_000
"""Rows older than the window that wait for the store; further answers are dropped and counted."""

Passing = list[tuple[int, int, Rows]]
"""Symbol, interval, and KLINE[n] that have no place in the book."""


class Saving:
    def __init__(
        self,
        config: EngineConfig,
        session: int,
        book: Book,
        unsaved: DirtyRows,
        symbols: list[str],
        marks_of: Callable[[NDArray[np.int64]], list[SymbolMark]],
    ) -> None:
        """`symbols` are the engine's, by the book's index; `marks_of` returns what the store keeps of some."""
        self._config = config
        self._session = session
        self._book = book
        self._unsaved = unsaved
        self._symbols = symbols
        self._marks_of = marks_of
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
        self._spoken = np.zeros(0, np.int64)
        """The symbols whose marks are in the batch under way."""
        self._passing: Passing = []
        self._passing_under_way: Passing = []

    @property
    def under_way(self) -> bool:
        """A batch is unacknowledged."""
        return self._under_way is not None

    @property
    def unsaved_rows(self) -> int:
        """How many rows the store does not have yet."""
        under_way = 0 if self._under_way is None else len(self._under_way)
        return len(self._unsaved) + under_way + _count(self._passing + self._passing_under_way)

    def due_at(self) -> int | None:
        """Return when to look whether there is something to be saved, ns; None while a batch is under way."""
        return self._at if self._under_way is None else None

    def wait(self, now_ns: int) -> None:
        """The next batch is due after the configured interval."""
        self._at = now_ns + self._config.save_interval_ms * 1_000_000

    def nobody_there(self, now_ns: int) -> None:
        """There is no store: to make a batch costs more than all of a turn's trades, and would be for nothing."""
        self._at = self._rest_until = now_ns + AWAY_MS * 1_000_000

    def hurry(self) -> None:
        """The next batch is due at once."""
        self._at = 0

    def room_for(self, rows: int) -> bool:
        """Say whether so many rows may be passed on."""
        return _count(self._passing) + rows <= PASSING_MAX

    def pass_on(self, symbol: int, interval: int, rows: Rows) -> None:
        """Take KLINE[n] that have no place in the book, in the book's decimals, for the next batch."""
        self._passing.append((symbol, interval, rows))

    def waiting(self) -> list[tuple[int, int, int]]:
        """Return the symbol, the interval and the first open time of what is passed on and not acknowledged."""
        parts = self._passing_under_way + self._passing
        return [(symbol, interval, int(rows["open_time"].min())) for symbol, interval, rows in parts if len(rows)]

    def passing_of(self, symbol: int) -> list[Rows]:
        """Return what waits of a symbol and has no place in the book: its own, to be rescaled with that."""
        return [rows for waiting, _, rows in self._passing + self._passing_under_way if waiting == symbol]

    def due(self, now_ns: int) -> bool:
        """Say whether it is time to save what is unsaved, if anything is."""
        if self._under_way is not None:
            return False
        # What is gathered and not settled will be a row an interval, at the most.
        waiting = len(self._unsaved) + int(self._book.unsettled.total[0]) * len(INTERVALS)
        waiting -= sum(int(self._unsaved.dirty.by_group[symbol]) for symbol in self.refused)
        return now_ns >= self._at or (waiting >= self._config.save_rows and now_ns >= self._rest_until)

    def take(self, now_ns: int, exchange_time: int, last: bool) -> DirtyBatch | None:
        """Return the next batch if one is due, or with `last` whatever is unsaved."""
        if self._under_way is not None or not (last or self.due(now_ns)):
            return None
        settle(self._book, False)
        self.wait(now_ns)
        kept = np.zeros(len(self._book.symbols), bool)
        kept[[symbol for symbol, again_at in self.refused.items() if now_ns < again_at]] = True
        numbers = self._unsaved.take(BATCH_ROWS_MAX, kept)
        # What is left of a symbol is in a later batch, and neither its frontier nor older klines must come before that.
        whole = ~(self._unsaved.groups() | kept)[: len(self._symbols)]
        changed = np.flatnonzero(self._book.symbols["mark_changed"][: len(self._symbols)].astype(bool) & whole)
        passing = [part for part in self._passing if whole[part[0]]]
        if not len(numbers) and not len(changed) and not passing:
            return None
        self._under_way, self._sent_at = numbers, now_ns
        self._passing, self._passing_under_way = [part for part in self._passing if not whole[part[0]]], passing
        self.batch += 1
        return self._batch_of(numbers, changed, exchange_time)

    def _batch_of(self, numbers: NDArray[np.int64], changed: NDArray[np.int64], exchange_time: int) -> DirtyBatch:
        """Make a batch of the rows of these numbers, of what is passed on, and of the marks of their symbols.

        changed: symbols of which the marks have, and nothing else need have.
        """
        symbols = numbers % len(self._book.symbols)
        passed = np.array([symbol for symbol, _, _ in self._passing_under_way], int)
        spoken = np.unique(np.concatenate([symbols, changed, passed]))
        places = np.zeros(len(self._symbols), np.int32)
        places[spoken] = np.arange(len(spoken))
        self._book.symbols["mark_changed"][spoken] = 0
        self._spoken = spoken
        rows = np.empty(len(numbers), PLACED_KLINE)
        parts = [rows[: place_rows(self._book, numbers, places, rows)]]
        for symbol, interval, klines in self._passing_under_way:
            passing = np.zeros(len(klines), PLACED_KLINE)
            passing["symbol"], passing["interval"], passing["kline"] = places[symbol], interval, klines
            parts.append(passing)
        placed = b"".join(part.tobytes() for part in parts)
        return DirtyBatch(self._session, self.batch, exchange_time, self._marks_of(spoken), placed, self.point)

    def acknowledge(self, event: Persisted, now_ns: int) -> bool:
        """The store has a batch, except for the symbols that it refuses; False if it is not the one under way."""
        if (event.session, event.batch) != (self._session, self.batch) or self._under_way is None:
            return False
        self.point = StorePoint(event.tables, event.session, event.batch)
        self._unsaved.release(self._under_way)
        names = set(event.refused)
        refused = [symbol for symbol in self._spoken.tolist() if self._symbols[symbol] in names]
        for symbol in self._spoken.tolist() if self.refused else ():
            self.refused.pop(symbol, None)
        self.refused |= dict.fromkeys(refused, now_ns + REFUSED_AGAIN_NS)
        if refused:
            # A row of these that leaves memory leaves it unsaved.
            self._unsaved.mark(self._under_way[np.isin(self._under_way % len(self._book.symbols), refused)])
            self._book.symbols["mark_changed"][refused] = 1
        self._under_way = None
        kept = [part for part in self._passing_under_way if part[0] in self.refused]
        self._passing, self._passing_under_way = kept + self._passing, []
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
        self._book.symbols["mark_changed"][self._spoken] = 1
        self._passing = self._passing_under_way + self._passing
        self._passing_under_way = []
        self._under_way = None
        self.wait(now_ns)


def _count(passing: Passing) -> int:
    return sum(len(rows) for _, _, rows in passing)


@compiled
def place_rows(book, numbers, places, placed):  # type: ignore[no-untyped-def]
    """Write the rows of these numbers into PLACED_KLINE[n], and return how many there are.

    places: int32[symbols], what the batch calls each symbol. A row that was forgotten while it was unsaved is no row.
    """
    count = 0
    for number in numbers:
        symbol, interval, place = numbered(book, number)
        row = book.rows[symbol, interval, place]
        if row.open_time > 0:
            placed[count].symbol = places[symbol]
            placed[count].interval = interval
            placed[count].kline = row
            count += 1
    return count
