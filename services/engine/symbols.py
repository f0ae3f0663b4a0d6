"""The symbol table: names, indices and units of symbols, and what the instruments of a batch are in it.

A symbol keeps its index in the book for ever. Its decimals grow when the exchange's do, and never shrink. Batches of
the feed bring the same packed table of instruments with them again and again: what it means here is worked out once,
until somebody joins or grows. Knows no ids, no time and no message but the table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.engine.book import Book, settle
from services.engine.passing import Passing
from shared.arrays import Rows
from shared.decimals import INT64_MAX
from shared.interval import DAY_MS, GRID_3D_MS
from shared.kline import QUOTE_BASE, QUOTE_MAX
from shared.merging import rescale
from shared.wire import Instrument, Trades, instruments_of

TABLES_MAX = 1_000
"""Tables remembered: the feed's, and those of answers, which speak of one symbol each."""

POWER_MAX = 18
"""The largest power of ten in an int64."""


class Table(NamedTuple):
    """What a batch's instruments are in the book."""

    symbols: NDArray[np.int64]
    """The index of each, -1 if it has none."""
    price_factors: NDArray[np.int64]
    quantity_factors: NDArray[np.int64]
    """From the batch's units to the book's."""
    finer: dict[int, tuple[int, int]]
    """Instruments with decimals that their symbol's numbers are too large for, and by what their prices and quantities
    must be divided."""


class SymbolTable:
    def __init__(self, book: Book, passing: Passing) -> None:
        self._book = book
        self._passing = passing
        self.names: list[str] = []
        """By the book's index, as all that follows."""
        self.index: dict[str, int] = {}
        self.streams: list[str] = []
        self.grids: list[int] = []
        """An open time of each symbol's 3d klines."""
        self._packed: bytes | None = None
        self._newest: Table
        self._tables: dict[bytes, Table] = {}

    def add(self, name: str, stream: str, grid_3d: int) -> int:
        """Return the index of a symbol that trades from here on, with nothing known of it; -1 if the book is full."""
        symbol = self.index.get(name, len(self.names))
        if symbol == len(self._book.symbols):
            return -1
        is_new = symbol == len(self.names)
        if is_new:
            self.names.append(name)
            self.streams.append(stream)
            self.grids.append(grid_3d)
            self.index[name] = symbol
        self.streams[symbol], self.grids[symbol] = stream, grid_3d
        state = self._book.symbols[symbol]
        state["last_id"], state["gap_count"], state["active"], state["mark_changed"] = -1, 0, 1, 1
        state["newest_time"] = state["seen_time"] = state["final_at"] = 0
        state["fall_ms"] = state["withdrawn"] = state["contradicted"] = 0
        state["grid"] = grid_3d % GRID_3D_MS // DAY_MS
        self._forget_tables()
        return symbol

    def set_decimals(self, symbol: int, price: int, quantity: int) -> None:
        state = self._book.symbols[symbol]
        state["price_decimals"], state["quantity_decimals"] = price, quantity
        self._forget_tables()

    def grow(self, symbol: int, price_decimals: int, quantity_decimals: int) -> bool:
        """Make a symbol's decimals at least these. Return False if its numbers would not fit any more."""
        state = self._book.symbols[symbol]
        price = max(0, price_decimals - int(state["price_decimals"]))
        quantity = max(0, quantity_decimals - int(state["quantity_decimals"]))
        if not price and not quantity:
            return True
        settle(self._book, False)
        rows = self._book.rows[symbol].flatten()
        passing = self._passing.rows_of(symbol)
        if not all(fits(each, price, quantity) for each in (rows, *passing)):
            return False
        for each in (rows, *passing):
            rescale(each, 10**price, 10**quantity)
        self._book.rows[symbol] = rows.reshape(self._book.rows.shape[1:])
        self.set_decimals(symbol, int(state["price_decimals"]) + price, int(state["quantity_decimals"]) + quantity)
        state["mark_changed"] = 1
        return True

    def table_of(self, batch: Trades) -> Table:
        """Return what a batch's instruments are here; symbols grow to its decimals if they can. Raises WireError."""
        if batch.instruments == self._packed:
            return self._newest
        table = self._tables.get(batch.instruments)
        if table is None:
            table = self._table(instruments_of(batch))
            if len(self._tables) >= TABLES_MAX:
                self._tables.clear()
            self._tables[batch.instruments] = table
        self._packed, self._newest = batch.instruments, table
        return table

    def _table(self, instruments: list[Instrument]) -> Table:
        symbols = np.array([self.index.get(instrument.symbol, -1) for instrument in instruments], np.int64)
        prices = np.array([instrument.price_decimals for instrument in instruments], np.int64)
        quantities = np.array([instrument.quantity_decimals for instrument in instruments], np.int64)
        states = self._book.symbols
        is_finer = (prices > states["price_decimals"][symbols]) | (quantities > states["quantity_decimals"][symbols])
        # All grow first: a table may speak of a symbol in the decimals that it had before, too.
        unfit = [
            index
            for index in np.flatnonzero(is_finer & (symbols >= 0)).tolist()
            if not self.grow(int(symbols[index]), int(prices[index]), int(quantities[index]))
        ]
        price, quantity = states["price_decimals"][symbols] - prices, states["quantity_decimals"][symbols] - quantities
        finer = {index: (10 ** max(0, -int(price[index])), 10 ** max(0, -int(quantity[index]))) for index in unfit}
        return Table(symbols, 10 ** np.maximum(price, 0), 10 ** np.maximum(quantity, 0), finer)

    def _forget_tables(self) -> None:
        self._packed = None
        self._tables.clear()


def fits(rows: Rows, price: int, quantity: int) -> bool:
    """Say whether the numbers of KLINE[n] fit with so many decimals more."""
    if max(price, quantity) > POWER_MAX:
        return False
    high = int(rows["quote_volume_high"].max(initial=0))
    quote = high * QUOTE_BASE + int(rows["quote_volume"][rows["quote_volume_high"] == high].max(initial=0))
    return bool(
        quote * 10 ** (price + quantity) <= QUOTE_MAX
        and int(rows["high"].max(initial=0)) * 10**price <= INT64_MAX
        and int(rows["volume"].max(initial=0)) * 10**quantity <= INT64_MAX
    )


def coarser(rows: Rows, instrument: int, price_divisor: int, quantity_divisor: int) -> bool:
    """Divide the prices and quantities of an instrument's trades, TRADE[n]; False if not without a remainder."""
    own = rows["symbol"] == instrument
    prices, quantities = rows["price"][own], rows["quantity"][own]
    if (prices % price_divisor).any() or (quantities % quantity_divisor).any():
        return False
    rows["price"][own], rows["quantity"][own] = prices // price_divisor, quantities // quantity_divisor
    return True
