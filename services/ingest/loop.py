"""The process: sockets, timers and tasks, and nothing else. What is to be done is decided by ingest.py.

asyncio on uvloop. Frames come by a callback of a connection, and their trades are sent before anything else is done.
Commands are read from the engine's socket whenever its file descriptor is readable. Everything that waits is a task of
one group, so that a bug of ours ends the process instead of a task.

A crash at any step costs the trades until the next start, which the engine misses by their ids and asks for. Nothing is
written but a ban, and the exchange keeps no state of ours but the weight that was spent.
"""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import aiohttp
import uvloop
import zmq

from services.ingest import decimals, decode, klines, recent, websocket
from services.ingest.announcer import Announcer, symbol_weight
from services.ingest.binance import scan
from services.ingest.binance.endpoints import TICKER_ROUTE, venue_of
from services.ingest.binance.messages import TICKER_STREAM, stream_name
from services.ingest.clock import ClockSync
from services.ingest.connection import Connection
from services.ingest.decode import FrameDecoder
from services.ingest.ingest import NOTHING, Actions, Fetch, Ingest
from services.ingest.kline_history import KlineHistory
from services.ingest.metadata import Metadata
from services.ingest.outbox import Outbox
from services.ingest.proxy import proxy_of
from services.ingest.rate_limit import Ban, WeightBudget
from services.ingest.recent import Recent
from services.ingest.rest import IN_FLIGHT_MAX, TIMEOUT_S, Rest
from services.ingest.symbols import Symbols
from services.ingest.throttled_log import ThrottledLog
from services.ingest.trade_fetch import TradeFetch
from services.ingest.websocket import Frames
from shared.config import Config
from shared.interval import INTERVAL_NAMES
from shared.kline import TRADE
from shared.sockets import connect, ipc, lock_service
from shared.tuning import disable_huge_pages, freeze_objects, request_short_slices
from shared.wire import FetchTrades, WireError, decode_command

HEARTBEAT_S = 0.5
COUNTERS_EVERY, PROGRESS_EVERY = 120, 10
"""Heartbeats."""
READY_WAIT_S = 1.0
"""How long the websockets wait at start for REST; then they go ahead with the symbols that the engine knows."""
COMMANDS_MAX = 100
"""Commands at once, some ms: frames, timers and signals have their turn however many there are."""
CLOCK_POLL_S = 0.01
"""How often it is checked at start whether the exchange's time is known."""
OPEN_WAIT_S = 5.0
"""How long commands of the engine wait at start for the connections, which keep trying after that."""

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    request_short_slices()  # Before there are threads.
    disable_huge_pages()
    lock = lock_service(config.run_path, "ingest")
    try:
        decimals.warm_up()
        klines.warm_up()
        websocket.warm_up()
        decode.warm_up(config.exchange.stream)
        recent.warm_up()
        scan.warm_up()
        freeze_objects()
        return uvloop.run(_run(config))
    finally:
        lock.close()


async def _run(config: Config) -> int:
    """Serve until a signal; return the exit code."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop_signal, ended.set)
    failures: list[dict[str, Any]] = []

    def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # An exception in a callback is a bug of ours: without this, asyncio would log it and go on.
        failures.append(context)
        log.critical("%s", context.get("message"), exc_info=context.get("exception"))
        ended.set()

    loop.set_exception_handler(fail)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, connect=TIMEOUT_S / 3)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT_MAX)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            work = loop.create_task(Loop(config, context, session).run())
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


class Loop:
    def __init__(
        self, config: Config, context: "zmq.Context[zmq.Socket[bytes]]", session: aiohttp.ClientSession
    ) -> None:
        settings = config.exchange
        self._clock_sync = ClockSync(settings.clock_speed)
        self._clock = self._clock_sync.clock
        self._throttled_log = ThrottledLog()
        self._trades = 0
        push = connect(context, zmq.PUSH, ipc(config.run_path, "events"))
        # Connected from the start: the engine may answer the first event at once.
        self._pull = connect(context, zmq.PULL, ipc(config.run_path, "commands"))
        self._outbox = Outbox(push)
        recent = Recent()

        venue = venue_of(config)
        self._ban = Ban(config.data_path / "ban", venue.rest)
        self._weight_budget = WeightBudget(venue.weight_limit, settings.weight_share)
        proxy_url = proxy_of(venue.rest)
        if proxy_url:
            log.info("the exchange is reached through the proxy that the environment names")
        self._rest = Rest(session, venue, self._weight_budget, self._rest_now, self._banned, proxy_url)
        self._symbols = Symbols(settings.symbols, settings.symbols_max)
        decimals = self._symbols.decimals
        self._decoder = FrameDecoder(settings.stream, decimals, self._throttled_log.refuse)
        self._kline_history = KlineHistory(
            self._rest,
            venue,
            settings.stream,
            decimals,
            self._clock.now,
            self._throttled_log,
            self._outbox.send,
        )
        self._trade_fetch = TradeFetch(
            self._rest,
            venue,
            settings.stream,
            decimals,
            self._clock.now,
            self._throttled_log,
            recent,
            self._wait_delivered,
            self._outbox.send,
        )
        self._ingest = Ingest(
            settings,
            time.monotonic_ns(),
            self._symbols,
            recent,
            self._clock_sync,
            self._decoder,
            self._throttled_log.refuse,
            self._trade_fetch.is_under_way,
        )
        rows = settings.backfill_rows
        self._announcer = Announcer(
            self._symbols,
            self._kline_history,
            self._weight_budget,
            self._throttled_log,
            rows,
            symbol_weight(venue.klines("", INTERVAL_NAMES[0], rows + 1).weight),
            settings.first_days,
            self._rest_now,
            self._outbox.send,
        )
        self._metadata = Metadata(
            self._rest,
            venue,
            self._weight_budget,
            self._clock_sync,
            self._symbols,
            self._throttled_log,
            settings.symbols_refresh_ms,
            lambda symbol: self._outbox.send(self._ingest.removed(symbol, time.monotonic_ns())),
            lambda: self._act(self._ingest.symbols_read()),
        )
        self._connections = {
            route: Connection(
                route,
                url,
                settings.silence_ms,
                settings.connection_max_ms,
                route == TICKER_ROUTE,
                self._received,
                self._connection_changed,
                proxy_of(url),
            )
            for route, url in venue.routes(settings.stream).items()
        }
        self._kind = settings.stream
        self._trade_connection = self._connections[venue.route(f"@{settings.stream}")]
        self._all_open = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._ends = False

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._obey_ban()
            self._start(self._metadata.run())
            await self._wait_ready()
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
                await asyncio.sleep(CLOCK_POLL_S)
            self._ingest.start(time.monotonic_ns())
            # Commands are read from here on: answers to them carry the exchange's time.
            asyncio.get_running_loop().add_reader(self._pull, self._read_commands)
            self._read_commands()
            try:
                await self._heartbeat()
            finally:
                # A group that ends takes no new tasks.
                self._ends = True
                asyncio.get_running_loop().remove_reader(self._pull)
                self._log_counters()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    def _obey_ban(self) -> None:
        banned_ms = self._ban.until - self._rest_now()
        if banned_ms > 0:
            log.warning("the exchange has banned this address: waiting for %.0f s", banned_ms / 1000)
            self._weight_budget.stop(self._rest_now() + banned_ms, self._rest_now())

    async def _wait_ready(self) -> None:
        """Wait for the first answers of REST, but not for long: the symbols that the engine knows need none."""
        try:
            wait_s = 0 if self._weight_budget.stopped_until else READY_WAIT_S
            await asyncio.wait_for(self._metadata.ready.wait(), wait_s)
        except TimeoutError:
            log.warning("REST has not answered: the websockets go ahead with what the engine knows")

    def _rest_now(self) -> int:
        if self._clock_sync.measured:
            return self._clock_sync.rest_now(time.monotonic_ns())
        return time.time_ns() // 1_000_000

    def _banned(self, wait_ms: int) -> None:
        self._ban.extend(time.time_ns() // 1_000_000 + wait_ms)
        self._save_ban()

    def _save_ban(self) -> None:
        try:
            self._ban.save(time.time_ns() // 1_000_000)
        except OSError as error:
            self._throttled_log.warn("ban not written", f"it is kept in memory, and a restart would forget it: {error}")

    def _received(self, connection: Connection, frames: Frames) -> None:
        """Take frames that arrived together."""
        decoded = self._decoder.decode(frames)
        if decoded.trades is not None:
            self._trades += len(decoded.trades.rows) // TRADE.itemsize
            self._outbox.send(decoded.trades)
        begun = [stream for reply in decoded.replies for stream in connection.take_reply(reply)]
        if decoded.shutdown:
            connection.renew("the exchange is going to close this one")
        now_ns, machine_ms = time.monotonic_ns(), time.time_ns() // 1_000_000
        self._act(self._ingest.take_frames(decoded, begun, self._delivered, now_ns, machine_ms))

    def _delivered(self) -> set[str]:
        return self._trade_connection.delivered

    async def _wait_delivered(self, symbol: str) -> None:
        """Wait until a symbol's stream has begun: what is traded before that must be in an answer of REST."""
        await self._trade_connection.wait_delivered(stream_name(symbol, self._kind))

    def _connection_changed(self) -> None:
        connected = all(connection.connected for connection in self._connections.values())
        actions = self._ingest.connections_changed(connected, self._trade_connection.connected, time.monotonic_ns())
        if connected:
            self._all_open.set()
        self._act(actions)

    def _read_commands(self) -> None:
        if self._ends:
            return
        for _ in range(COMMANDS_MAX):
            try:
                message = self._pull.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                command = decode_command(message)
            except WireError as error:
                self._throttled_log.refuse("command", str(error).encode())
                continue
            self._act(self._ingest.take_command(command, time.monotonic_ns()))
        # The descriptor is edge-triggered: commands that are left would wait until the next one comes.
        asyncio.get_running_loop().call_soon(self._read_commands)

    def _act(self, actions: Actions) -> None:
        """Do what is to be done, in the order that `Actions` has."""
        if actions is NOTHING:
            return
        if actions.unsubscribe:
            self._trade_connection.unsubscribe(actions.unsubscribe)
        if actions.subscribe:
            self._trade_connection.subscribe(actions.subscribe)
        if actions.fetch is not None:
            self._fetch(actions.fetch)
        if actions.announce:
            self._announcer.start(self._tasks)
        for event in actions.events:
            self._outbox.send(event)
        if actions.state:
            self._send_state()
        for part in actions.last_trades:
            self._outbox.send(part)
        if actions.renew:
            self._trade_connection.renew(actions.renew)
        if actions.refresh_symbols:
            self._metadata.refresh_symbols()
        if actions.measure_clock:
            self._metadata.measure_clock()

    def _fetch(self, ask: Fetch) -> None:
        work = self._trade_fetch.fetch(ask) if isinstance(ask, FetchTrades) else self._kline_history.fetch(ask)
        self._tasks.create_task(work).add_done_callback(lambda _: self._ingest.fetched(ask))

    def _send_state(self) -> None:
        state = self._ingest.state(self._announcer.time_left_ms(), time.monotonic_ns())
        if state is not None:
            self._outbox.send(state)

    async def _heartbeat(self) -> None:
        beats = 0
        was_busy = False
        while True:
            self._outbox.retry()
            self._save_ban()
            self._read_commands()
            self._send_state()
            await asyncio.sleep(HEARTBEAT_S)
            beats += 1
            announced, to_announce = self._symbols.progress
            busy = announced < to_announce
            if (busy and beats % PROGRESS_EVERY == 0) or (was_busy and not busy):
                self._announcer.log_progress()
            was_busy = busy
            if beats % COUNTERS_EVERY == 0:
                self._log_counters()

    def _log_counters(self) -> None:
        counts = Counter({"trades": self._trades})
        for part in (
            self._decoder,
            self._ingest,
            self._announcer,
            self._rest,
            self._outbox,
            self._clock_sync,
            self._throttled_log,
        ):
            counts.update(part.counts)
        for connection in self._connections.values():
            counts.update({f"{connection.route} {name}": count for name, count in connection.counts.items()})
        streams = sum(connection.streams for connection in self._connections.values())
        log.info(
            "%d streams, weight %d of %d this minute; since start: %s",
            streams,
            self._weight_budget.used(self._rest_now()),
            self._weight_budget.per_minute,
            ", ".join(f"{name} {count}" for name, count in sorted(counts.items())),
        )
