"""A history of all kinds, made by real engines and saved by the real store: what `klagg verify` is judged with.

Each symbol is of another kind; all of them are true, however odd some look.
"""

import random
from collections.abc import Iterable

import numpy as np
from msgspec.structs import replace

from services.persist import store
from shared.arrays import Rows
from shared.calendar import next_open_time
from shared.interval import INTERVAL_NAMES
from shared.kline import AUDITED, CLOSED, FINAL, UNEXPLAINED
from shared.wire import DirtyBatch, RemoveSymbol, SymbolMark, Unexplained, placed_rows
from tests.engine.played import MINUTE, START, PlayedEngine, Trade, batch, history, market

HOURS = 3
END = START + HOURS * 60 * MINUTE
SAVE_EVERY = 30
"""Minutes: rows leave the engine's memory after 100."""
SEAM = START + 2 * MINUTE
RELISTED = START + 150 * MINUTE
REMOVED = START + 60 * MINUTE
HOLES = (("open", 60 * MINUTE), ("audited", 90 * MINUTE))
"""Ids that nobody has explained, and about when, after `START`."""


def dense(seed: int, first_id: int = 0, begin: int = START, end: int = END, every_s: int = 20) -> list[Trade]:
    """Return a market's trades, some of them void, with silent minutes in between."""
    return market(seed, (end - begin) // (every_s * 1_000), begin, end - begin, first_id)


def falling(seed: int) -> list[Trade]:
    """Return trades of which some are older than the one before them, as spot's of 2017 are: by up to four minutes."""
    source = random.Random(seed)
    return [
        trade._replace(time=max(START, trade.time - source.randrange(4 * MINUTE))) if source.random() < 0.1 else trade
        for trade in dense(seed)
    ]


def with_holes(trades: list[Trade]) -> tuple[list[Trade], list[Unexplained]]:
    """Return the trades without some of them, and the ids of those."""
    left, holes = list(trades), []
    for outcome, after in HOLES:
        index = next(n for n, trade in enumerate(left) if trade.time > START + after)
        before, lost, following = left[index - 1], left[index : index + 3], left[index + 3]
        holes.append(Unexplained(lost[0].id, lost[-1].id, before.time, following.time, outcome))
        del left[index : index + 3]
    return left, holes


def past(seed: int) -> list[Trade]:
    """Return trades of three days and of the last two hours before `SEAM`."""
    days = market(seed, 400, SEAM - 3 * 1440 * MINUTE, 3 * 1440 * MINUTE - 120 * MINUTE, 1)
    return days + dense(seed + 1, days[-1].id + 1, SEAM - 120 * MINUTE, SEAM)


def full(seed: int) -> list[Trade]:
    """Return trades of which a kline of five minutes holds more than 64 bits do, and a minute does not."""
    source = random.Random(seed)
    times = range(START, END, 30_000)
    return [
        Trade(trade_id, time, source.randrange(1, 4), 3 * 10**18, 1, source.randrange(2))
        for trade_id, time in enumerate(times)
    ]


class Made:
    """A day's engine and the store it saves into."""

    def __init__(self, connection: store.Connection) -> None:
        self._connection = connection
        self.played = PlayedEngine(START, symbols_max=16)
        self._waiting: list[tuple[int, str, Trade]] = []
        self._holes: dict[str, list[Unexplained]] = {}

    def trade(self, symbol: str, trades: Iterable[Trade], holes: Iterable[Unexplained] = ()) -> None:
        """Have trades come in the order of their ids, none before the exchange has come to its time."""
        comes = 0
        for trade in trades:
            comes = max(comes, trade.time)
            self._waiting.append((comes, symbol, trade))
        self._holes[symbol] = list(holes)

    def until(self, end: int) -> None:
        """Run to a time, and save now and then."""
        while self.played.time < end:
            time = min(end, self.played.time // MINUTE * MINUTE + MINUTE)
            due = sorted((item for item in self._waiting if item[0] < time), key=lambda item: item[0])
            self._waiting = [item for item in self._waiting if item[0] >= time]
            self.played.until(time - 1)
            for symbol in dict.fromkeys(item[1] for item in due):
                self.played.apply(batch((item[2] for item in due if item[1] == symbol), symbol=symbol))
            self.played.until(time)
            if (time - START) // MINUTE % SAVE_EVERY == 0:
                self.save()
        self.save()

    def save(self) -> None:
        while (saved := self.played.save()) is not None:
            store.save(self._connection, self._told(saved))

    def _told(self, saved: DirtyBatch) -> DirtyBatch:
        """Flag the ids that were left out as unexplained, in marks and rows."""
        rows = placed_rows(saved.rows).copy()
        marks = []
        for index, mark in enumerate(saved.marks):
            holes = [hole for hole in self._holes.get(mark.symbol, []) if hole.last_id < mark.last_id]
            if holes:
                mine = rows["symbol"] == index
                mark = _unexplained(mark, holes, rows, mine, self.played.time)
            marks.append(mark)
        return DirtyBatch(saved.session, saved.batch, saved.exchange_time, marks, rows.tobytes())


def _unexplained(mark: SymbolMark, holes: list[Unexplained], rows: Rows, mine: np.ndarray, time: int) -> SymbolMark:
    left = [gap for gap in mark.gaps if gap not in [(hole.first_id, hole.last_id) for hole in holes]]
    assert not left, left
    proven = int(rows["kline"]["open_time"][mine & (rows["interval"] == 0) & (rows["kline"]["id_count"] > 0)].max())
    for index in np.flatnonzero(mine).tolist():
        row, kline = rows[index], rows[index]["kline"]
        ends = next_open_time(INTERVAL_NAMES[row["interval"]], int(kline["open_time"]), mark.grid_3d)
        here = {hole.outcome for hole in holes if hole.from_time < ends and hole.to_time >= kline["open_time"]}
        flags = int(kline["flags"]) & ~(FINAL | UNEXPLAINED | AUDITED)
        flags |= UNEXPLAINED if "open" in here else AUDITED if here else 0
        if flags & CLOSED and not flags & UNEXPLAINED and ends <= proven:
            flags |= FINAL
        kline["flags"] = flags
    return replace(mark, gaps=left, unexplained=holes, proven_time=proven)


def make(connection: store.Connection) -> None:
    """Make a history of all kinds in empty tables."""
    made = Made(connection)
    played = made.played
    for symbol in ("PLAIN", "FALLEN", "HOLED", "RELISTED", "REMOVED", "FULL", "NEVER"):
        played.add(symbol)
    made.trade("PLAIN", dense(1))
    made.trade("FALLEN", falling(2))
    made.trade("FULL", full(11))
    made.trade("HOLED", *with_holes(dense(3)))
    old = dense(4, end=RELISTED - 5 * MINUTE)
    made.trade("RELISTED", old)
    made.trade("REMOVED", dense(5, end=REMOVED))
    made.until(SEAM + 30_000)
    for symbol, seed in (("BEGUN", 6), ("QUIET", 8)):
        trades = past(seed)
        played.add(symbol, history(trades, SEAM), SEAM)
        # What the exchange answers to the question for trades from the seam on: all ids up to here are before it.
        played.engine.book.symbols["last_id"][played.engine.table.index[symbol]] = trades[-1].id
        if symbol == "BEGUN":
            made.trade(symbol, dense(seed, trades[-1].id + 1, SEAM))
    made.save()
    made.until(REMOVED + 30_000)
    played.apply(RemoveSymbol("REMOVED", played.time))
    new = dense(9, begin=RELISTED)
    # That its ids have restarted shows by the first of them: that minute is the exchange's own. It counts by time.
    first = [trade._replace(id=old[-1].id + 1 + trade.id) for trade in new if trade.time < RELISTED + MINUTE]
    made.until(RELISTED + MINUTE + 30_000)
    played.apply(RemoveSymbol("RELISTED", played.time))
    played.add("RELISTED", history(old + first, RELISTED + MINUTE), RELISTED + MINUTE)
    played.engine.book.symbols["last_id"][played.engine.table.index["RELISTED"]] = len(first) - 1
    made.save()
    made.trade("RELISTED", new[len(first) :])
    made.until(END + 20_000)
    connection.execute("ANALYZE")
