"""The room's loop: sockets, timers, and who is told what. No rule of the domain stands here.

asyncio on uvloop. Frames come in by a callback of the connection and leave as one message in the same turn; commands
are drained from the engine's socket whenever its file descriptor says so; everything that waits is a task of one
group, so that a mistake of ours ends the process instead of a task.

A crash at any step costs the trades until the next start, which the engine sees by their ids and asks for. Nothing is
written, and the exchange keeps no state of ours but the weight that was spent.
"""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from typing import Any, assert_never

import aiohttp
import uvloop
import zmq

from services.ingest import exact, frames, framing, klines, recent, scan
from services.ingest.announcer import Announcer, symbol_weight
from services.ingest.ban import Ban
from services.ingest.binance import (
    TICKER_STREAM,
    stream_name,
    symbol_of,
)
from services.ingest.complaints import Complaints
from services.ingest.connection import Connection
from services.ingest.frames import FrameReader
from services.ingest.framing import Frames
from services.ingest.governor import Governor
from services.ingest.hearing import Hearing
from services.ingest.history import History
from services.ingest.metadata import Metadata
from services.ingest.outbox import Outbox
from services.ingest.proxy import proxy_of
from services.ingest.recent import Recent
from services.ingest.rest import IN_FLIGHT_MAX, TIMEOUT_S, Rest
from services.ingest.symbols import Symbols
from services.ingest.timekeeper import Timekeeper
from services.ingest.venue import TICKER_ROUTE, venue_of
from shared.config import Config
from shared.interval import INTERVAL_NAMES
from shared.kline import TRADE
from shared.process import spare_garbage_collection, take_short_turns, take_small_pages
from shared.sockets import connect, ipc, lock_room
from shared.wire import (
    Command,
    FeedState,
    FetchKlines,
    FetchTrades,
    Listed,
    Prefer,
    RemoveSymbol,
    Subscribe,
    Unsubscribe,
    WireError,
    decode_command,
)

HEARTBEAT_S = 0.5
UNHEARD_AFTER = 3
"""Silences of a connection that a single stream may be silent for while its symbol trades."""
COUNTERS_EVERY, PROGRESS_EVERY = 120, 10
"""Heartbeats."""
MEET_S = 1.0
"""How long REST may take at start before the websockets go ahead with what the engine knows."""
CLOCK_LOOK_S = 0.01
"""How often it is looked at start whether the exchange's time is known."""
OPEN_WAIT_S = 5.0
"""How long the first word to the engine waits for the connections; they go on trying behind it."""

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    take_short_turns()  # Before there are threads.
    take_small_pages()
    lock = lock_room(config.run_path, "ingest")
    try:
        exact.warm_up()
        klines.warm_up()
        framing.warm_up()
        frames.warm_up(config.exchange.stream)
        recent.warm_up()
        scan.warm_up()
        spare_garbage_collection()
        return uvloop.run(_run(config))
    finally:
        lock.close()


async def _run(config: Config) -> int:
    """Serve until a signal; return the exit code."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    failures: list[dict[str, Any]] = []

    def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # An exception in a callback is ours: without this, the loop would log it and go on.
        failures.append(context)
        log.critical("%s", context.get("message"), exc_info=context.get("exception"))
        ended.set()

    loop.set_exception_handler(fail)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, connect=TIMEOUT_S / 3)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT_MAX)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            work = loop.create_task(Ingest(config, context, session).run())
            stop = loop.create_task(ended.wait())
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            work.cancel()
            outcome = (await asyncio.gather(work, return_exceptions=True))[0]
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
    finally:
        context.destroy(linger=500)
    return 1 if failures else 0


class Ingest:
    def __init__(
        self, config: Config, context: "zmq.Context[zmq.Socket[bytes]]", session: aiohttp.ClientSession
    ) -> None:
        self._settings = config.exchange
        self._session = time.monotonic_ns()
        self._time = Timekeeper(self._settings.clock_speed)
        self._clock = self._time.clock
        self._complaints = Complaints()
        self._trades = 0
        self._push = connect(context, zmq.PUSH, ipc(config.run_path, "events"))
        # At once, or the engine answers our first word before it has whom to answer.
        self._pull = connect(context, zmq.PULL, ipc(config.run_path, "commands"))
        self._outbox = Outbox(self._push)
        self._recent = Recent()

        self._venue = venue_of(config)
        self._ban = Ban(config.data_path / "ban", self._venue.rest)
        self._governor = Governor(self._venue.weight_limit, self._settings.weight_share)
        through = proxy_of(self._venue.rest)
        if through:
            log.info("the exchange is reached through the proxy that the environment names")
        self._rest = Rest(session, self._venue, self._governor, self._rest_now, self._banned, through)
        self._symbols = Symbols(self._settings.symbols, self._settings.symbols_max)
        self._reader = FrameReader(self._settings.stream, self._symbols.decimals, self._complaints.refuse)
        self._history = History(
            self._rest,
            self._venue,
            self._settings.stream,
            self._symbols,
            self._clock.now,
            self._complaints,
            self._recent,
            self._delivers,
            self._outbox.send,
        )
        rows = self._settings.backfill_rows
        self._announcer = Announcer(
            self._symbols,
            self._history,
            self._governor,
            self._complaints,
            rows,
            symbol_weight(self._venue.klines("", INTERVAL_NAMES[0], rows + 1).weight),
            self._settings.first_days,
            self._rest_now,
            self._outbox.send,
        )
        self._metadata = Metadata(
            self._rest,
            self._venue,
            self._governor,
            self._time,
            self._symbols,
            self._complaints,
            self._settings.symbols_refresh_ms,
            self._remove,
            self._listed,
        )
        self._connections = {
            route: Connection(
                route,
                url,
                self._settings.silence_ms,
                self._settings.connection_max_ms,
                route == TICKER_ROUTE,
                self._received,
                self._connection_changed,
                proxy_of(url),
            )
            for route, url in self._venue.routes(self._settings.stream).items()
        }
        self._trade_connection = self._connections[self._venue.route(f"@{self._settings.stream}")]
        self._hearing = Hearing(UNHEARD_AFTER * self._settings.silence_ms)
        self._connected = False
        self._engine = 0
        """The session of the engine that spoke last."""
        self._since = 0
        self._all_open = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._recall_ban()
            self._start(self._metadata.run())
            await self._meet()
            self._connections[TICKER_ROUTE].subscribe([TICKER_STREAM])
            for connection in self._connections.values():
                self._start(connection.run())
            try:
                await asyncio.wait_for(self._all_open.wait(), OPEN_WAIT_S)
            except TimeoutError:
                log.warning("no connection yet; history goes ahead")
            if not self._clock.known:
                log.warning("no time yet: the exchange's answers, its events and this machine's clock do not agree")
            while not self._clock.known:
                await asyncio.sleep(CLOCK_LOOK_S)
            self._since = self._clock.now(time.monotonic_ns())
            self._open_commands()
            try:
                await self._beat()
            finally:
                # Nobody may start anything in a group that ends.
                asyncio.get_running_loop().remove_reader(self._pull)
                self._tell_counters()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    def _recall_ban(self) -> None:
        banned_ms = self._ban.until - self._rest_now()
        if banned_ms > 0:
            log.warning("the exchange has banned this address: waiting for %.0f s", banned_ms / 1000)
            self._governor.stop(self._rest_now() + banned_ms, self._rest_now())

    async def _meet(self) -> None:
        """Wait until REST has said what there is, but not for long: what the engine knows can be had without."""
        try:
            await asyncio.wait_for(self._metadata.met.wait(), 0 if self._governor.stopped_until else MEET_S)
        except TimeoutError:
            log.warning("REST has not answered: the websockets go ahead with what the engine knows")

    def _rest_now(self) -> int:
        if self._time.measured:
            return self._time.rest_now(time.monotonic_ns())
        return time.time_ns() // 1_000_000

    def _banned(self, wait_ms: int) -> None:
        self._ban.extend(time.time_ns() // 1_000_000 + wait_ms)
        self._note_ban()

    def _note_ban(self) -> None:
        try:
            self._ban.note(time.time_ns() // 1_000_000)
        except OSError as error:
            self._complaints.note("ban not written", f"it is kept in memory, and a restart would forget it: {error}")

    def _listed(self) -> None:
        self._announcer.go(self._tasks)
        self._outbox.send(Listed(self._symbols.names))

    def _remove(self, symbol: str) -> None:
        self._outbox.send(RemoveSymbol(symbol, self._clock.now(time.monotonic_ns())))

    def _received(self, connection: Connection, frames: Frames) -> None:
        """Take frames that arrived together."""
        read = self._reader.read(frames)
        if read.trades is not None:
            self._trades += len(read.trades.rows) // TRADE.itemsize
            self._outbox.send(read.trades)
            self._recent.add(read.trades)
        for reply in read.replies:
            self._recent.begins(self._symbols_of(connection.replied(reply)))
        if read.shutdown:
            connection.renew("the exchange is going to close this one")
        moved = self._time.move_to(read.event_time, time.monotonic_ns())
        if read.event_time:
            self._time.hear(read.event_time, time.monotonic_ns(), time.time_ns() // 1_000_000)
        if read.tickers:
            self._hear(read.tickers, time.monotonic_ns() // 1_000_000)
            if self._time.is_off(read.ticker_time, time.monotonic_ns()):
                self._metadata.measure()
            if moved:
                self._tell_state()

    def _hear(self, prices: dict[str, str], now_ms: int) -> None:
        """Take what the ticker says: of symbols that we do not know, and of those that we should have heard."""
        if self._symbols.worth_a_look(prices, now_ms):
            self._metadata.look()
        delivered = self._symbols_of(self._trade_connection.delivered)
        unheard = self._hearing.unheard(prices, {symbol: self._recent.heard(symbol) for symbol in delivered}, now_ms)
        if unheard:
            self._complaints.counts["streams unheard"] += len(unheard)
            self._trade_connection.renew(f"silent though they trade: {' '.join(unheard[:5])}")

    def _symbols_of(self, streams: Iterable[str]) -> list[str]:
        symbols = (symbol_of(stream, self._settings.stream) for stream in streams)
        return [symbol for symbol in symbols if symbol is not None]

    def _connection_changed(self) -> None:
        connected = all(connection.connected for connection in self._connections.values())
        if not self._trade_connection.connected:
            self._recent.breaks()
        if connected != self._connected:
            self._connected = connected
            self._since = self._clock.now(time.monotonic_ns())
            if connected and self._all_open.is_set():
                # Who knows what happened to the exchange meanwhile, to its clock and to its symbols.
                self._metadata.measure()
                self._metadata.look()
            if connected:
                self._all_open.set()
            self._tell_state()

    def _tell_state(self) -> None:
        if not self._clock.known:
            return
        now = time.monotonic_ns()
        announced, to_announce = self._symbols.progress
        self._outbox.send(
            FeedState(
                self._session,
                self._connected,
                self._since,
                self._clock.now(now),
                now,
                announced,
                to_announce,
                self._announcer.time_left_ms(),
                self._engine,
            )
        )

    def _open_commands(self) -> None:
        # Not before there is a time: answers carry it.
        asyncio.get_running_loop().add_reader(self._pull, self._drain)
        self._drain()

    def _drain(self) -> None:
        # The descriptor is edge-triggered: whatever is left now would wait for the next message.
        while True:
            try:
                message = self._pull.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                command = decode_command(message)
            except WireError as error:
                self._complaints.refuse("command", str(error).encode())
                continue
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Subscribe():
                self._subscribe(command)
            case Unsubscribe():
                for stream in command.streams:
                    symbol = symbol_of(stream, self._settings.stream)
                    if symbol is not None:
                        self._symbols.engine_unsubscribed(symbol)
                        self._recent.breaks(symbol)
                    self._trade_connection.unsubscribe([stream])
            case FetchTrades() | FetchKlines():
                self._history.answer(command, self._tasks)
            case Prefer():
                self._symbols.prefer(command.symbols)
            case _:
                assert_never(command)

    def _subscribe(self, command: Subscribe) -> None:
        symbols = self._symbols_of(command.streams)
        if command.complete:
            log.info("the engine knows %d symbols", len(symbols))
            self._engine = command.engine
            refused = self._symbols.engine_knows(symbols)
        else:
            refused = [symbol for symbol in symbols if not self._symbols.engine_subscribed(symbol)]
        for symbol in refused:
            self._remove(symbol)
        symbols = [symbol for symbol in symbols if symbol in self._symbols.known]
        self._reader.expect(symbols)
        self._trade_connection.subscribe(stream_name(symbol, self._settings.stream) for symbol in symbols)
        if command.complete:
            if self._symbols.left_out:
                log.warning("%d symbols are beyond symbols_max and left out", self._symbols.left_out)
            self._announcer.go(self._tasks)
            self._outbox.send(Listed(self._symbols.names))
            self._tell_state()
            # What was sent before this engine came is lost. A symbol that trades seldom would not show it for long.
            for part in self._recent.newest():
                self._outbox.send(part)

    async def _delivers(self, symbol: str) -> None:
        """Wait until a symbol's stream has begun: what is traded before it does must be in an answer of REST."""
        await self._trade_connection.delivers(stream_name(symbol, self._settings.stream))

    async def _beat(self) -> None:
        beats = 0
        was_busy = False
        while True:
            self._outbox.retry()
            self._note_ban()
            self._drain()
            self._tell_state()
            await asyncio.sleep(HEARTBEAT_S)
            beats += 1
            announced, to_announce = self._symbols.progress
            busy = announced < to_announce
            if (busy and beats % PROGRESS_EVERY == 0) or (was_busy and not busy):
                self._announcer.tell_progress()
            was_busy = busy
            if beats % COUNTERS_EVERY == 0:
                self._tell_counters()

    def _tell_counters(self) -> None:
        counts = Counter({"trades": self._trades})
        for part in (self._reader, self._announcer, self._rest, self._outbox, self._time, self._complaints):
            counts.update(part.counts)
        for connection in self._connections.values():
            counts.update({f"{connection.route} {name}": count for name, count in connection.counts.items()})
        streams = sum(connection.streams for connection in self._connections.values())
        log.info(
            "%d streams, weight %d of %d this minute; since start: %s",
            streams,
            self._governor.used(self._rest_now()),
            self._governor.budget,
            ", ".join(f"{name} {count}" for name, count in sorted(counts.items())),
        )
