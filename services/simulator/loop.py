"""The room's loop: one port that serves HTTP and websocket, and the clock that moves the market on. No rule is here.

Every few milliseconds the market goes on to the exchange's time, and what left it is written to whoever subscribed, all
of it in one write a connection. A crash costs nothing: a generated market is a function of its seed and the time, and
a replay begins again.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from aiohttp import WSMsgType, web

from services.simulator.faults import Faults
from services.simulator.frames import Frames
from services.simulator.grid import MINUTE_MS
from services.simulator.market.generated import GeneratedMarket
from services.simulator.replay.replayed import RecordingError, ReplayedMarket
from services.simulator.rest import PREFIX, Answer, Rest, Weights, banned, limited, unavailable
from services.simulator.session import (
    LIFE_S,
    PING_S,
    POLICY_VIOLATION,
    PONG_TIMEOUT_S,
    TOO_MANY_REQUESTS,
    Session,
    read_address,
)
from services.simulator.tap import Tap
from services.simulator.venue import Leaving
from shared.config import Config
from shared.process import Unavailable

TICK_S = 0.01
STEP_MAX_MS = 250
"""Exchange time in one go: within it symbols come one after another, beyond it as they happened."""
BEHIND_MAX_S = 1.0
"""A market that falls further behind its clock than this, because the machine is too slow, makes the clock wait."""
KEEP_ALIVE_S = 1.0
"""How often a websocket's age and silence are looked at."""
OPENINGS_MAX, OPENINGS_S = 300, 300.0
"""Websockets that one address may open in so many seconds (protocol §1.3)."""
STOP_GRACE_S = 0.5
"""What is on its way when REST has to stop may still arrive."""
TICKER_S = 1.0
TICKER_MIN_S = 0.2
"""Tickers come every second of the exchange's time, but no more often than this by ours."""
QUEUE_MAX = 64 * 2**20
"""Bytes that a reader may be behind: half a second of the busiest market. Beyond it the connection breaks, as it does
at the exchange."""
REPLAY_QUEUE_MAX = 4 * 2**20
"""The same for a replay, which waits for its readers instead."""

log = logging.getLogger(__name__)


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

    def frames(self, chunks: Sequence[Leaving]) -> list[Frames]:
        """Return what is subscribed of the chunks, as blocks of frames."""
        wanted, combined = self.session.delivered, self.session.combined
        return [block for chunk in chunks if (block := chunk.frames(wanted, combined))]

    def write(self, blocks: list[Frames]) -> None:
        """Write blocks of frames, in one go."""
        if blocks and not self.transport.is_closing():
            self.transport.writelines(blocks)

    @property
    def behind(self) -> int:
        """Bytes that the reader has not taken."""
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Break it without a close frame."""
        self.transport.abort()


class Simulator:
    def __init__(self, config: Config) -> None:
        settings = config.simulator
        start = settings.start_time or time.time_ns() // 1_000_000
        self.market: GeneratedMarket | ReplayedMarket
        if settings.replay:
            try:
                paths = [str(Path(config.base_dir, path)) for path in settings.replay]
                self.market = ReplayedMarket(paths, config.exchange.first_days)
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
        self.clock = Clock(self.market.started, settings.speed)
        if isinstance(self.market, ReplayedMarket):
            self.clock.set(self.market.started, False)
        elif not settings.start_time:
            # Making the market took a moment, and the machine's time is to be met.
            self.clock.set(time.time_ns() / 1_000_000, True)
        self.paused = False
        self._weight_base = self.clock.now(), time.monotonic()
        self.rest = Rest(
            self.market, Weights(settings.weight_limit), lambda ids: self.faults.omits(ids, time.monotonic())
        )
        self._pause_max_ms = settings.pause_max_s * 1000
        self.connections: set[Connection] = set()
        self._wanted: set[str] = set()
        self._ticked = (0, 0.0)
        self.faults = Faults(settings.seed)
        self.tap = Tap()
        self.refused: Counter[str] = Counter()
        """What clients did that the exchange does not take, by kind."""
        self._opened: deque[float] = deque(maxlen=OPENINGS_MAX + 1)
        """When the last websockets were opened."""
        self._stopped = (0.0, 0.0)
        """Between which moments nobody should ask REST, because a fault said so."""

    def describe(self) -> str:
        kind = "a recording" if isinstance(self.market, ReplayedMarket) else "a generated market"
        return f"{kind} of {len(self.market.instruments())} symbols at speed {self.clock.speed:g}"

    def add_rest(self, router: web.UrlDispatcher) -> None:
        router.add_get(PREFIX + "{path:.+}", self._serve_rest)

    def add_websockets(self, router: web.UrlDispatcher) -> None:
        """Serve websockets at every path that nothing else has."""
        router.add_get("/{path:.*}", self._serve_socket)

    def break_connections(self) -> None:
        for connection in list(self.connections):
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
            if not self.faults.quiet:
                self._send([])

    async def _go_on(self) -> None:
        """Bring a generated market to the clock's time."""
        began = time.monotonic()
        target = self.clock.now()
        while self.market.now < target:
            self._send(self.market.advance(min(target, self.market.now + STEP_MAX_MS), self._wanted))
            if time.monotonic() - began > BEHIND_MAX_S:
                log.warning("this machine is too slow for speed %g: the exchange's time waits", self.clock.speed)
                self.clock.set(self.market.now, self.clock.running)
                return
            if self.market.now < target:
                await asyncio.sleep(0)

    async def _replay(self, market: ReplayedMarket) -> None:
        """Bring a replay to the clock's time, as fast as its readers take it; until they are there it stands."""
        if self.paused:
            return
        if not self.clock.running and not market.ended and market.has_subscribers(self._wanted):
            log.info("every symbol has a reader: the recording begins")
            self.clock.set(market.now, True)
        if self.clock.running and 0 < self._pause_max_ms < market.pause:
            log.info("nothing happens for %.0f min: the exchange's time goes on behind it", market.pause / MINUTE_MS)
            self.clock.set(market.now + market.pause - 1, True)
        target = min(self.clock.now(), market.end_time)
        while market.now < target and not self.paused:
            self._send(market.advance(target, self._wanted))
            while any(connection.behind > REPLAY_QUEUE_MAX for connection in self.connections):
                await asyncio.sleep(0.002)
            await asyncio.sleep(0)
        if market.ended and self.clock.running:
            self.clock.set(market.end_time, False)
            self._ticked = (0, 0.0)
            more = market.stretches - market.stretch - 1
            following = (
                f"; {more} stretches are behind it, years or months later (POST /simulator/next)" if more else ""
            )
            log.info("the recording has ended: %d trades%s", market.trades, following)

    def go_on(self, market: ReplayedMarket) -> None:
        """Begin the next stretch of a recording, once it has a reader; who has read the one before is let go."""
        self.break_connections()
        market.begin(market.stretch + 1)
        self.clock.set(market.started, False)
        self._ticked = (0, 0.0)
        log.info("stretch %d of %d begins", market.stretch + 1, market.stretches)

    def _tick(self) -> None:
        """Send the ticker when it is due; it also says that the exchange is there when time stands still."""
        since_ms, since_s = self.market.now - self._ticked[0], time.monotonic() - self._ticked[1]
        if since_s < TICKER_MIN_S or (since_ms < TICKER_S * 1000 and since_s < TICKER_S):
            return
        self._ticked = (self.market.now, time.monotonic())
        chunk = self.market.ticker()
        if chunk is not None:
            self._send([chunk])

    def _send(self, chunks: Sequence[Leaving]) -> None:
        if not self.faults.quiet:
            apart = [single for chunk in chunks for single in chunk.apart() if single.stream in self._wanted]
            chunks = self.faults.distort(apart, time.monotonic())
        if not chunks:
            return
        leaving = [(connection, connection.frames(chunks)) for connection in self.connections]
        self.tap.note(chunks, self._wanted)
        now_ns = time.monotonic_ns()
        for connection, blocks in leaving:
            connection.write(blocks)
            if connection.behind > QUEUE_MAX:
                self.refused["slow readers"] += 1
                log.warning("a reader is %d MB behind: connection broken", connection.behind >> 20)
                connection.abort()
        self.tap.leaves(now_ns)

    # Websockets.

    async def _serve_socket(self, request: web.Request) -> web.StreamResponse:
        opening = read_address(request.path, request.query.get("streams", ""))
        if opening is None:
            return web.Response(status=404)
        now = time.monotonic()
        self._opened.append(now)
        if len(self._opened) > OPENINGS_MAX and now - self._opened[0] < OPENINGS_S:
            self.refused["openings"] += 1
            return web.Response(status=429)
        if self.faults.get("refuse", now):
            return web.Response(status=503)
        # Pings and pongs count as messages, so they must be seen; and no compression, as chunks are shared.
        socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=2**20)
        try:
            if not socket.can_prepare(request).ok:
                return web.Response(status=400, text="Bad Request")
        except ValueError:  # A key that is not even text.
            return web.Response(status=400, text="Bad Request")
        await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        connection = Connection(Session(opening, time.monotonic()), socket, transport)
        self.connections.add(connection)
        self.count_wanted()
        keeper = asyncio.create_task(self._keep_alive(connection))
        try:
            if connection.session.crowded:
                self.refused["streams"] += 1
                await socket.send_str('{"error":{"code":4,"msg":"Too many subscriptions"}}')
                await socket.close(code=POLICY_VIOLATION, message=b"Invalid request")
            else:
                await self._converse(connection)
        except ConnectionError:
            pass
        finally:
            keeper.cancel()
            self.connections.discard(connection)
            self.count_wanted()
        return socket

    async def _converse(self, connection: Connection) -> None:
        socket, session = connection.socket, connection.session
        async for message in socket:
            connection.heard_at = time.monotonic()
            if not session.allows(connection.heard_at):
                self.refused["messages"] += 1
                await socket.close(code=POLICY_VIOLATION, message=TOO_MANY_REQUESTS.encode())
                return
            if self.faults.get("silent", connection.heard_at):
                continue
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                text = message.data if message.type is WSMsgType.TEXT else message.data.decode("utf-8", "replace")
                reply = session.control(text)
                self.count_wanted()
                await socket.send_str(reply.text)
                if reply.close_code:
                    self.refused["streams"] += 1
                    await socket.close(code=reply.close_code, message=reply.close_reason.encode())
                    return

    async def _keep_alive(self, connection: Connection) -> None:
        """Ping now and then, and end what does not answer or has lived long enough (protocol §1.3)."""
        began = pinged_at = time.monotonic()
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            now = time.monotonic()
            lifetime = self.faults.get("lifetime", now)
            life_s = lifetime.ms / 1000 if lifetime is not None else LIFE_S
            if now - connection.heard_at > PONG_TIMEOUT_S or now - began > life_s:
                connection.abort()
                return
            if now - pinged_at >= PING_S:
                pinged_at = now
                with contextlib.suppress(ConnectionError):
                    await connection.socket.ping(str(self.clock.now()).encode())

    def move_clock(self, ms: int) -> None:
        """Move the exchange's time, and with it the minutes in which weight is counted."""
        self.clock.set(self.clock.now() + ms, True)
        base_ms, base_s = self._weight_base
        self._weight_base = base_ms + ms, base_s

    def count_wanted(self) -> None:
        self._wanted = set().union(*(connection.session.delivered for connection in self.connections))
        self.market.follow(self._wanted)

    # HTTP.

    async def _serve_rest(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        if self._stopped[0] + STOP_GRACE_S < began < self._stopped[1]:
            self.refused["asked while told not to"] += 1
        fault = self.faults.of_request(began)
        if fault is not None and fault.kind == "stall":
            await asyncio.sleep(fault.ms / 1000)
        base_ms, base_s = self._weight_base
        # Weight is counted in minutes of ours, however fast the exchange's time runs.
        weight_now = base_ms + int((time.monotonic() - base_s) * 1000)
        address = request.remote or ""
        if fault is not None and fault.kind in ("ban", "limit"):
            wait_s = self.faults.active(began)["ban"] if fault.kind == "ban" else fault.ms / 1000
            since, until = self._stopped
            self._stopped = (since if began < until else began, max(until, began + wait_s))
            wait_ms = int(wait_s * 1000)
            answer = banned(address, weight_now + wait_ms, weight_now) if fault.kind == "ban" else limited(wait_ms)
        elif fault is not None and fault.kind == "error":
            answer = unavailable()
        else:
            key = request.headers.get("X-MBX-APIKEY")
            path, asked = request.match_info["path"], request.query
            now = self.clock.now() + (self.faults.wrong_ms() if path == "time" else 0)
            answer = self.rest.answer(path, asked, address, max(0, now), weight_now, key)
        if fault is not None and fault.kind == "cut":
            return await _cut(request, answer)
        return web.Response(
            status=answer.status, body=answer.body, headers=answer.headers, content_type="application/json"
        )


async def _cut(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send half of an answer and break off."""
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    if request.transport is not None:
        request.transport.abort()
    return response
