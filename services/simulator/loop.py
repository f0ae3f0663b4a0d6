"""The room's loop: one port that speaks HTTP and websocket, and the clock that moves the market on. No rule is here.

Every few milliseconds the market goes on to the exchange's time, and what left it is written to whoever subscribed, all
of it in one write a connection. A crash costs nothing: a generated market is a function of its seed and the time, and
a replay begins anew.
"""

import asyncio
import contextlib
import json
import logging
import signal
import time
from pathlib import Path

import uvloop
from aiohttp import WSMsgType, web

from services.simulator.exchange import (
    LIFE_S,
    PING_S,
    POLICY_VIOLATION,
    PONG_TIMEOUT_S,
    TOO_MANY_REQUESTS,
    Session,
    read_address,
)
from services.simulator.frames import Chunk
from services.simulator.generated import GeneratedMarket
from services.simulator.grid import MINUTE_MS
from services.simulator.replay import RecordingError, ReplayedMarket
from services.simulator.rest import PREFIX, Rest, Weights
from services.simulator.truth import ROWS_DEFAULT, ROWS_MAX, truth
from shared.config import Config
from shared.process import Unavailable
from shared.sockets import PortTaken

TICK_S = 0.01
STEP_MAX_MS = 250
"""Exchange time in one go: within it symbols come one after another, beyond it as they happened."""
BEHIND_MAX_S = 1.0
"""A market that falls further behind its clock than this, because the machine is too slow, makes the clock wait."""
TICKER_S = 1.0
TICKER_MIN_S = 0.2
"""Tickers come every second of the exchange's time, but no more often than this by ours."""
QUEUE_MAX = 64 * 2**20
"""Bytes that a reader may be behind: half a second of the busiest market. Beyond it the connection breaks, as it does
at the exchange."""
REPLAY_QUEUE_MAX = 4 * 2**20
"""The same for a replay, which waits for its readers instead."""

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    if config.exchange.name != "simulator":
        log.info("not needed: the exchange is %s", config.exchange.name)
        return 0
    return uvloop.run(_run(config))


async def _run(config: Config) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    simulator = Simulator(config)
    runner = web.AppRunner(simulator.application(), access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
    await runner.setup()
    settings = config.simulator
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        await runner.cleanup()
        raise PortTaken(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    log.info("listening on %s:%d: %s", settings.host, settings.port, simulator.describe())
    work = loop.create_task(simulator.run())
    stop = loop.create_task(ended.wait())
    try:
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        stop.cancel()
        work.cancel()
        simulator.break_connections()
        await runner.cleanup()
    log.info("ended; %d trades left the exchange", simulator.market.trades)
    return 0


class Clock:
    """The exchange's time: how it runs, and where it stands."""

    def __init__(self, start: int, speed: float) -> None:
        self.speed = speed
        self.running = True
        self._base_ms = float(start)
        self._base_s = time.monotonic()

    def now(self) -> int:
        if not self.running:
            return int(self._base_ms)
        return int(self._base_ms + (time.monotonic() - self._base_s) * 1000 * self.speed)

    def set(self, time_ms: float, running: bool) -> None:
        self._base_ms, self._base_s, self.running = time_ms, time.monotonic(), running


class Connection:
    """One websocket and what it subscribed to."""

    def __init__(self, session: Session, socket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self.session = session
        self.socket = socket
        self.transport = transport
        self.heard_at = time.monotonic()

    def write(self, chunks: list[Chunk]) -> None:
        """Write what is subscribed of the chunks, in one go."""
        wanted, combined = self.session.delivered, self.session.combined
        blocks = [chunk.block(combined) for chunk in chunks if chunk.stream in wanted]
        if blocks and not self.transport.is_closing():
            self.transport.write(b"".join(blocks))

    @property
    def behind(self) -> int:
        """Bytes that the reader has not taken."""
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Break it without a word."""
        self.transport.abort()


class Simulator:
    def __init__(self, config: Config) -> None:
        settings = config.simulator
        start = settings.start_time or time.time_ns() // 1_000_000
        self.market: GeneratedMarket | ReplayedMarket
        if settings.replay:
            try:
                self.market = ReplayedMarket([str(Path(config.base_dir, path)) for path in settings.replay])
            except RecordingError as error:
                raise Unavailable(str(error)) from error
        else:
            self.market = GeneratedMarket(
                seed=settings.seed,
                symbols=settings.symbols,
                trades_per_second=settings.trades_per_second,
                history_days=settings.history_days,
                listing_interval_s=settings.listing_interval_s,
                quirks=settings.quirks,
                start=start,
            )
        self._speed = settings.speed
        self._clock = Clock(self.market.started, settings.speed)
        if isinstance(self.market, ReplayedMarket):
            self._clock.set(self.market.started, False)
        elif not settings.start_time:
            # Making the market took a moment, and the machine's time is to be met.
            self._clock.set(time.time_ns() / 1_000_000, True)
        self._paused = False
        self._weight_base = self._clock.now(), time.monotonic()
        self._rest = Rest(self.market, Weights(settings.weight_limit))
        self._connections: set[Connection] = set()
        self._wanted: set[str] = set()
        self._ticked = (0, 0.0)
        self._broken = 0

    def describe(self) -> str:
        kind = "a recording" if isinstance(self.market, ReplayedMarket) else "a generated market"
        return f"{kind} of {len(self.market.instruments())} symbols at speed {self._speed:g}"

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get(PREFIX + "{path:.+}", self._serve_rest)
        application.router.add_get("/simulator/status", self._status)
        application.router.add_get("/simulator/truth", self._truth)
        application.router.add_post("/simulator/pause", self._pause)
        application.router.add_post("/simulator/resume", self._resume)
        application.router.add_get("/{path:.*}", self._serve_socket)
        return application

    def break_connections(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    # Time.

    async def run(self) -> None:
        """Move the market on until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            if isinstance(self.market, ReplayedMarket):
                await self._replay(self.market)
            else:
                await self._go_on()
            self._tick()

    async def _go_on(self) -> None:
        """Bring a generated market to the clock's time."""
        began = time.monotonic()
        target = self._clock.now()
        while self.market.now < target:
            self._send(self.market.advance(min(target, self.market.now + STEP_MAX_MS), self._wanted))
            if time.monotonic() - began > BEHIND_MAX_S:
                log.warning("this machine is too slow for speed %g: the exchange's time waits", self._speed)
                self._clock.set(self.market.now, self._clock.running)
                return
            if self.market.now < target:
                await asyncio.sleep(0)

    async def _replay(self, market: ReplayedMarket) -> None:
        """Bring a replay to the clock's time, as fast as its readers take it; until they are there it stands."""
        if self._paused:
            return
        if not self._clock.running and not market.ended and market.heard_by(self._wanted):
            log.info("every symbol has a reader: the recording begins")
            self._clock.set(market.now, True)
        target = min(self._clock.now(), market.end_time)
        while market.now < target and not self._paused:
            self._send(market.advance(target, self._wanted))
            while any(connection.behind > REPLAY_QUEUE_MAX for connection in self._connections):
                await asyncio.sleep(0.002)
            await asyncio.sleep(0)
        if market.ended and self._clock.running:
            self._clock.set(market.end_time, False)
            self._ticked = (0, 0.0)
            log.info("the recording has ended: %d trades", market.trades)

    def _tick(self) -> None:
        """Send the ticker when it is due; it also says that the exchange is there when time stands still."""
        since_ms, since_s = self.market.now - self._ticked[0], time.monotonic() - self._ticked[1]
        if since_s < TICKER_MIN_S or (since_ms < TICKER_S * 1000 and since_s < TICKER_S):
            return
        self._ticked = (self.market.now, time.monotonic())
        chunk = self.market.ticker()
        if chunk is not None:
            self._send([chunk])

    def _send(self, chunks: list[Chunk]) -> None:
        if not chunks:
            return
        for connection in list(self._connections):
            connection.write(chunks)
            if connection.behind > QUEUE_MAX:
                self._broken += 1
                log.warning("a reader is %d MB behind: connection broken", connection.behind >> 20)
                connection.abort()

    # Websockets.

    async def _serve_socket(self, request: web.Request) -> web.StreamResponse:
        opening = read_address(request.path, request.query.get("streams", ""))
        if opening is None:
            return web.Response(status=404)
        # Pings and pongs count as messages, so they must be seen; and no compression, as chunks are shared.
        socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=2**20)
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="Bad Request")
        await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        connection = Connection(Session(opening, time.monotonic()), socket, transport)
        self._connections.add(connection)
        self._count_wanted()
        keeper = asyncio.create_task(self._keep_alive(connection))
        try:
            if connection.session.crowded:
                await socket.send_str('{"error":{"code":4,"msg":"Too many subscriptions"}}')
                await socket.close(code=POLICY_VIOLATION, message=b"Invalid request")
            else:
                await self._converse(connection)
        except ConnectionError:
            pass
        finally:
            keeper.cancel()
            self._connections.discard(connection)
            self._count_wanted()
        return socket

    async def _converse(self, connection: Connection) -> None:
        socket, session = connection.socket, connection.session
        async for message in socket:
            connection.heard_at = time.monotonic()
            if not session.allows(connection.heard_at):
                await socket.close(code=POLICY_VIOLATION, message=TOO_MANY_REQUESTS.encode())
                return
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                text = message.data if message.type is WSMsgType.TEXT else message.data.decode("utf-8", "replace")
                reply = session.control(text)
                self._count_wanted()
                await socket.send_str(reply.text)
                if reply.close_code:
                    await socket.close(code=reply.close_code, message=reply.close_reason.encode())
                    return

    async def _keep_alive(self, connection: Connection) -> None:
        """Ping now and then, and end what does not answer or has lived long enough (protocol §1.3)."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(PING_S)
            now = time.monotonic()
            if now - connection.heard_at > PONG_TIMEOUT_S or now - began > LIFE_S:
                connection.abort()
                return
            with contextlib.suppress(ConnectionError):
                await connection.socket.ping(str(self._clock.now()).encode())

    def _count_wanted(self) -> None:
        self._wanted = set().union(*(connection.session.delivered for connection in self._connections))
        self.market.follow(self._wanted)

    # HTTP.

    async def _serve_rest(self, request: web.Request) -> web.Response:
        base_ms, base_s = self._weight_base
        answer = self._rest.answer(
            request.match_info["path"],
            request.query,
            request.remote or "",
            self._clock.now(),
            # Weight is counted in minutes of ours, however fast the exchange's time runs.
            base_ms + int((time.monotonic() - base_s) * 1000),
            request.headers.get("X-MBX-APIKEY"),
        )
        return web.Response(
            status=answer.status, body=answer.body, headers=answer.headers, content_type="application/json"
        )

    async def _status(self, _request: web.Request) -> web.Response:
        market = self.market
        content = {
            "time": market.now,
            "started": market.started,
            "ended": market.ended,
            "paused": self._paused,
            "symbols": sum(market.status(instrument) == "TRADING" for instrument in market.instruments()),
            "trades": market.trades,
            "connections": len(self._connections),
            "broken": self._broken,
            "last_ids": market.last_ids(),
        }
        return _json(content)

    async def _truth(self, request: web.Request) -> web.Response:
        asked = request.query
        instrument = self.market.find(asked.get("symbol", ""))
        kind = asked.get("stream", "aggTrade")
        since, rows = asked.get("since", str(self.market.started)), asked.get("rows", str(ROWS_DEFAULT))
        if instrument is None or kind not in ("aggTrade", "trade") or not (since.isdigit() and rows.isdigit()):
            return _json({"error": "unknown symbol or stream, or since or rows that is no number"}, status=400)
        minute = int(since) // MINUTE_MS * MINUTE_MS
        return _json(truth(self.market, instrument, kind, minute, max(1, min(int(rows), ROWS_MAX))))

    async def _pause(self, _request: web.Request) -> web.Response:
        """Stop the exchange's time; what has left by now is all there is."""
        if not self._paused:
            self._paused = True
            self._clock.set(self.market.now, False)
        return _json({"time": self.market.now})

    async def _resume(self, _request: web.Request) -> web.Response:
        if self._paused:
            self._paused = False
            self._clock.set(self.market.now, isinstance(self.market, GeneratedMarket))
        return _json({"time": self.market.now})


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(),
        content_type="application/json",
    )
