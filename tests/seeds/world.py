"""Virtual time, and the exchange in it: what was traded, and what REST says of it."""

import heapq
import random
from bisect import bisect_right
from collections.abc import Callable

from shared.arrays import Rows
from shared.wire import IntervalKlines, kline_rows
from tests.engine.played import MINUTE, START, Trade, history, market, next_open

WINDOW = 64
"""Klines in memory: just more than the minutes of an hour, so that memory is outlived soon."""
PAGE = 40
"""Trades of one answer."""
ANNOUNCED = 60
"""Klines an interval of an announcement: an hour of minutes, as the engine needs to make the open hour of them."""
CALM_MS = 8 * MINUTE
"""Without faults in the end."""
SILENT_MS = 7 * MINUTE
"""Without trades in the end: longer than the engine waits for missing ids that no answer explains."""
HISTORY_MS = 90 * MINUTE


class World:
    """Virtual time, ms, and what is to happen in it."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.nature = random.Random(f"{seed}: the exchange")
        """What the exchange does of its own accord; a source of its own, so that the seed's other faults stay."""
        self.lot = 10**12 if random.Random(f"{seed}: how large").random() < 0.2 else 1
        """What is traded at once: of the larger, a few trades are worth more than 64 bits hold."""
        self.now = START
        self.faults = True
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, delay_ms: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + max(0, int(delay_ms)), self._number, what))

    def run(self, until: int) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = until

    def fails(self, chance: float) -> bool:
        return self.faults and self.source.random() < chance


class Exchange:
    """What was traded, and what REST says of it.

    Trades have ids that only rise here; on the wire they restart at 0 or 1 where a symbol was listed again.
    """

    def __init__(self, world: World, span_ms: int) -> None:
        source = world.source
        self.world = world
        self.reach_ms = source.choice([20 * MINUTE, 60 * MINUTE, 10**9])
        """How far back REST has trades; klines go back for ever."""
        self.trades: dict[str, list[Trade]] = {}
        for name in ("AUSDT", "BUSDT")[: source.randrange(1, 3)]:
            count = source.choice([4, 30, 120, 400])
            made = market(source.randrange(2**32), count, START - HISTORY_MS, HISTORY_MS + span_ms, first_id=0)
            # Silence in the end, or the last trades could not be there yet.
            self.trades[name] = [
                trade._replace(quantity=trade.quantity * world.lot)
                for trade in made
                if trade.time < START + span_ms - SILENT_MS
            ]
        self.falls = world.nature.random() < 0.2
        """Times fall from one id to the next, by up to minutes."""
        self.leaves_out = world.nature.random() < 0.3 and not self.falls
        """REST names some ids late, and some never. Where times fall too, one of them may belong in a minute before
        those that its neighbours say: that minute lacks it, final, and only `verify --against-exchange` finds it."""
        self.relisted: dict[str, int] = {}
        """By symbol: the first id after which ids restarted."""
        self.relisted_first = world.nature.choice((0, 1))
        """The id that they restart with."""
        self.strays: dict[tuple[str, int], int] = {}
        """By symbol and id: the time, long past, that a trade says which the exchange counts where it happened."""
        self._named_at: dict[tuple[str, int], float] = {}
        """By symbol and id: when REST begins to name it, for those that it leaves out at first."""
        for name in self.trades:
            self._alter(name)
        self._end = START + span_ms
        self._klines: dict[str, dict[str, tuple[Rows, list[int]]]] = {}
        """All klines there will be, and when each ends: what falls back in time, the exchange knew all along."""

    def _alter(self, name: str) -> None:
        nature, trades = self.world.nature, self.trades[name]
        if self.falls:
            for index, trade in enumerate(trades):
                if trade.time > START and nature.random() < 0.05:
                    time = max(START, trade.time - nature.choice([50, 5_000, 70_000, 170_000]))
                    trades[index] = trade._replace(time=time)
        if self.leaves_out:
            # That there was a last one, only a later trade could show: a void id is sent by the stream alone.
            last = max((trade.id for trade in trades if trade.trade_count), default=0)
            for trade in trades[:last]:
                if nature.random() < 0.05:
                    late = nature.choice([1_000, 20_000, 90_000, 10**12])
                    self._named_at[name, trade.id] = trade.time + late
        if nature.random() < 0.1 and len(trades) > 20 and not self.leaves_out:
            for index in nature.sample(range(len(trades) // 2, len(trades) - 1), 2):
                before, stray = trades[index - 1], trades[index]
                # One that is the first of its minute looks like one from before, where a symbol begins right there:
                # its minute lacks it then, which the audit alone shows.
                follows = before.trade_count and (name, before.id) not in self.strays
                follows = follows and before.time // MINUTE == stray.time // MINUTE
                if follows and stray.time > START + 2 * MINUTE and stray.trade_count:
                    self.strays[name, trades[index].id] = START - nature.choice([2, 30, 80]) * MINUTE
        # Where times fall, a trade of the new ids may fall back before the symbol's beginning: nobody asks for it then,
        # and the minute that it falls into lacks it.
        if nature.random() < 0.1 and len(trades) > 20 and not self.falls:
            begin = nature.randrange(len(trades) // 2, len(trades))
            if trades[begin].time > START + MINUTE and trades[begin].trade_count and not self.strays:
                self.relisted[name] = trades[begin].id

    def on_wire(self, symbol: str, trade: Trade) -> Trade:
        """Return a trade as it goes over the wire."""
        time = self.strays.get((symbol, trade.id), trade.time)
        return trade._replace(id=self.wire_id(symbol, trade.id), time=time)

    def wire_id(self, symbol: str, trade_id: int) -> int:
        """Return the id that goes over the wire."""
        begin = self.relisted.get(symbol, 10**18)
        return trade_id - begin + self.relisted_first if trade_id >= begin else trade_id

    def past(self, symbol: str) -> list[Trade]:
        """Return what was traded so far, in its order: a trade leaves with those before it, whatever its time says."""
        left = START - 10**9
        past = []
        for trade in self.trades[symbol]:
            left = max(left, trade.time)
            if left > self.world.now:
                break
            past.append(trade)
        return past

    def named(self, symbol: str) -> list[Trade]:
        """Return what REST names of a symbol's trades, with the ids of the wire: since it was listed last."""
        past = self.past(symbol)
        begin = self.relisted.get(symbol, 10**18)
        if past and past[-1].id >= begin:
            past = [trade for trade in past if trade.id >= begin]
        named_at = self._named_at
        return [
            self.on_wire(symbol, trade)
            for trade in past
            if trade.trade_count and named_at.get((symbol, trade.id), 0) <= self.world.now
        ]

    def klines(self, symbol: str, until: int, limit: int) -> dict[str, IntervalKlines]:
        """Return the last klines of each interval that are closed at `until`."""
        if symbol not in self._klines:
            whole = {part.interval: kline_rows(part.rows) for part in history(self.trades[symbol], self._end, 10**6)}
            self._klines[symbol] = {
                name: (rows, [next_open(name, time) for time in rows["open_time"].tolist()])
                for name, rows in whole.items()
            }
        closed = {name: rows[: bisect_right(ends, until)] for name, (rows, ends) in self._klines[symbol].items()}
        return {name: IntervalKlines(name, rows[-limit:].tobytes()) for name, rows in closed.items() if len(rows)}

    def page(self, symbol: str, first_id: int) -> list[Trade] | None:
        """Return what REST has from an id on, with the ids of the wire; None if that is too long ago."""
        found = [trade for trade in self.named(symbol) if trade.id >= first_id][:PAGE]
        if found and found[0].time < self.world.now - self.reach_ms:
            return None
        return found
