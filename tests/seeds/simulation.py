"""All of it wired together, the faults of a seed, and what must be true in the end."""

from functools import partial
from typing import NamedTuple

import numpy as np

from services.engine.audit import MISMATCHED
from services.engine.engine import KlineEngine
from services.engine.gaps import FALL_MAX_MS
from services.engine.window import rows_to_load
from shared.config import AuditConfig, EngineConfig
from shared.interval import INTERVALS
from shared.kline import AUDITED, CLOSED, EXCHANGE, FINAL
from shared.wire import (
    AppEvent,
    FeedState,
    Load,
)
from tests.engine.played import FIELDS, MINUTE, MS, START, Trade, expected, next_open, number
from tests.seeds.feed import Feed
from tests.seeds.starts import wrong_starts
from tests.seeds.store import Store
from tests.seeds.world import CALM_MS, WINDOW, Exchange, World

SAVED_MS = 20_000
"""What came last is saved."""


class Simulation:
    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        source = world.source
        self.span_ms = source.choice([10, 40, 150]) * MINUTE
        self.exchange = Exchange(world, self.span_ms + CALM_MS)
        self.store = Store(world)
        resume_max = source.choice([2, 60])
        if self.exchange.falls:
            resume_max = 60  # Or a restart may be such an absence as `inject_fault` leaves out.
        self.config = EngineConfig(
            symbols_max=3, window=WINDOW, resume_max_ms=resume_max * MINUTE, silence_ask_ms=3_000
        )
        self.audit = AuditConfig(every_minutes=source.choice([1, 7, 60]))
        self.reseeded = self.lost = self.engines = 0
        self.store_known = 0
        self.start_engine()
        self.start_feed()
        self.schedule_trades()
        self.turn()
        self.store_goes_back = world.nature.random() < 0.2
        """The tables are set back or emptied."""
        self.fault_mean_ms = source.choice([20_000, 120_000, 10**9])
        self.world.after(source.expovariate(1 / self.fault_mean_ms), self.inject_fault)

    def start_engine(self) -> None:
        self.engines += 1
        self.engine = KlineEngine(self.config, 1.0, self.engines, self.audit)
        self.engine_away_until = 0
        self.frozen: list[AppEvent] = []
        """What a stopped engine will find in its queue."""
        self.frozen_until = 0
        self.loaded = False
        self.idle_until = 0
        """Until then the engine has nothing to do, unless something is said to it."""

    def start_feed(self) -> None:
        self.feed = Feed(self.world, self.exchange, self.world.now + self.engines, self.send)

    def send(self, event: AppEvent) -> None:
        if self.world.now < self.frozen_until:
            self.frozen.append(event)
        elif self.world.now >= self.engine_away_until and not self.says_nothing(event):
            self.engine.apply(event, self.world.now * MS)
            self.idle_until = 0

    def says_nothing(self, event: AppEvent) -> bool:
        """Say whether it is a heartbeat like the one before, which is not worth the engine's time, nor ours."""
        known = self.engine.feed
        if not isinstance(event, FeedState) or known is None or not self.engine.started:
            return False
        same = (event.session, event.since) == (known.session, known.since)
        return same and event.engine == known.engine == self.engine.session

    def schedule_trades(self) -> None:
        for symbol, trades in self.exchange.trades.items():
            coming: dict[int, list[Trade]] = {}
            left = 0
            for trade in trades:
                left = max(left, trade.time)
                if left >= START:
                    coming.setdefault(left // 500, []).append(trade)
            for moment, part in coming.items():
                self.world.after((moment + 1) * 500 - START, partial(self.trade, symbol, part))

    def trade(self, symbol: str, trades: list[Trade]) -> None:
        """Let the feed that is there by now bring trades."""
        self.feed.traded(symbol, trades)

    def turn(self) -> None:
        """One turn of the engine's loop; the next one follows when there is something to do."""
        world = self.world
        if world.now < self.frozen_until:
            world.after(500, self.turn)
            return
        frozen, self.frozen = self.frozen, []
        for event in frozen:
            self.send(event)
        idle = world.now < self.idle_until and self.store_known == self.store.session
        if world.now >= self.engine_away_until and not idle:
            now_ns = world.now * MS
            if not self.loaded and world.now >= self.store.away_until:
                self.loaded = True
                for part in self.store.load(Load(self.engine.session, rows_to_load(WINDOW))):
                    self.engine.apply(part, now_ns)
            if self.store_known != self.store.session:
                self.store_known = self.store.session
                self.engine.apply(self.store.state(), now_ns)
            self.engine.tick(now_ns)
            for command in self.engine.take_commands():
                self.feed.execute(command)
            saved = self.engine.take_batch(now_ns)
            if saved is not None:
                self.store.take(saved, self.send)
            wait = self.engine.wait_ms(now_ns)
            self.idle_until = 0 if wait is None else world.now + wait
        world.after(500, self.turn)

    def inject_fault(self) -> None:
        """One fault, and the next one after a while."""
        world, source = self.world, self.world.source
        if not world.faults:
            return
        away = source.choice([100, 3_000, 30_000, 10 * MINUTE, 70 * MINUTE])
        if self.exchange.falls:
            # After a longer absence a symbol is reseeded after it, and what was proven before stays. A trade from
            # within the absence whose time falls back into that is asked of nobody: the minute lacks it, final, and
            # only `verify --against-exchange` finds it.
            away = min(away, 30_000)
        if world.nature.random() < 0.1:
            self.frozen_until = world.now + world.nature.choice([2_000, 30_000, 3 * MINUTE])
        fault = source.choice(("engine", "feed", "store", "database", "connection", "renewal", "everything"))
        if world.nature.random() < 0.2:
            fault = world.nature.choice(("set back", "emptied") if self.store_goes_back else ("refused",))
        match fault:
            case "engine":
                self.kill_engine(min(away, 10 * MINUTE))
            case "feed":
                self.kill_feed()
            case "store":
                self.store.end()
            case "database":
                self.store.away_until = world.now + away
            case "connection":
                self.feed.connect(False)
                feed = self.feed
                world.after(away, lambda: feed.connect(True))
            case "set back":
                world.after(away, self.store.backed_up())
            case "emptied":
                self.store.empty()
            case "refused":
                self.store.refuses = world.nature.choice(sorted(self.exchange.trades))
                world.after(min(away, 30_000), self.take_all)
            case "renewal":
                self.feed.renew()
            case "everything":
                self.kill_engine(min(away, 10 * MINUTE))
                self.kill_feed()
                self.store.end()
        world.after(source.expovariate(1 / self.fault_mean_ms), self.inject_fault)

    def take_all(self) -> None:
        """The database takes every symbol again."""
        self.store.refuses = ""

    def kill_engine(self, away_ms: int) -> None:
        self.note_figures()
        self.start_engine()
        self.engine_away_until = self.world.now + away_ms
        self.store_known = 0

    def kill_feed(self) -> None:
        self.feed.ended = True
        self.start_feed()

    def note_figures(self) -> None:
        self.reseeded += self.engine.reseeded
        self.lost += int(self.engine.book.counters[0]["unsaved_overwritten"])

    def run(self) -> list[str]:
        """Return what is wrong in the end."""
        self.world.run(START + self.span_ms)
        self.world.faults = False
        self.store.away_until = self.engine_away_until = self.frozen_until = 0
        self.feed.connect(True)
        self.take_all()
        self.world.run(START + self.span_ms + CALM_MS + SAVED_MS)
        self.note_figures()
        return [wrong for symbol in self.exchange.trades for wrong in self.check(symbol)]

    def check(self, symbol: str) -> list[str]:
        """Compare the store with what was traded."""
        now = START + self.span_ms + CALM_MS
        mark = self.store.marks.get(symbol)
        trades = self.exchange.trades[symbol]
        if mark is None:
            return [f"{symbol}: not in the store"] if trades else []
        wrong = [f"{symbol}: {mark.gaps} are missing"] if mark.gaps else []
        wrong += [f"{symbol}: {ids} is not settled" for ids in mark.unexplained if ids.outcome == "open"]
        named = [trade for trade in trades if trade.trade_count]
        last_id = self.exchange.wire_id(symbol, named[-1].id) if named else -1
        if mark.last_id < last_id:
            wrong.append(f"{symbol}: saved up to {mark.last_id} of {last_id}")
        if not self.exchange.falls:
            wrong += [f"{symbol}: {kline}" for kline in self.store.changed_finals.get(symbol, [])]
        if mark.audit.counts.get(MISMATCHED) and not self.exchange.falls:
            wrong.append(f"{symbol}: {mark.audit.mismatches} are not what the exchange says")
        whole = expected(trades)
        newest = max((trade.time for trade in trades if trade.trade_count), default=0)
        begins: dict[str, int] = {}
        for interval, _, child in INTERVALS:
            times = sorted(key[2] for key in self.store.rows if key[:2] == (symbol, interval))
            if not times:
                wrong.append(f"{symbol} {interval}: no kline")
                continue
            begins[interval] = open_time = times[0]
            if open_time > begins.get(child, open_time):
                wrong.append(f"{symbol} {interval}: begins at {(open_time - START) / MINUTE:.0f}, later than {child}")
            for have in times:
                if have != open_time:
                    wrong.append(f"{symbol} {interval}: {(open_time - START) / MINUTE:.0f} is missing")
                open_time = next_open(interval, have)
            if open_time <= now - 10_000:
                wrong.append(f"{symbol} {interval}: ends at {(open_time - START) / MINUTE:.0f}")
            for time_ms in times:
                row, want = self.store.rows[symbol, interval, time_ms], whole.get((interval, time_ms))
                wrong += _differences(
                    f"{symbol} {interval} {(time_ms - START) / MINUTE:.0f}",
                    row,
                    want,
                    next_open(interval, time_ms) <= newest - (FALL_MAX_MS if self.exchange.falls else 0),
                    self.exchange.falls,
                )
        return wrong


def _differences(name: str, row: np.void, want: dict[str, int] | None, proven: bool, falls: bool) -> list[str]:
    flags = int(row["flags"])
    if want is None:
        want = dict.fromkeys(FIELDS, 0)
    names = FIELDS[:9] if want["trade_count"] else FIELDS[4:9]
    if falls and flags & EXCHANGE:
        # Which was first and last, ids say where there are any, and times where there are none.
        names = tuple(name for name in names if name not in ("open", "close"))
    have = {field: number(row, field) for field in names}
    different = {field: (have[field], want[field]) for field in names if have[field] != want[field]}
    # What REST leaves out and the exchange's own klines show to be void is no hole in them.
    ids, count = int(row["last_id"]) - int(row["first_id"]) + 1, int(row["id_count"])
    if not flags & (EXCHANGE | AUDITED) and count and count != ids and not falls:
        different["id_count"] = (count, ids)
    if proven and not (flags & CLOSED and flags & FINAL):
        different["flags"] = (flags, CLOSED | FINAL)
    return [f"{name}: {different} (have, want)"] if different else []


class Played(NamedTuple):
    seed: int
    wrong: list[str]
    engines: int
    reseeded: int
    lost: int
    """Rows that left memory unsaved."""


def run(seed: int) -> Played:
    """Play a seed to its end."""
    simulation = Simulation(seed)
    wrong = simulation.run() + wrong_starts(seed)
    return Played(seed, wrong, simulation.engines, simulation.reseeded, simulation.lost)
