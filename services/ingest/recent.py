"""The trades of the last minutes in memory, so that what an engine lost need not be asked of the exchange again.

Decides which part of a request is answered from memory, and which is left to REST. Every row has the index of the
symbol's row before it, so that the cost of an answer is in proportion to its size. An id is answered only if its row is
here: ranges are covered by what was received, never by what was expected. A trade with a lower id and a later time says
that a symbol's ids have begun again, and its older rows are forgotten; should that be wrong, it costs a request to
REST. Knows no socket and no clock.

A crash costs the memory; REST has the same trades.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Integers, Rows
from shared.compiled import allocating, compiled, fixed
from shared.kline import TRADE
from shared.wire import Covered, FetchTrades, Instrument, Trades, instruments_of, pack_instruments, trade_rows

ROWS_MAX = 500_000
"""28 MB: 100 s at 5,000 trades/s, and minutes of an ordinary market. An engine that restarts misses seconds."""
INSTRUMENTS_MAX = 10_000
"""Symbols, each once for all decimals that it had; when there are more, the memory is emptied."""
PART_ROWS_MAX = 20_000
"""Rows of one answer: 1 MB."""
LATE_MAX = 32
"""Rows older than the range, one after the other, before a search ends: late trades may hide newer ones behind them."""
TOGETHER_MAX = 1_000
"""Ids of one page of REST: two missing ranges that fit one are requested together, with what is known between them."""
BROKEN, NOTHING_YET = -2, -1


class Answer(NamedTuple):
    parts: list[Trades]
    """What is in memory."""
    rest: list[FetchTrades]
    """What is not, and has to be asked of REST."""


class Recent:
    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows = np.zeros(rows_max, TRADE)
        """A ring buffer; `symbol` is an index into the instruments here."""
        self._before = np.zeros(rows_max, np.int64)
        """For each row of the ring, the row before it of the same symbol; rows are counted from 1."""
        self._added = np.zeros(1, np.int64)
        """How many rows were ever added."""
        self._clear()
        memory = self._rows, self._before, self._added
        self._add = fixed(_add, np.zeros(0, TRADE), self._batch, self._last_row, self._highest, self._tops, *memory)

    def _clear(self) -> None:
        self._instruments: list[Instrument] = []
        self._instrument_indexes: dict[Instrument, int] = {}
        self._symbol_indexes: dict[str, int] = {}
        self._last_row = np.zeros(INSTRUMENTS_MAX, np.int64)
        """By symbol: its last row, 0 if it has none."""
        self._highest = np.full(INSTRUMENTS_MAX, BROKEN, np.int64)
        """By symbol: the highest id since its stream began; NOTHING_YET without one, BROKEN once it was lost."""
        self._tops = np.zeros((2, INSTRUMENTS_MAX), np.int64)
        """By symbol: the highest id in memory, and the latest time."""
        self._packed = b""
        """The packed instruments of the last batch, ..."""
        self._batch = np.zeros((2, 0), np.int64)
        """... and for each of them, the indexes of instrument and symbol here."""

    def add(self, trades: Trades) -> None:
        """Remember a batch of the stream."""
        if trades.instruments != self._packed:
            self._take_instruments(trades)
        memory = self._rows, self._before, self._added
        self._add(trade_rows(trades.rows), self._batch, self._last_row, self._highest, self._tops, *memory)

    def _take_instruments(self, trades: Trades) -> None:
        """Index the instruments of a batch. The next batches usually have the same table."""
        instruments = instruments_of(trades)
        if len(self._instruments) + len(instruments) > INSTRUMENTS_MAX:
            self._clear()
        indexes = [self._instrument_index(instrument) for instrument in instruments]
        symbols = [self._symbol_indexes[instrument.symbol] for instrument in instruments]
        self._batch = np.array([indexes, symbols], np.int64)
        self._packed = trades.instruments

    def streams_began(self, symbols: Iterable[str]) -> None:
        """The streams of these symbols have begun: from here on, every trade comes."""
        for symbol in symbols:
            self._highest[self._symbol_index(symbol)] = NOTHING_YET

    def streams_ended(self, symbol: str | None = None) -> None:
        """A symbol's stream, or all, was lost or unsubscribed: there may be trades that never come."""
        if symbol is None:
            self._highest[:] = BROKEN
        elif symbol in self._symbol_indexes:
            self._highest[self._symbol_indexes[symbol]] = BROKEN

    def last_row(self, symbol: str) -> int:
        """Return the row of a symbol's last trade, counted from 1; another one after every trade. 0: none."""
        index = self._symbol_indexes.get(symbol)
        return int(self._last_row[index]) if index is not None else 0

    def answer(self, ask: FetchTrades) -> Answer:
        """Answer a request for ids as far as memory goes. One that begins at a time is left to REST."""
        symbol = self._symbol_indexes.get(ask.symbol)
        if symbol is None or not ask.first_id:
            return Answer([], [ask])
        last_row = int(self._last_row[symbol])
        last_id = ask.last_id
        if last_id < 0:
            # Newer trades come by the stream: up to here is all there is.
            last_id = int(self._highest[symbol])
            if last_row <= self._added[0] - len(self._rows) or last_id < ask.first_id - 1:
                return Answer([], [ask])
            if last_id < ask.first_id:
                instrument = self._instruments[self._rows[last_row % len(self._rows)]["symbol"]]
                return Answer([Trades(pack_instruments([instrument]), b"")], [])
        found = _find(last_row, self._rows, self._before, self._added, ask.first_id, last_id)
        rows = self._rows[found]
        rows = rows[np.unique(rows["id"], return_index=True)[1]]
        runs = _runs(rows["id"])
        rest: list[FetchTrades] = []
        first_id = ask.first_id
        for begin, end in [*runs, (last_id + 1, last_id + 1)]:
            if first_id < begin:
                if rest and begin - rest[-1].first_id <= TOGETHER_MAX:
                    first_id = rest.pop().first_id
                rest.append(FetchTrades(ask.symbol, first_id, begin - 1, ask.from_time, ask.to_time))
            first_id = end + 1
        return Answer(self._parts(rows, runs), rest)

    def last_trades(self) -> list[Trades]:
        """Return the last trade of every symbol: its id shows an engine that does not have it what else is missing."""
        remembered = self._last_row[self._last_row > max(0, int(self._added[0]) - len(self._rows))]
        if not len(remembered):
            return []
        rows = self._rows[remembered % len(self._rows)]
        time = int(rows["time"].max())
        return [Trades(part.instruments, part.rows, time) for part in self._parts(rows, [])]

    def _parts(self, rows: "NDArray[np.void]", runs: list[tuple[int, int]]) -> list[Trades]:
        """Return rows as messages that cover their ids."""
        parts = []
        for begin in range(0, len(rows), PART_ROWS_MAX):
            part = rows[begin : begin + PART_ROWS_MAX].copy()
            indexes, part["symbol"] = np.unique(part["symbol"], return_inverse=True)
            low, high = int(part["id"][0]), int(part["id"][-1])
            covered = [
                Covered(0, max(first, low), min(last, high)) for first, last in runs if first <= high and last >= low
            ]
            instruments = pack_instruments([self._instruments[index] for index in indexes.tolist()])
            parts.append(Trades(instruments, part.tobytes(), 0, covered))
        return parts

    def _instrument_index(self, instrument: Instrument) -> int:
        index = self._instrument_indexes.get(instrument)
        if index is None:
            index = self._instrument_indexes[instrument] = len(self._instruments)
            self._instruments.append(instrument)
            self._symbol_index(instrument.symbol)
        return index

    def _symbol_index(self, name: str) -> int:
        return self._symbol_indexes.setdefault(name, len(self._symbol_indexes))


def warm_up() -> None:
    """Compile, or load what was compiled: the first trades must not wait for it."""
    recent = Recent(10)
    recent.add(Trades(pack_instruments([Instrument("X", 0, 0)]), np.zeros(1, TRADE).tobytes()))
    recent.answer(FetchTrades("X", 1, 1))


def _runs(ids: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the ranges of consecutive ids, both ends inclusive. `ids` ascend."""
    if not len(ids):
        return []
    cuts = np.flatnonzero(np.diff(ids) != 1)
    firsts = ids[np.concatenate([[0], cuts + 1])]
    lasts = ids[np.concatenate([cuts, [len(ids) - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


@compiled
def _add(
    trades: Rows,
    batch: Integers,
    last_row: Integers,
    highest: Integers,
    tops: Integers,
    rows: Rows,
    before: Integers,
    added: Integers,
) -> None:
    total = added[0]
    slot = total % len(rows)
    for n in range(len(trades)):
        instrument = trades[n].symbol
        symbol = batch[1, instrument]
        if trades[n].id < tops[0, symbol] and trades[n].time > tops[1, symbol]:
            # Ids have begun again: the rows in memory are of another sequence, and say nothing of this one.
            last_row[symbol] = 0
            tops[0, symbol] = 0
            if highest[symbol] != BROKEN:
                highest[symbol] = NOTHING_YET
        tops[0, symbol] = max(tops[0, symbol], trades[n].id)
        tops[1, symbol] = max(tops[1, symbol], trades[n].time)
        total += 1
        slot = slot + 1 if slot + 1 < len(rows) else 0
        rows[slot] = trades[n]
        rows[slot].symbol = batch[0, instrument]
        before[slot] = last_row[symbol]
        last_row[symbol] = total
        if highest[symbol] != BROKEN:
            highest[symbol] = max(highest[symbol], trades[n].id)
    added[0] = total


@allocating
def _find(row: int, rows: Rows, before: Integers, added: Integers, first_id: int, last_id: int) -> Integers:
    """Return the slots of a symbol's rows with ids in [first_id, last_id], from row `row` backwards."""
    count = 0
    late = 0
    at = row
    while at > 0 and at > added[0] - len(rows) and late <= LATE_MAX:
        late = late + 1 if rows[at % len(rows)].id < first_id else 0
        count += 1
        at = before[at % len(rows)]
    found = np.empty(count, np.int64)
    kept = 0
    at = row
    for _ in range(count):
        slot = at % len(rows)
        if first_id <= rows[slot].id <= last_id:
            found[kept] = slot
            kept += 1
        at = before[slot]
    return found[:kept]
