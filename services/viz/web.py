"""HTTP and the websocket: what a browser may ask of this room, and how it is answered.

Decides addresses, status codes and who is let in; hub.py decides what viewers are sent, api.py what history is.

A viewer has three tasks: one reads what it says, one sends what its outbox holds, one reads its history. A sender that
waits for a slow viewer holds up nobody else, and meanwhile the outbox keeps only the newest of everything.
"""

import asyncio
import importlib.util
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from services.viz.api import (
    LIMIT_DEFAULT,
    BadQuestion,
    DatabaseAway,
    HistoryQuestion,
    Reader,
    checked_interval,
    checked_symbol,
    history_question,
)
from services.viz.hub import BEAT_S, Hub, Message, Viewer
from services.viz.pace import Pace
from shared.process import Unavailable
from shared.visitors import Names, Unreadable
from shared.wire import kline_topic

PAGE = Path(__file__).with_name("page")
FRAME_S = 0.016
"""A viewer is sent at most one bundle in this time: more than 60 a second nobody can see."""
LIVE_WAIT_S = 0.3
"""How long a history waits for the engine's first live row, which takes a few ms unless something is wrong."""
MESSAGE_MAX = 4_096
"""Bytes of a viewer's message; a sensible one has about 60."""
MESSAGES_AT_ONCE, MESSAGES_A_SECOND = 20, 5
"""Of a viewer; its others wait. Whoever goes through symbols key by key is slower."""
ASKED_AT_ONCE, ASKED_A_SECOND = 150 << 10, 2_500
"""Bytes of subscriptions that all viewers together may cost: the engine disconnects who asks 512 KiB within a minute,
and then nobody here would see anything."""
TOPIC_COST = 20
"""What a topic costs beside its name, both ways: it is subscribed, and given up."""
QUESTIONS_MAX = 100
"""Of programs, for history, that wait: each takes some 10 ms, one after the other, and never before a viewer's."""
HEARTBEAT_S = 20.0
"""A viewer who does not answer a ping for half as long is gone."""
BEATS_LATE_S = 4 * BEAT_S
CLOSE_S = 0.7
"""How long viewers have to say goodbye when the server stops."""
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
    def __init__(self, hub: Hub, reader: Reader, now: Callable[[], float], names: Names) -> None:
        self._hub = hub
        self._reader = reader
        self._now = now
        self._names = names
        self._unreadable = Unreadable.watch()
        self.busy: set[object] = set()
        """Connections of which a request is being answered."""
        self._sockets: set[web.WebSocketResponse] = set()
        self._asked = Pace(ASKED_AT_ONCE, ASKED_A_SECOND)
        self._questions = 0
        self._question_turn = asyncio.Lock()
        self.bad_messages = 0
        """What viewers said that was not understood."""

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
        """Refuse other sites' pages that reach for this server through a browser, and say what is wrong in JSON."""
        refused = self._names.why_refused(request.headers)
        if refused:
            return refusal(403, refused)
        self.busy.add(request.protocol)
        try:
            response = await handler(request)
        except BadQuestion as error:
            response = refusal(400, str(error))
        except DatabaseAway as error:
            response = refusal(503, f"the database does not answer: {error}")
        except web.HTTPException as error:
            response = refusal(error.status, error.reason, dict(error.headers))
        finally:
            self.busy.discard(request.protocol)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _history(self, request: web.Request) -> web.Response:
        question = history_question(request.query)
        if self._questions >= QUESTIONS_MAX:
            return refusal(503, "too many questions at once")
        self._questions += 1
        try:
            async with self._question_turn:
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
        bad = {"bad_messages": self.bad_messages, "bad_requests": self._unreadable.count}
        figures = self._hub.figures(self._now()) | bad
        reasons = self._hub.state(self._now()).reasons()
        return answer({"ok": not reasons, "reasons": reasons} | figures)

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Say whether this process does its work: it tells viewers how things are, whatever that is."""
        late = self._now() - self._hub.beaten_at
        return verdict([f"viewers were told nothing for {late:.1f} s"] if late > BEATS_LATE_S else [])

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Say whether what is here may be relied on."""
        return verdict(self._hub.state(self._now()).unready())

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
            except ValueError:  # A key that is not even text.
                return refusal(400, "that is no handshake of a websocket")
            self._sockets.add(socket)
            tasks = {
                asyncio.create_task(self._listen(socket, viewer)),
                asyncio.create_task(self._read_histories(viewer, want_history)),
                asyncio.create_task(send(socket, viewer, wake)),
            }
            # The first to end ends the visit: it left, or one of the three has a bug, which is raised here.
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

    async def _listen(self, socket: web.WebSocketResponse, viewer: Viewer) -> None:
        pace = Pace(MESSAGES_AT_ONCE, MESSAGES_A_SECOND)
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                # Meanwhile nothing more is read of it: what it says waits where it comes from.
                await asyncio.sleep(pace.take(1, self._now()))
                await self._hear(viewer, message.data)

    async def _hear(self, viewer: Viewer, text: str | bytes) -> None:
        try:
            symbol, interval = watch_of(text)
        except BadQuestion as error:
            self.bad_messages += 1
            viewer.put(("error", 0), Message({"kind": "error", "error": str(error)}))
            return
        cost = 2 * len(kline_topic(symbol, interval).encode()) + TOPIC_COST
        await asyncio.sleep(self._asked.take(cost, self._now()))
        self._hub.watch(viewer, symbol, interval)
        # A live row brings the history. Should none come, the history comes without.
        patience = LIVE_WAIT_S if self._hub.state(self._now()).engine == "live" else 0.0
        asyncio.get_running_loop().call_later(patience, prime_at_last, viewer, viewer.watch)

    async def _read_histories(self, viewer: Viewer, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            watch = viewer.watch
            if not viewer.topic:
                continue
            try:
                question = HistoryQuestion(viewer.symbol, viewer.interval, LIMIT_DEFAULT)
                rows = await self._reader.history(question)
            except DatabaseAway:
                self._hub.prime(viewer, watch, None)
            else:
                self._hub.prime(viewer, watch, rows)

    async def _close_sockets(self, _app: web.Application) -> None:
        closing = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"klagg stops") for socket in self._sockets]
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), CLOSE_S)


async def send(socket: web.WebSocketResponse, viewer: Viewer, wake: asyncio.Event) -> None:
    """Send what the outbox holds whenever it holds something, until the connection is gone."""
    while not socket.closed:
        await wake.wait()
        wake.clear()
        for text in viewer.take():
            try:
                await socket.send_frame(text, WSMsgType.TEXT)
            except (ConnectionError, RuntimeError):
                return  # It left; the task that reads from it sees that too.
        await asyncio.sleep(FRAME_S)


def prime_at_last(viewer: Viewer, watch: int) -> None:
    if viewer.watch == watch and not viewer.primed:
        viewer.want_history()


def watch_of(text: str | bytes) -> tuple[str, str]:
    """Read {"watch": {"symbol": ..., "interval": ...}}. Raises BadQuestion."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadQuestion("a message must be JSON") from error
    watch = message.get("watch") if isinstance(message, dict) else None
    if not isinstance(watch, dict):
        raise BadQuestion('a message must be {"watch": {"symbol": ..., "interval": ...}}')
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


def verdict(reasons: list[str]) -> web.Response:
    return answer({"ok": not reasons, "reasons": reasons}, 503 if reasons else 200)


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    response = answer({"error": reason}, status)
    if headers and "Allow" in headers:
        response.headers["Allow"] = headers["Allow"]
    return response
