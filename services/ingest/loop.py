"""The room's loop: sockets, timers, and who is told what. No rule of the domain stands here.

asyncio on uvloop. Frames come in by a callback of the connection and leave as one message in the same turn; commands
are drained from the engine's socket whenever its file descriptor says so; everything that waits is a task of one
group, so that a mistake of ours ends the process instead of a task.

A crash at any step costs the trades until the next start, which the engine sees by their ids and asks for. Nothing is
written, and the exchange keeps no state of ours but the weight that was spent.
"""

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, assert_never

import aiohttp
import uvloop
import zmq

from services.ingest import exact, recent
from services.ingest.announcer import Announcer, symbol_weight
from services.ingest.binance import (
    TICKER_STREAM,
    Malformed,
    read_exchange_info,
    read_time,
    read_volumes,
    stream_name,
    symbol_of,
)
from services.ingest.complaints import Complaints
from services.ingest.connection import Connection
from services.ingest.frames import FrameReader
from services.ingest.governor import Governor
from services.ingest.history import History
from services.ingest.outbox import Outbox
from services.ingest.recent import Recent
from services.ingest.rest import IN_FLIGHT_MAX, TIMEOUT_S, Answer, Priority, Rest, RestError
from services.ingest.symbols import Symbols
from services.ingest.venue import TICKER_ROUTE, Request, venue_of
from shared.clock import ExchangeClock
from shared.config import Config
from shared.interval import INTERVAL_NAMES
from shared.kline import TRADE
from shared.sockets import connect, ipc, lock_room
from shared.wire import (
    Command,
    FeedState,
    FetchKlines,
    FetchTrades,
    RemoveSymbol,
    Subscribe,
    Unsubscribe,
    decode_command,
)

HEARTBEAT_S = 1.0
CLOCK_S = 60.0
"""How often the exchange's clock is measured."""
CLOCK_SAMPLES = 5
"""At start, of which the quickest counts: the first one opens the connection, which takes longer."""
DRIFT = 10_000
"""Our clock runs wrong by less than one part in so many."""
JUMP_MIN_NS = 50_000_000
"""What scheduling alone may add to a measurement."""
COUNTERS_EVERY, PROGRESS_EVERY = 60, 5
"""Heartbeats."""
WAIT_MAX_S = 2.0
"""Between two attempts to find the exchange at start."""
OPEN_WAIT_S = 5.0
"""How long the first word to the engine waits for the connections; they go on trying behind it."""
LOOK_SPACING_S = 2.0
"""Between two readings of the list of symbols."""
REPAIRS_MAX = 5_000
"""Questions of the engine under way: a few for every symbol. It asks again for what was dropped."""

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    lock = lock_room(config.run_path, "ingest")
    try:
        exact.warm_up()
        recent.warm_up()
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
        self._clock = ExchangeClock(self._settings.clock_speed)
        self._rest_clock = ExchangeClock()
        """The exchange's clock always runs for its REST minutes, whatever a replay makes of time."""
        self._time_doubt_ns = self._time_at_ns = 0
        """How wrong the last measurement of the exchange's time can be, and when it was made."""
        self._complaints = Complaints()
        self._trades = 0
        self._push = connect(context, zmq.PUSH, ipc(config.run_path, "events"))
        self._pull: zmq.Socket[bytes]
        self._commands = ipc(config.run_path, "commands")
        self._context = context
        self._outbox = Outbox(self._push)
        self._recent = Recent()

        self._venue = venue_of(config)
        self._governor = Governor(self._venue.weight_limit, self._settings.weight_share)
        self._rest = Rest(session, self._venue, self._governor, self._rest_now)
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
            symbol_weight(self._venue.klines("", INTERVAL_NAMES[0], rows + 1).weight, rows),
            self._rest_now,
            self._outbox.send,
        )
        self._connections = {
            route: Connection(
                route, url, self._settings.silence_ms, route == TICKER_ROUTE, self._received, self._connection_changed
            )
            for route, url in self._venue.routes(self._settings.stream).items()
        }
        self._connected = False
        self._engine = 0
        """The session of the engine that spoke last."""
        self._since = 0
        self._all_open = asyncio.Event()
        self._look = asyncio.Event()
        self._measure = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._repairs: set[Command] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await self._meet_exchange()
            self._connections[TICKER_ROUTE].subscribe([TICKER_STREAM])
            for connection in self._connections.values():
                self._start(connection.run())
            try:
                await asyncio.wait_for(self._all_open.wait(), OPEN_WAIT_S)
            except TimeoutError:
                log.warning("no connection yet; history goes ahead")
            self._open_commands()
            self._start(self._keep_time())
            self._start(self._keep_symbols())
            try:
                await self._beat()
            finally:
                self._tell_counters()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    async def _meet_exchange(self) -> None:
        attempt = 0
        while True:
            try:
                for _ in range(CLOCK_SAMPLES):
                    await self._measure_time(starting=True)
                await self._read_symbols(starting=True)
                volumes = await self._ask(self._venue.tickers(), starting=True)
                self._symbols.set_volumes(read_volumes(volumes.body))
                break
            except (RestError, Malformed) as error:
                if not attempt:
                    log.info("waiting for the exchange: %s", error)
                attempt += 1
                await asyncio.sleep(random.uniform(0.05, min(WAIT_MAX_S, 0.2 * 2.0 ** min(attempt, 8))))
        self._since = self._clock.now(time.monotonic_ns())
        log.info("%s: %d symbols trade", self._settings.name, self._symbols.trading)

    def _ask(self, request: Request, starting: bool = False) -> Coroutine[Any, Any, Answer]:
        """Ask for metadata. At start everything waits for it: it may use the reserve, and is not tried in vain."""
        if starting:
            return self._rest.get(request, Priority.TRADES, attempts_max=1)
        return self._rest.get(request, Priority.METADATA)

    def _rest_now(self) -> int:
        if self._rest_clock.known:
            return self._rest_clock.now(time.monotonic_ns())
        return time.time_ns() // 1_000_000

    async def _measure_time(self, starting: bool = False) -> None:
        answer = await self._ask(self._venue.time(), starting)
        exchange_ms = read_time(answer.body)
        middle = (answer.sent_ns + answer.received_ns) // 2
        doubt = (answer.received_ns - answer.sent_ns) // 2
        known_doubt = self._time_doubt_ns + (middle - self._time_at_ns) // DRIFT
        off_ns = abs(self._rest_clock.now(middle) - exchange_ms) * 1_000_000
        # A worse measurement than the one before says nothing, unless the exchange's clock has jumped.
        if not self._rest_clock.known or doubt <= known_doubt or off_ns > doubt + known_doubt + JUMP_MIN_NS:
            self._time_doubt_ns, self._time_at_ns = doubt, middle
            self._rest_clock.set(exchange_ms, middle)
            if self._clock.speed or not self._clock.known:
                self._clock.set(exchange_ms, middle)

    async def _keep_time(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._measure.wait(), CLOCK_S)
            self._measure.clear()
            try:
                await self._measure_time()
            except (RestError, Malformed) as error:
                self._complaints.note("time not read", str(error))

    async def _keep_symbols(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), self._settings.symbols_refresh_ms / 1000)
            self._look.clear()
            try:
                await self._read_symbols()
            except (RestError, Malformed) as error:
                self._complaints.note("symbols not read", str(error))
            self._announcer.go(self._tasks)
            await asyncio.sleep(LOOK_SPACING_S)

    async def _read_symbols(self, starting: bool = False) -> None:
        answer = await self._ask(self._venue.exchange_info(), starting)
        listings, limit = read_exchange_info(answer.body, self._complaints.refuse)
        if limit:
            self._governor.set_limit(limit)
        first = not self._symbols.decimals
        changes = self._symbols.refresh(listings)
        if changes.listed and not first:
            log.info("listed: %s", " ".join(changes.listed))
        for symbol in changes.removed:
            log.info("trades no more: %s", symbol)
            self._remove(symbol)

    def _remove(self, symbol: str) -> None:
        self._outbox.send(RemoveSymbol(symbol, self._clock.now(time.monotonic_ns())))

    def _received(self, connection: Connection, frames: list[bytes]) -> None:
        """Take the frames of one TCP read."""
        read = self._reader.read(frames)
        if read.trades is not None:
            self._trades += len(read.trades.rows) // TRADE.itemsize
            self._recent.add(read.trades)
            self._outbox.send(read.trades)
        for reply in read.replies:
            connection.replied(reply)
        if read.shutdown:
            log.info("%s: the exchange is going to close the connection", connection.route)
        moved = self._clock.speed == 0 and self._move_clock(read.event_time)
        if read.tickers:
            if self._symbols.worth_a_look(read.tickers, time.monotonic_ns() // 1_000_000):
                self._look.set()
            if moved:
                self._tell_state()

    def _move_clock(self, event_time: int) -> bool:
        now = time.monotonic_ns()
        before = self._clock.now(now)
        self._clock.at_least(event_time, now)
        return event_time > before

    def _connection_changed(self) -> None:
        connected = all(connection.connected for connection in self._connections.values())
        if not connected:
            self._recent.note_break()
        if connected != self._connected:
            self._connected = connected
            self._since = self._clock.now(time.monotonic_ns())
            if connected and self._all_open.is_set():
                # Who knows what happened to the exchange meanwhile, to its clock and to its symbols.
                self._measure.set()
                self._look.set()
            if connected:
                self._all_open.set()
            self._tell_state()

    def _tell_state(self) -> None:
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
        # Not before the symbols are known, or a command of a former life would meet an empty list.
        self._pull = connect(self._context, zmq.PULL, self._commands)
        asyncio.get_running_loop().add_reader(self._pull, self._drain)
        self._drain()

    def _drain(self) -> None:
        # The descriptor is edge-triggered: whatever is left now would wait for the next message.
        while True:
            try:
                message = self._pull.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._obey(decode_command(message))

    def _obey(self, command: Command) -> None:
        match command:
            case Subscribe():
                self._subscribe(command)
            case Unsubscribe():
                for stream in command.streams:
                    symbol = symbol_of(stream, self._settings.stream)
                    if symbol is not None:
                        self._symbols.engine_unsubscribed(symbol)
                        self._recent.forget(symbol)
                    self._connections[self._route(stream)].unsubscribe([stream])
            case FetchTrades():
                self._repair(command, self._history.fetch_trades(command))
            case FetchKlines():
                self._repair(command, self._history.fetch_klines(command))
            case _:
                assert_never(command)

    def _route(self, stream: str) -> str:
        route = self._venue.route(stream)
        return route if route in self._connections else TICKER_ROUTE

    def _subscribe(self, command: Subscribe) -> None:
        asked = [symbol_of(stream, self._settings.stream) for stream in command.streams]
        symbols = [symbol for symbol in asked if symbol is not None]
        if command.complete:
            log.info("the engine knows %d symbols", len(symbols))
            self._engine = command.engine
            refused = self._symbols.engine_knows(symbols)
        else:
            refused = [symbol for symbol in symbols if not self._symbols.engine_subscribed(symbol)]
        for symbol in refused:
            self._remove(symbol)
        streams = [stream_name(symbol, self._settings.stream) for symbol in symbols if symbol in self._symbols.known]
        self._connections[self._venue.route(f"@{self._settings.stream}")].subscribe(streams)
        if command.complete:
            if self._symbols.left_out:
                log.warning("%d symbols are beyond symbols_max and left out", self._symbols.left_out)
            self._announcer.go(self._tasks)
            self._tell_state()

    async def _delivers(self, symbol: str) -> None:
        """Wait until a symbol's stream has begun: what is traded before it does must be in an answer of REST."""
        stream = stream_name(symbol, self._settings.stream)
        await self._connections[self._route(stream)].delivers(stream)

    def _repair(self, command: Command, work: Coroutine[Any, Any, None]) -> None:
        """Fetch what the engine asks for, once however often it asks."""
        if command in self._repairs or len(self._repairs) >= REPAIRS_MAX:
            self._complaints.counts["repairs asked twice" if command in self._repairs else "repairs dropped"] += 1
            work.close()
            return
        self._repairs.add(command)
        self._tasks.create_task(work).add_done_callback(lambda _: self._repairs.discard(command))

    async def _beat(self) -> None:
        beats = 0
        was_busy = False
        while True:
            self._outbox.retry()
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
        counts = Counter({"trades": self._trades, "rows of another market": self._reader.foreign})
        for part in (self._announcer, self._rest, self._outbox, self._complaints):
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
