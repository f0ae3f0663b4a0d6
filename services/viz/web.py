"""HTTP and the websocket: which requests there are, how they are answered, and how many connections there may be.

Decides paths, status codes and who is served; hub.py decides what viewers are sent, database.py what history is.

A viewer has three tasks: one reads its messages, one sends what its outbox holds, one reads its history. A sender that
waits for a slow viewer delays no other, and meanwhile the outbox keeps only the newest of everything.
"""

import asyncio
import importlib.util
import json
import logging
import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from services.viz.database import (
    LIMIT_DEFAULT,
    BadRequest,
    DatabaseUnavailable,
    HistoryRequest,
    Reader,
    checked_interval,
    checked_symbol,
    history_request,
)
from services.viz.hub import STATUS_S, Hub, Message, Viewer
from services.viz.pace import Pace
from shared.http_access import AllowedHosts, BadRequests
from shared.process import Unavailable
from shared.snapshot import kline_topic

PAGE = Path(__file__).with_name("page")
FRAME_S = 0.016
"""A viewer is sent its outbox at most once in this time: more than 60 a second cannot be seen."""
LIVE_WAIT_S = 0.3
"""How long a history waits for the engine's first live row, which takes a few ms unless something is wrong."""
MESSAGE_MAX = 4_096
"""Bytes of a viewer's message; the page's have about 60."""
MESSAGES_AT_ONCE, MESSAGES_A_SECOND = 20, 5
"""Of a viewer; more of them wait. A user who goes through symbols key by key is slower."""
ASKED_AT_ONCE, ASKED_A_SECOND = 150 << 10, 2_500
"""Bytes of subscriptions that all viewers together may cost: the engine disconnects a subscriber that sends 512 KiB
within a minute, and then no viewer would see anything."""
TOPIC_COST = 20
"""What a topic costs beside its name, both ways: it is subscribed, and unsubscribed."""
QUESTIONS_MAX = 100
"""Requests of programs for history that wait: each takes some 10 ms, one after another, never before a viewer's."""
HEARTBEAT_S = 20.0
"""A viewer that does not answer a ping for half as long is disconnected."""
STATUS_LATE_S = 4 * STATUS_S
CLOSE_S = 0.7
"""How long the server waits for viewers' close frames when it stops."""
HEAD_S = 10.0
"""A browser sends a head at once, even on a slow line."""
CONNECTIONS_MAX = 4_000
"""Eight times the viewers; an idle one costs some 10 KB."""
DESCRIPTORS_SPARE = 100
"""For the engine, the database and the page's own files."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Web:
    def __init__(self, hub: Hub, reader: Reader, now: Callable[[], float], allowed_hosts: AllowedHosts) -> None:
        self._hub = hub
        self._reader = reader
        self._now = now
        self._allowed_hosts = allowed_hosts
        self._bad_requests = BadRequests.watch()
        self.busy: set[object] = set()
        """Connections that have a request being answered."""
        self._sockets: set[web.WebSocketResponse] = set()
        self._asked = Pace(ASKED_AT_ONCE, ASKED_A_SECOND)
        self._questions = 0
        self._question_lock = asyncio.Lock()
        self.bad_messages = 0
        """Messages of viewers that were not understood."""

    def app(self) -> web.Application:
        """Return the application. Raises Unavailable if the chart library is not installed."""
        app = web.Application(middlewares=[self._guard], client_max_size=MESSAGE_MAX)
        app.router.add_get("/", serve(PAGE / "index.html"))
        for path in sorted(PAGE.iterdir()):
            if path.is_file():
                app.router.add_get(f"/{path.name}", serve(path))
        app.router.add_get("/lightweight-charts.js", serve(chart_library()))
        app.router.add_get("/api/history", self._history)
        app.router.add_get("/api/symbols", self._symbols)
        app.router.add_get("/health", self._health)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/ws", self._websocket)
        app.on_shutdown.append(self._close_sockets)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests of other sites' pages, and answer errors in JSON."""
        refused = self._allowed_hosts.why_refused(request.headers)
        if refused:
            return refusal(403, refused)
        self.busy.add(request.protocol)
        try:
            response = await handler(request)
        except BadRequest as error:
            response = refusal(400, str(error))
        except DatabaseUnavailable as error:
            response = refusal(503, f"the database does not answer: {error}")
        except web.HTTPException as error:
            response = refusal(error.status, error.reason, dict(error.headers))
        finally:
            self.busy.discard(request.protocol)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _history(self, request: web.Request) -> web.Response:
        question = history_request(request.query)
        if self._questions >= QUESTIONS_MAX:
            return refusal(503, "too many questions at once")
        self._questions += 1
        try:
            async with self._question_lock:
                rows = await self._reader.history(question)
        finally:
            self._questions -= 1
        response = answer(rows)
        response.enable_compression()
        return response

    async def _symbols(self, _request: web.Request) -> web.Response:
        names = ("last", "open_24h", "high_24h", "low_24h", "volume_24h", "quote_volume_24h", "active", "waiting")
        rows = [
            {"symbol": symbol, **dict(zip(names, entry, strict=True))} for symbol, entry in self._hub.symbols().items()
        ]
        response = answer(rows)
        response.enable_compression()
        return response

    async def _health(self, _request: web.Request) -> web.Response:
        bad = {"bad_messages": self.bad_messages, "bad_requests": self._bad_requests.count}
        figures = self._hub.figures(self._now()) | bad
        reasons = self._hub.status(self._now()).reasons()
        return answer({"ok": not reasons, "reasons": reasons} | figures)

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Say whether this process works: whether it sends the status to viewers."""
        late = self._now() - self._hub.status_at
        return health_answer([f"viewers were told nothing for {late:.1f} s"] if late > STATUS_LATE_S else [])

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Say whether other programs may rely on what klagg has."""
        return health_answer(self._hub.status(self._now()).unready())

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        wake, want_history = asyncio.Event(), asyncio.Event()
        viewer = Viewer(wake.set, want_history.set)
        if not self._hub.join(viewer):
            return refusal(503, "too many viewers")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_MAX, compress=False)
        tasks: set[asyncio.Task[None]] = set()
        try:
            try:
                await socket.prepare(request)
            except ValueError:  # Its key is not text.
                return refusal(400, "that is no handshake of a websocket")
            self._sockets.add(socket)
            tasks = {
                asyncio.create_task(self._read_messages(socket, viewer)),
                asyncio.create_task(self._read_histories(viewer, want_history)),
                asyncio.create_task(send(socket, viewer, wake)),
            }
            # The first to end ends the connection: the viewer left, or a task has a bug, which is raised here.
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            self._sockets.discard(socket)
            self._hub.leave(viewer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return socket

    async def _read_messages(self, socket: web.WebSocketResponse, viewer: Viewer) -> None:
        pace = Pace(MESSAGES_AT_ONCE, MESSAGES_A_SECOND)
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                # Nothing more is read of it meanwhile: its messages wait at its end.
                await asyncio.sleep(pace.take(1, self._now()))
                await self._take_message(viewer, message.data)

    async def _take_message(self, viewer: Viewer, text: str | bytes) -> None:
        try:
            symbol, interval = watch_of(text)
        except BadRequest as error:
            self.bad_messages += 1
            viewer.put(("error", 0), Message({"kind": "error", "error": str(error)}))
            return
        cost = 2 * len(kline_topic(symbol, interval).encode()) + TOPIC_COST
        await asyncio.sleep(self._asked.take(cost, self._now()))
        self._hub.watch(viewer, symbol, interval)
        # The history is read after the first live row, or without one if none comes in time.
        wait_s = LIVE_WAIT_S if self._hub.status(self._now()).engine == "live" else 0.0
        asyncio.get_running_loop().call_later(wait_s, request_history, viewer, viewer.watch)

    async def _read_histories(self, viewer: Viewer, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            watch = viewer.watch
            if not viewer.topic:
                continue
            try:
                request = HistoryRequest(viewer.symbol, viewer.interval, LIMIT_DEFAULT)
                rows = await self._reader.history(request)
            except DatabaseUnavailable:
                self._hub.put_history(viewer, watch, None)
            else:
                self._hub.put_history(viewer, watch, rows)

    async def _close_sockets(self, _app: web.Application) -> None:
        closing = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"klagg stops") for socket in self._sockets]
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), CLOSE_S)


class ConnectionLimit:
    """Makes the protocol of each new connection, as `asyncio` asks for it.

    A connection that has not sent the head of a request after `HEAD_S` is closed, and so is one that was answered and
    requests nothing more. If there are too many all the same, the one that has been idle for longest is closed; if all
    are busy, the new one gets a 503.
    """

    def __init__(self, server: web.Server, busy: set[object], connections_max: int = 0) -> None:
        """`busy`: the connections that have a request being answered. `connections_max`: 0 means as many as fit."""
        self._server = server
        self._busy = busy
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_SPARE
        self.connections_max = connections_max or min(CONNECTIONS_MAX, descriptors)
        self.closed = 0
        """Connections that were closed because there were too many."""

    def __call__(self) -> asyncio.Protocol:
        connections = self._server.connections
        if len(connections) >= self.connections_max:
            self.closed += 1
            # The oldest first.
            idle = next((held for held in connections if held not in self._busy), None)
            if idle is None:
                return _Full()
            idle.force_close()
        return self._server()


class _Full(asyncio.Protocol):
    """Answers 503 and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Too many connections\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()


async def send(socket: web.WebSocketResponse, viewer: Viewer, wake: asyncio.Event) -> None:
    """Send what the outbox holds whenever it holds something, until the connection is gone."""
    while not socket.closed:
        await wake.wait()
        wake.clear()
        for text in viewer.take():
            try:
                await socket.send_frame(text, WSMsgType.TEXT)
            except (ConnectionError, RuntimeError):
                return  # The viewer left, which the task that reads its messages notices too.
        await asyncio.sleep(FRAME_S)


def request_history(viewer: Viewer, watch: int) -> None:
    if viewer.watch == watch and not viewer.has_history:
        viewer.want_history()


def watch_of(text: str | bytes) -> tuple[str, str]:
    """Read {"watch": {"symbol": ..., "interval": ...}}. Raises BadRequest."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest("a message must be JSON") from error
    watch = message.get("watch") if isinstance(message, dict) else None
    if not isinstance(watch, dict):
        raise BadRequest('a message must be {"watch": {"symbol": ..., "interval": ...}}')
    return checked_symbol(watch.get("symbol")), checked_interval(watch.get("interval"))


def chart_library() -> Path:
    """Return TradingView's lightweight-charts as the package litecharts brings it. Raises Unavailable."""
    spec = importlib.util.find_spec("litecharts")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "js", "lightweight-charts.js")
        if path.is_file():
            return path
    raise Unavailable("the package litecharts is not installed: it brings the chart library")


def serve(path: Path) -> Handler:
    async def response(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return response


def answer(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encode(body), status=status, content_type="application/json")


def health_answer(reasons: list[str]) -> web.Response:
    return answer({"ok": not reasons, "reasons": reasons}, 503 if reasons else 200)


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    response = answer({"error": reason}, status)
    if headers and "Allow" in headers:
        response.headers["Allow"] = headers["Allow"]
    return response
