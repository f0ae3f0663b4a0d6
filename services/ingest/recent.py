"""The trades of the last minutes, so that what an engine lost need not be asked of the exchange again.

Decides what of a question can be answered from memory, and what is left of it for REST. Every row knows the one before
it of the same symbol, so that an answer costs what it holds. An id is answered for only if its row is here: ranges are
covered by what was received, never by what was expected. A symbol whose ids begin anew, a lower one with a later time,
is forgotten: that it never happens to one sequence is not sure, but costs no more than a question to REST. Knows no
socket and no clock.

A crash costs the memory; REST has the same trades.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.compiled import allocating, compiled, fixed
from shared.kline import TRADE
from shared.wire import Covered, FetchTrades, Instrument, Trades, instruments_of, pack_instruments, trade_rows

ROWS_MAX = 500_000
"""28 MB: 100 s at 5,000 trades/s, and minutes of an ordinary market. An engine that restarts lacks seconds."""
INSTRUMENTS_MAX = 10_000
"""Symbols, each once for all decimals that it had; beyond them memory begins anew."""
PART_ROWS_MAX = 20_000
"""Rows of one answer: 1 MB."""
STRAYS_MAX = 32
"""Rows in a row that came late, before a search gives up: what it misses is asked of REST."""
TOGETHER_MAX = 1_000
"""Ids that one question to REST costs no more for: what is known between two missing ranges is asked for with them."""
BROKEN, NOTHING_YET = -2, -1


class Answer(NamedTuple):
    parts: list[Trades]
    """What is known; empty if nothing is."""
    rest: list[FetchTrades]
    """What is not."""


class Recent:
    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows = np.zeros(rows_max, TRADE)
        """A ring; `symbol` is the number of the instrument."""
        self._before = np.zeros(rows_max, np.int64)
        """For each row of the ring, which row it was that the same symbol had before; rows are counted from 1."""
        self._added = np.zeros(1, np.int64)
        """How many rows there were, ever."""
        self._begin()
        memory = self._rows, self._before, self._added
        self._add = fixed(_add, np.zeros(0, TRADE), self._spoken, self._newest, self._highest, self._tops, *memory)

    def _begin(self) -> None:
        self._instruments: list[Instrument] = []
        self._numbers: dict[Instrument, int] = {}
        self._symbols: dict[str, int] = {}
        self._newest = np.zeros(INSTRUMENTS_MAX, np.int64)
        """By symbol: its last row, 0 if it has none."""
        self._highest = np.full(INSTRUMENTS_MAX, BROKEN, np.int64)
        """By symbol: the highest id since its stream began, as long as no connection was lost since."""
        self._tops = np.zeros((2, INSTRUMENTS_MAX), np.int64)
        """By symbol: the highest id that is remembered, and the latest time."""
        self._packed = b""
        """The instruments of the last batch, ..."""
        self._spoken = np.zeros((2, 0), np.int64)
        """... and for each of them, the numbers of instrument and symbol here."""

    def add(self, trades: Trades) -> None:
        """Remember a batch of the stream."""
        if trades.instruments != self._packed:
            self._learn(trades)
        memory = self._rows, self._before, self._added
        self._add(trade_rows(trades.rows), self._spoken, self._newest, self._highest, self._tops, *memory)

    def _learn(self, trades: Trades) -> None:
        """Know what the rows of a batch speak of: the next batches, as a rule, speak of the same."""
        instruments = instruments_of(trades)
        if len(self._instruments) + len(instruments) > INSTRUMENTS_MAX:
            self._begin()
        numbers = [self._number(instrument) for instrument in instruments]
        symbols = [self._symbols[instrument.symbol] for instrument in instruments]
        self._spoken = np.array([numbers, symbols], np.int64)
        self._packed = trades.instruments

    def begins(self, symbols: Iterable[str]) -> None:
        """The streams of these symbols have begun: from here on, everything comes."""
        for symbol in symbols:
            self._highest[self._symbol(symbol)] = NOTHING_YET

    def breaks(self, symbol: str | None = None) -> None:
        """A symbol's stream, or all, was lost or given up: trades may be made that never come."""
        if symbol is None:
            self._highest[:] = BROKEN
        elif symbol in self._symbols:
            self._highest[self._symbols[symbol]] = BROKEN

    def heard(self, symbol: str) -> int:
        """Return a number that is another one after every trade of a symbol."""
        place = self._symbols.get(symbol)
        return int(self._newest[place]) if place is not None else 0

    def answer(self, ask: FetchTrades) -> Answer:
        """Answer a question for ids as far as memory goes. One that begins at a time is not answered."""
        symbol = self._symbols.get(ask.symbol)
        if symbol is None or not ask.first_id:
            return Answer([], [ask])
        newest = int(self._newest[symbol])
        last_id = ask.last_id
        if last_id < 0:
            # The stream brings whatever is newer: up to here is all there is.
            last_id = int(self._highest[symbol])
            if newest <= self._added[0] - len(self._rows) or last_id < ask.first_id - 1:
                return Answer([], [ask])
            if last_id < ask.first_id:
                newest_of = self._instruments[self._rows[newest % len(self._rows)]["symbol"]]
                return Answer([Trades(pack_instruments([newest_of]), b"")], [])
        found = _find(newest, self._rows, self._before, self._added, ask.first_id, last_id)
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

    def newest(self) -> list[Trades]:
        """Return the last trade of every symbol: to an engine that has it not, it shows what else is missing."""
        remembered = self._newest[self._newest > max(0, int(self._added[0]) - len(self._rows))]
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
            numbers, part["symbol"] = np.unique(part["symbol"], return_inverse=True)
            low, high = int(part["id"][0]), int(part["id"][-1])
            covered = [
                Covered(0, max(first, low), min(last, high)) for first, last in runs if first <= high and last >= low
            ]
            instruments = pack_instruments([self._instruments[number] for number in numbers.tolist()])
            parts.append(Trades(instruments, part.tobytes(), 0, covered))
        return parts

    def _number(self, instrument: Instrument) -> int:
        number = self._numbers.get(instrument)
        if number is None:
            number = self._numbers[instrument] = len(self._instruments)
            self._instruments.append(instrument)
            self._symbol(instrument.symbol)
        return number

    def _symbol(self, name: str) -> int:
        return self._symbols.setdefault(name, len(self._symbols))


def warm_up() -> None:
    """Compile what is to be compiled, with the arguments that it will meet."""
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
def _add(trades, spoken, newest, highest, tops, rows, before, added):  # type: ignore[no-untyped-def]
    total = added[0]
    place = total % len(rows)
    for n in range(len(trades)):
        spoken_of = trades[n].symbol
        symbol = spoken[1, spoken_of]
        if trades[n].id < tops[0, symbol] and trades[n].time > tops[1, symbol]:
            # Ids begin anew: what is remembered was another sequence, and says nothing of this one.
            newest[symbol] = 0
            tops[0, symbol] = 0
            if highest[symbol] != BROKEN:
                highest[symbol] = NOTHING_YET
        tops[0, symbol] = max(tops[0, symbol], trades[n].id)
        tops[1, symbol] = max(tops[1, symbol], trades[n].time)
        total += 1
        place = place + 1 if place + 1 < len(rows) else 0
        rows[place] = trades[n]
        rows[place].symbol = spoken[0, spoken_of]
        before[place] = newest[symbol]
        newest[symbol] = total
        if highest[symbol] != BROKEN:
            highest[symbol] = max(highest[symbol], trades[n].id)
    added[0] = total


@allocating
def _find(row, rows, before, added, first_id, last_id):  # type: ignore[no-untyped-def]
    """Return the places of a symbol's rows with ids in [first_id, last_id], from its newest row back."""
    count = 0
    strays = 0
    at = row
    while at > 0 and at > added[0] - len(rows) and strays <= STRAYS_MAX:
        strays = strays + 1 if rows[at % len(rows)].id < first_id else 0
        count += 1
        at = before[at % len(rows)]
    found = np.empty(count, np.int64)
    kept = 0
    at = row
    for _ in range(count):
        place = at % len(rows)
        if first_id <= rows[place].id <= last_id:
            found[kept] = place
            kept += 1
        at = before[place]
    return found[:kept]
