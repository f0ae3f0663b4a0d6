"""Ingest: what of the trades arrives, when, and what is answered."""

from collections.abc import Callable

import numpy as np

from services.ingest.binance.messages import Listing
from services.ingest.recent import Recent
from services.ingest.symbols import Symbols
from shared.kline import KLINE
from shared.wire import (
    AddSymbol,
    AppEvent,
    Command,
    Covered,
    FeedState,
    FetchKlines,
    FetchTrades,
    Klines,
    Subscribe,
    Trades,
    Unsubscribe,
)
from tests.engine.played import MINUTE, MS, Trade, batch, opens_at
from tests.seeds.world import ANNOUNCED, Exchange, World

MEMORY_ROWS = 60
"""Trades that ingest remembers: a quarter of an hour of a busy symbol."""


class Feed:
    """Ingest: what of the trades arrives, when, and what is answered."""

    def __init__(self, world: World, exchange: Exchange, session: int, send: Callable[[AppEvent], None]) -> None:
        self.world = world
        self.exchange = exchange
        self.session = session
        self.send = send
        self.symbols = Symbols([], 10)
        self.symbols.refresh([Listing(name, True, 2, 3) for name in exchange.trades])
        self.subscribed: set[str] = set()
        self.recent = Recent(rows_max=MEMORY_ROWS)
        self.connected = True
        self.since = world.now
        self.engine = 0
        self.ended = False
        self.restarting = set(exchange.relisted)
        """Symbols whose ids have not restarted yet."""
        self.overlap_until = 0
        self.beat()

    def beat(self) -> None:
        if not self.ended:
            self.report()
            self.world.after(1_000, self.beat)

    def report(self) -> None:
        now = self.world.now
        self.send(FeedState(self.session, self.connected, self.since, now, now * MS, engine=self.engine))

    def connect(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected, self.since = connected, self.world.now
            if connected:
                self.recent.streams_began(self.subscribed)
            else:
                self.recent.streams_ended()
            self.report()

    def traded(self, symbol: str, trades: list[Trade]) -> None:
        """The exchange sends trades of a moment; faults are between it and the engine."""
        world = self.world
        if self.ended or not self.connected or symbol not in self.subscribed:
            return
        last = self.exchange.trades[symbol][-1]
        if symbol in self.restarting and trades[-1].id >= self.exchange.relisted[symbol]:
            self.restarting.remove(symbol)
            self.recent = Recent(rows_max=MEMORY_ROWS)
            self.recent.streams_began(self.subscribed)
        arriving = [self.exchange.on_wire(symbol, trade) for trade in trades if trade == last or not world.fails(0.02)]
        if world.fails(0.05):
            arriving += arriving
        if world.fails(0.1):
            world.source.shuffle(arriving)
        delay = world.source.expovariate(1 / 3_000) if world.fails(0.05) else world.source.uniform(1, 150)
        if arriving:
            self.arrive(delay, batch(arriving, symbol, event_time=world.now))
            if world.now < self.overlap_until:
                # Two connections at once, which are not in step.
                self.arrive(world.source.uniform(1, 2_000), batch(arriving, symbol, event_time=world.now))

    def renew(self) -> None:
        """Another connection takes over from this one."""
        self.overlap_until = self.world.now + 10_000

    def arrive(self, delay: float, trades: Trades) -> None:
        def come() -> None:
            if not self.ended and self.connected:
                self.recent.add(trades)
                self.send(trades)

        self.world.after(delay, come)

    def later(self, delay: float, *events: AppEvent) -> None:
        def arrive() -> None:
            if not self.ended:
                for event in events:
                    self.send(event)

        self.world.after(delay, arrive)

    def execute(self, command: Command) -> None:
        world = self.world
        match command:
            case Subscribe(complete=True):
                self.engine = command.engine
                self.symbols.engine_knows([self.symbol(stream) for stream in command.streams])
                self.subscribe([self.symbol(stream) for stream in command.streams])
                while (name := self.symbols.take()) is not None:
                    self.announce(name)
                self.report()
                self.later(world.source.uniform(0, 300), *self.recent.last_trades())
            case Subscribe():
                for stream in command.streams:
                    self.symbols.engine_subscribed(self.symbol(stream))
                    self.subscribe([self.symbol(stream)])
            case Unsubscribe():
                pass
            case FetchTrades():
                if not world.fails(0.3):
                    world.after(world.source.uniform(20, 2_000), lambda: self.fetch_trades(command))
            case FetchKlines():
                if not world.fails(0.3):
                    world.after(world.source.uniform(20, 2_000), lambda: self.fetch_klines(command))

    def subscribe(self, symbols: list[str]) -> None:
        if self.connected:
            self.recent.streams_began(symbol for symbol in symbols if symbol not in self.subscribed)
        self.subscribed |= set(symbols)

    def announce(self, name: str) -> None:
        def answer() -> None:
            if self.ended:
                return
            if world.fails(0.2):
                world.after(1_000, answer)
                return
            if not self.symbols.announced(name):
                return
            seam = (world.now - 3_000) // MINUTE * MINUTE
            parts = list(self.exchange.klines(name, seam, ANNOUNCED).values())
            stream = f"{name.lower()}@aggTrade"
            grid_3d = opens_at("3d", seam)
            self.later(world.source.uniform(0, 300), AddSymbol(name, 2, 3, stream, parts, seam, world.now, grid_3d))

        world = self.world
        world.after(world.source.uniform(50, 3_000), answer)

    def fetch_trades(self, ask: FetchTrades) -> None:
        """Answer from memory, and the rest from REST."""
        if self.ended:
            return
        known = self.recent.answer(ask)
        self.later(1, *known.parts)
        for rest in known.rest:
            self.fetch_from_rest(rest)

    def fetch_from_rest(self, ask: FetchTrades) -> None:
        past = self.exchange.named(ask.symbol)
        if self.ended or not past:
            return
        first, newest = ask.first_id, past[-1].id
        end = newest if ask.last_id < 0 else min(ask.last_id, newest)
        older_to = -1
        if not first:
            wanted = next((index for index, trade in enumerate(past) if trade.time >= ask.from_time), len(past))
            older_to = past[wanted - 1].id if wanted else -1
            if wanted == len(past):
                self.answer(ask.symbol, [], 0, older_to, older_to)
                return
            first = past[wanted].id
        covered = ask.first_id
        if ask.last_id > newest and covered > newest:
            # Known to be, and named by nobody: void ids may be the last ones.
            self.answer(ask.symbol, [], covered, ask.last_id)
        elif covered > end:
            self.answer(ask.symbol, past[-1:], end, end)
        while covered <= end:
            page = self.exchange.page(ask.symbol, first)
            if page is None or self.world.fails(0.1):
                return
            reached = min(page[-1].id, end) if page else end
            self.answer(ask.symbol, [trade for trade in page if trade.id <= reached], covered, reached, older_to)
            covered = first = reached + 1
            older_to = -1

    def answer(self, symbol: str, trades: list[Trade], first: int, last: int, older_to: int = -1) -> None:
        if first <= last:
            rows = batch(trades, symbol)
            answer = Trades(rows.instruments, rows.rows, 0, [Covered(0, first, last, older_to)])
            self.later(self.world.source.uniform(0, 500), answer)

    def fetch_klines(self, ask: FetchKlines) -> None:
        until = (self.world.now - 3_000) // MINUTE * MINUTE
        part = self.exchange.klines(ask.symbol, until, 10**6).get(ask.interval)
        rows = np.frombuffer(part.rows if part else b"", KLINE)
        rows = rows[(rows["open_time"] >= ask.start_time) & (rows["open_time"] <= ask.end_time)][:100]
        self.later(10, Klines(ask.symbol, 2, 3, ask.interval, rows.tobytes(), ask.audit, ask.start_time))

    @staticmethod
    def symbol(stream: str) -> str:
        return stream.split("@")[0].upper()
