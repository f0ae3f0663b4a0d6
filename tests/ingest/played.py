"""The neighbours of ingest, played by the test: a small exchange on real sockets, and the engine's side of the room.

The exchange serves the futures protocol over aiohttp in a thread of its own. Its time begins at second 20 of a minute
long ago and runs as ours does, so that a test of less than 40 s never meets a minute's end by chance.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import zmq
from aiohttp import WSMsgType, web

from harness.processes import Room, free_port, wait_for, write_config
from shared.calendar import next_open_time, open_time_of
from shared.config import load
from shared.sockets import bind, ipc, send
from shared.wire import (
    AppEvent,
    Command,
    FeedState,
    Subscribe,
    Trades,
    decode_event,
    encode,
    instruments_of,
    trade_rows,
)

Event = TypeVar("Event")

MINUTE = 60_000
START = 1_700_000_040_000 + 20_000
"""2023-11-14 22:14:20 UTC."""
FORMING = START - 20_000
"""The minute that forms when the exchange begins."""


class Fill(NamedTuple):
    """An aggregate trade, or a single one, of the played exchange."""

    id: int
    time: int
    price: str = "100.50"
    quantity: str = "2.000"
    fills: int = 1
    buyer_is_maker: bool = False


class Sent(NamedTuple):
    """A control message that the exchange got."""

    at: float
    connection: int
    route: str
    method: str
    names: list[str]


def listing(symbol: str, status: str = "TRADING", tick: str = "0.10", step: str = "0.001") -> dict[str, Any]:
    return {
        "symbol": symbol,
        "status": status,
        "contractType": "PERPETUAL",
        "pricePrecision": 2,
        "quantityPrecision": 3,
        "filters": [
            {"filterType": "LOT_SIZE", "stepSize": step, "minQty": step},
            {"filterType": "PRICE_FILTER", "tickSize": tick, "minPrice": "1"},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
        ],
    }


def agg_frame(symbol: str, fill: Fill, **changes: Any) -> str:
    first = fill.id * 10
    data = {"e": "aggTrade", "E": fill.time + 5, "s": symbol, "a": fill.id, "p": fill.price, "q": fill.quantity}
    data |= {"f": first, "l": first + fill.fills - 1, "T": fill.time, "m": fill.buyer_is_maker, "st": 1}
    return json.dumps({"stream": f"{symbol.lower()}@aggTrade", "data": data | changes}, ensure_ascii=False)


def trade_frame(symbol: str, fill: Fill, **changes: Any) -> str:
    data = {"e": "trade", "E": fill.time, "T": fill.time, "s": symbol, "t": fill.id, "p": fill.price}
    data |= {"q": fill.quantity, "X": "MARKET", "m": fill.buyer_is_maker, "st": 1}
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": data | changes}, ensure_ascii=False)


def ticker_frame(*symbols: str, event_time: int = START, **changes: Any) -> str:
    rows = [{"e": "24hrMiniTicker", "E": event_time, "s": symbol, "q": "1", "st": 1} | changes for symbol in symbols]
    return json.dumps({"stream": "!miniTicker@arr", "data": rows}, ensure_ascii=False)


def _limit(weight: int) -> dict[str, Any]:
    return {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": weight}


class Exchange:
    """A small exchange. Its attributes may be changed while it runs."""

    def __init__(self, port: int | None = None, tls: Any = None) -> None:
        self.port = port or free_port()
        self.symbols: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, str] = {}
        self.trades: dict[str, list[Fill]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.refusals: list[tuple[str, int, dict[str, str], dict[str, Any]]] = []
        """(path, status, headers, body), each used once."""
        self.sent: list[Sent] = []
        self.ticking = True
        self.search_ms = 10**12
        """How far after a start time the exchange looks for trades."""
        self.weight = 0
        self.weight_limit = 0
        """As exchangeInfo says; 0: it says nothing."""
        self.reply_after_s = 0.0
        self.wrong_ms: list[int] = []
        """How wrong the next answers about the time are."""
        self._tls = tls
        self._began = time.monotonic()
        self._sockets: dict[str, list[web.WebSocketResponse]] = {"market": [], "public": []}
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self._ended: asyncio.Event

    def add(self, symbol: str, volume: str = "1", **changes: Any) -> None:
        self.symbols[symbol] = listing(symbol, **changes)
        self.volumes[symbol] = volume

    @property
    def now(self) -> int:
        return START + int((time.monotonic() - self._began) * 1000)

    def __enter__(self) -> "Exchange":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    def say(self, *frames: str, route: str = "market") -> None:
        """Send frames to everybody on a route, in one piece, so that they arrive together."""
        self._do(self._say(route, frames))

    def drop(self) -> None:
        """Break all websockets without a close frame."""
        self._do(self._drop())

    def names(self, method: str = "SUBSCRIBE", connection: int | None = None) -> list[str]:
        chosen = [sent for sent in self.sent if sent.method == method and connection in (None, sent.connection)]
        return [name for sent in chosen for name in sent.names]

    def jump(self, seconds: float) -> None:
        """Move the exchange's time."""
        self._began -= seconds

    @property
    def open(self) -> int:
        """How many websockets there are."""
        return sum(len(sockets) for sockets in self._sockets.values())

    def requests(self, path: str) -> list[dict[str, str]]:
        return [parameters for asked, parameters in self.asked if asked == path]

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _say(self, route: str, frames: tuple[str, ...]) -> None:
        for socket in self._sockets[route]:
            for frame in frames:
                await socket.send_str(frame)

    async def _drop(self) -> None:
        for sockets in self._sockets.values():
            for socket in sockets:
                transport = socket._req.transport if socket._req is not None else None
                if transport is not None:
                    transport.abort()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._ended = asyncio.Event()
        application = web.Application()
        application.router.add_get("/{route:market|public}/stream", self._websocket)
        application.router.add_get("/fapi/v1/{path:.+}", self._rest)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        ticker = asyncio.create_task(self._tick())
        self._ready.set()
        await self._ended.wait()
        ticker.cancel()
        await self._drop()
        await runner.cleanup()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            trading = [name for name, row in self.symbols.items() if row["status"] == "TRADING"]
            if self.ticking and trading:
                with suppress(ConnectionError):
                    await self._say("market", (ticker_frame(*trading, event_time=self.now),))

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        route = request.match_info["route"]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connections += 1
        connection = self.connections
        self._sockets[route].append(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    asked = json.loads(message.data)
                    self.sent.append(Sent(time.monotonic(), connection, route, asked["method"], asked["params"]))
                    await asyncio.sleep(self.reply_after_s)
                    await socket.send_json({"result": None, "id": asked["id"]})
        finally:
            self._sockets[route].remove(socket)
        return socket

    async def _rest(self, request: web.Request) -> web.Response:
        path, parameters = request.match_info["path"], dict(request.query)
        self.asked.append(
            (path, parameters | ({"key": request.headers["X-MBX-APIKEY"]} if "X-MBX-APIKEY" in request.headers else {}))
        )
        for index, (refused, status, headers, body) in enumerate(self.refusals):
            if refused == path:
                del self.refusals[index]
                return web.json_response(body, status=status, headers=headers)
        answers: dict[str, Callable[[dict[str, str]], Any]] = {
            "time": lambda _: {"serverTime": self.now + (self.wrong_ms.pop(0) if self.wrong_ms else 0)},
            "exchangeInfo": lambda _: {
                "serverTime": self.now,
                "rateLimits": [_limit(self.weight_limit)] if self.weight_limit else [],
                "symbols": list(self.symbols.values()),
            },
            "ticker/24hr": lambda _: [{"symbol": name, "quoteVolume": q} for name, q in self.volumes.items()],
            "klines": self._klines,
            "aggTrades": self._agg_trades,
            "trades": self._recent,
            "historicalTrades": self._older,
        }
        self.weight += 1
        return web.json_response(answers[path](parameters), headers={"X-MBX-USED-WEIGHT-1M": str(self.weight)})

    def _klines(self, asked: dict[str, str]) -> list[Any]:
        interval, limit = asked["interval"], int(asked["limit"])
        first = int(asked.get("startTime", 0))
        last = min(int(asked.get("endTime", self.now)), self.now)
        opens: list[int] = []
        if first:
            at = open_time_of(interval, first)
            while at <= last and len(opens) < limit:
                if at >= first:
                    opens.append(at)
                at = next_open_time(interval, at)
        else:
            at = open_time_of(interval, last)
            while len(opens) < limit:
                opens.insert(0, at)
                at = open_time_of(interval, at - 1)
        return [self._kline(interval, at) for at in opens]

    def _kline(self, interval: str, at: int) -> list[Any]:
        end = next_open_time(interval, at) - 1
        price = f"{100 + at // MINUTE % 1000 / 10:.2f}"
        return [
            at,
            price,
            price,
            price,
            price,
            "1.500",
            end,
            f"{float(price) * 1.5:.5f}",
            3,
            "0.500",
            f"{float(price) * 0.5:.5f}",
            "0",
        ]

    def _chosen(self, asked: dict[str, str], most: int) -> list[Fill]:
        fills = self.trades.get(asked["symbol"], [])
        limit = min(int(asked.get("limit", "500")), most)
        if "fromId" in asked:
            return [fill for fill in fills if fill.id >= int(asked["fromId"])][:limit]
        if "startTime" in asked:
            start = int(asked["startTime"])
            return [fill for fill in fills if start <= fill.time < start + self.search_ms][:limit]
        return fills[-limit:]

    def _agg_trades(self, asked: dict[str, str]) -> list[Any]:
        return [
            {
                "a": f.id,
                "p": f.price,
                "q": f.quantity,
                "f": f.id * 10,
                "l": f.id * 10 + f.fills - 1,
                "T": f.time,
                "m": f.buyer_is_maker,
            }
            for f in self._chosen(asked, 1000)
        ]

    def _recent(self, asked: dict[str, str]) -> list[Any]:
        return [
            {
                "id": f.id,
                "price": f.price,
                "qty": f.quantity,
                "quoteQty": "1",
                "time": f.time,
                "isBuyerMaker": f.buyer_is_maker,
            }
            for f in self._chosen({"symbol": asked["symbol"], "limit": asked["limit"]}, 1000)
        ]

    def _older(self, asked: dict[str, str]) -> list[Any]:
        chosen = self._chosen(asked, 500)
        return [
            {
                "id": f.id,
                "price": f.price,
                "qty": f.quantity,
                "quoteQty": "1",
                "time": f.time,
                "isBuyerMaker": f.buyer_is_maker,
            }
            for f in chosen
        ]


class Engine:
    """The engine's side of the room: it binds, takes every event, and asks."""

    def __init__(self, config: Path) -> None:
        run_path = load({"KLAGG_CONFIG": str(config)}).run_path
        run_path.mkdir(parents=True, exist_ok=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._events = bind(self._context, zmq.PULL, ipc(run_path, "events"))
        self._commands = bind(self._context, zmq.PUSH, ipc(run_path, "commands"))
        self.events: list[AppEvent] = []
        self.counts: Counter[str] = Counter()

    def ask(self, command: Command) -> None:
        self.send(encode(command))

    def send(self, message: bytes) -> None:
        self._commands.send(message)

    def try_to_ask(self, command: Command) -> bool:
        """Ask as the engine does, which does not wait: False if nobody is there to receive it."""
        return send(self._commands, encode(command))

    def of(self, kind: type[Event]) -> list[Event]:
        """Return all events of a kind so far."""
        while self._events.poll(0):
            self.events.append(decode_event(self._events.recv()))
        return [event for event in self.events if isinstance(event, kind)]

    def wait(self, kind: type[Event], true: Callable[[Event], bool] = lambda _: True, timeout: float = 60.0) -> Event:
        """Wait for an event of a kind for which something is true, among those of before too."""
        return wait_for(
            f"{kind.__name__}", lambda: next((e for e in self.of(kind) if true(e)), None), timeout=timeout, every=0.02
        )

    def connected(self) -> FeedState:
        return self.wait(FeedState, lambda state: state.connected)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()


class Played:
    """A running ingest with both of its neighbours."""

    def __init__(self, exchange: Exchange, engine: Engine, room: Room) -> None:
        self.exchange = exchange
        self.engine = engine
        self.room = room

    def subscribe(self, *streams: str, complete: bool = True) -> None:
        self.engine.connected()
        self.engine.ask(Subscribe(list(streams), complete))
        wait_for("the subscription", lambda: set(streams) <= set(self.exchange.names()))

    def rows(self) -> list[tuple[str, int, int, int, int, int, int]]:
        """Return every trade so far: symbol, id, time, price, quantity, count, maker."""
        rows = []
        for batch in self.engine.of(Trades):
            for row in trade_rows(batch.rows).tolist():
                rows.append((instruments_of(batch)[row[0]].symbol, *row[1:]))
        return rows

    def covered(self) -> list[tuple[int, int]]:
        return [(part.first_id, part.last_id) for batch in self.engine.of(Trades) for part in batch.covered]


@contextmanager
def playing(folder: Path, exchange: Exchange, **settings: Any) -> Iterator[Played]:
    settings = {"backfill_rows": 59, **settings}
    config = write_config(folder, exchange=settings, simulator={"port": exchange.port})
    with Engine(config) as engine:
        room = Room("ingest", config)
        try:
            yield Played(exchange, engine, room)
        except BaseException:
            print(room.log)
            raise
        finally:
            code = room.stop(timeout=30)
        assert code == 0, room.log
        assert "Traceback" not in room.log, room.log
