"""The HTTP API that controls the simulator: everything under /simulator/.

Decides how a fault that happens at once is done; those that last are in faults.py.

    curl http://127.0.0.1:9080/simulator/status
    curl -X POST 'http://127.0.0.1:9080/simulator/fault?kind=skip&seconds=30&share=0.01'
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from services.simulator.faults import AT_ONCE, LASTING, ONCE, Fault, read_fault
from services.simulator.frames import Chunk
from services.simulator.grid import MINUTE_MS
from services.simulator.loop import Simulator
from services.simulator.market.generated import GeneratedMarket
from services.simulator.replay.replayed import ReplayedMarket
from services.simulator.truth import ROWS_DEFAULT, ROWS_MAX, truth
from shared.http_access import AllowedHosts
from shared.names import NAME_MAX

SHUTDOWN_STREAM = "!serverShutdown"
GOING_AWAY = 1001
NUMBER = re.compile(r"[0-9]{1,18}")
SPEED_MIN, SPEED_MAX = 0.001, 10_000.0
SINCE_MAX_MS = 2 * 86_400_000
"""The truth of a longer time than this, or since the market began, would delay everything else for too long."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class ControlApi:
    def __init__(self, simulator: Simulator, host: str) -> None:
        """`host`: where the simulator listens."""
        self._simulator = simulator
        self._allowed_hosts = AllowedHosts("simulator", host)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/simulator/status", self._status)
        router.add_get("/simulator/truth", self._truth)
        router.add_post("/simulator/pause", self._pause)
        router.add_post("/simulator/resume", self._resume)
        router.add_post("/simulator/next", self._next)
        router.add_get("/simulator/speed", self._speed)
        router.add_post("/simulator/speed", self._change_speed)
        router.add_get("/simulator/written", self._written)
        router.add_get("/simulator/fault", self._faults)
        router.add_post("/simulator/fault", self._begin_fault)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse other sites' pages that reach for this API through a browser; the market is open to all clients."""
        if request.path.startswith("/simulator/"):
            why = self._allowed_hosts.why_refused(request.headers)
            if why:
                return _json({"error": why}, status=403)
        return await handler(request)

    async def _status(self, _request: web.Request) -> web.Response:
        simulator, market = self._simulator, self._simulator.market
        content = {
            "time": market.now,
            "started": market.started,
            "ended": market.ended,
            "paused": simulator.paused,
            "symbols": sum(market.status(instrument) == "TRADING" for instrument in market.instruments()),
            "trades": market.trades,
            "connections": len(simulator.connections),
            "faults": simulator.faults.active(time.monotonic()),
            "once": simulator.faults.once,
            "refused": simulator.refused + simulator.rest.weights.refused,
            "last_ids": market.last_ids(),
        }
        if isinstance(market, ReplayedMarket):
            report = market.report
            content |= {
                "left_out": {"count": report.left_out_count, "first": report.left_out},
                "repeated": report.repeated,
                "fallen": {"count": report.fallen_count, "first": report.fallen},
                "span": market.span,
                "stretch": market.stretch,
                "stretches": market.stretches,
                "first_days": {symbol.symbol: _day(symbol.grid_3d) for symbol in market.instruments()},
                "contradicting": {"count": report.contradicting_count, "first": report.contradicting},
            }
        return _json(content)

    async def _truth(self, request: web.Request) -> web.Response:
        asked, market = request.query, self._simulator.market
        instrument = market.find(asked.get("symbol", ""))
        kind = asked.get("stream", "aggTrade")
        since, rows = _number(asked.get("since", str(market.started))), _number(asked.get("rows", str(ROWS_DEFAULT)))
        if instrument is None or kind not in ("aggTrade", "trade") or since is None or rows is None:
            return _json({"error": "unknown symbol or stream, or since or rows that is no number"}, status=400)
        minute = since // MINUTE_MS * MINUTE_MS
        earliest = min(market.started, market.now - SINCE_MAX_MS) // MINUTE_MS * MINUTE_MS
        if not earliest <= minute <= market.now:
            return _json({"error": f"since is not from {earliest} to {market.now}"}, status=400)
        return _json(truth(market, instrument, kind, minute, max(1, min(rows, ROWS_MAX))))

    async def _pause(self, _request: web.Request) -> web.Response:
        """Stop the exchange's time: no trade leaves from here on."""
        simulator = self._simulator
        if not simulator.paused:
            simulator.paused = True
            simulator.clock.set(simulator.market.now, False)
        return _json({"time": simulator.market.now})

    async def _resume(self, _request: web.Request) -> web.Response:
        simulator = self._simulator
        if simulator.paused:
            simulator.paused = False
            simulator.clock.set(simulator.market.now, isinstance(simulator.market, GeneratedMarket))
        return _json({"time": simulator.market.now})

    async def _next(self, _request: web.Request) -> web.Response:
        """Go on with the next stretch of a recording, wherever this one is."""
        simulator, market = self._simulator, self._simulator.market
        if not isinstance(market, ReplayedMarket) or market.stretch + 1 == market.stretches:
            return _json({"error": "no recording with another stretch"}, status=400)
        simulator.go_on(market)
        return _json({"time": market.now})

    async def _speed(self, _request: web.Request) -> web.Response:
        """Return the market's speed and time, and how many bytes its slowest reader has not taken."""
        simulator = self._simulator
        behind = max((connection.behind for connection in simulator.connections), default=0)
        return _json({"speed": simulator.clock.speed, "time": simulator.market.now, "behind": behind})

    async def _change_speed(self, request: web.Request) -> web.Response:
        """Let a generated market's time run at another speed from here on: `value`, 0.001 to 10,000."""
        simulator = self._simulator
        try:
            speed = float(request.query.get("value", ""))
        except ValueError:
            speed = 0.0
        if not SPEED_MIN <= speed <= SPEED_MAX or not isinstance(simulator.market, GeneratedMarket):
            return _json({"error": "no such speed, or a recording"}, status=400)
        simulator.clock.set(simulator.clock.now(), simulator.clock.running)
        simulator.clock.speed = speed
        return await self._speed(request)

    async def _written(self, request: web.Request) -> web.Response:
        """Return when trades of some `streams`, separated by commas, were written since the last such request."""
        return _json(self._simulator.tap.take({name for name in request.query.get("streams", "").split(",") if name}))

    # Faults.

    async def _faults(self, _request: web.Request) -> web.Response:
        """Return the faults there are, with their parameters."""
        parameters = {"kind": "one of these", "seconds": 10, "share": 0.1, "ms": 2000, "symbol": ""}
        return _json({"parameters": parameters, "at once": AT_ONCE, "once": ONCE, "lasting": LASTING})

    async def _begin_fault(self, request: web.Request) -> web.Response:
        faults = self._simulator.faults
        try:
            fault = read_fault(request.query)
            content = await self._apply_at_once(fault) if fault.kind in AT_ONCE else {}
        except KeyError as error:
            return _json({"error": f"no such symbol: {error}"}, status=400)
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        if fault.kind not in AT_ONCE:
            faults.begin(fault, time.monotonic())
        log.info("fault: %s", " ".join(f"{name}={value[:NAME_MAX]}" for name, value in request.query.items()))
        return _json(content | {"faults": faults.active(time.monotonic()), "once": faults.once})

    async def _apply_at_once(self, fault: Fault) -> dict[str, object]:
        """Do what happens at once. Raises ValueError, and KeyError if there is no such symbol."""
        simulator = self._simulator
        match fault.kind:
            case "drop":
                simulator.break_connections()
            case "close":
                for connection in list(simulator.connections):
                    with contextlib.suppress(ConnectionError):
                        await connection.socket.close(code=GOING_AWAY, message=b"Going away", drain=False)
            case "shutdown":
                self._announce_shutdown(fault.seconds)
            case "mute":
                self._mute(fault.symbol)
            case _:
                if not isinstance(simulator.market, GeneratedMarket):
                    raise ValueError("a recording cannot be changed")
                return self._change_market(simulator.market, fault)
        return {}

    def _change_market(self, market: GeneratedMarket, fault: Fault) -> dict[str, object]:
        match fault.kind:
            case "list":
                return {"symbol": market.list_coin()}
            case "delist":
                market.delist(fault.symbol)
            case "decimals":
                market.refine(fault.symbol)
            case "late":
                return {"time": market.make_late(fault.symbol, fault.ms)}
            case "relist":
                market.relist(fault.symbol)
            case "clock":
                self._simulator.move_clock(fault.ms)
        return {}

    def _announce_shutdown(self, after_s: float) -> None:
        data = b'{"e":"serverShutdown","E":%d}' % self._simulator.clock.now()
        for connection in list(self._simulator.connections):
            connection.session.delivered.add(SHUTDOWN_STREAM)
            connection.write(connection.frames([Chunk(SHUTDOWN_STREAM, [data])]))
            asyncio.get_running_loop().call_later(after_s, connection.abort)

    def _mute(self, symbol: str) -> None:
        instrument = self._simulator.market.find(symbol)
        if symbol and instrument is None:
            raise KeyError(symbol)
        for connection in self._simulator.connections:
            delivered = connection.session.delivered
            for stream in [stream for stream in delivered if stream.endswith(("@aggTrade", "@trade"))]:
                if instrument is None or stream.partition("@")[0] == instrument.stream_base:
                    delivered.discard(stream)
        self._simulator.count_wanted()


def _number(text: str) -> int | None:
    return int(text) if NUMBER.fullmatch(text) else None


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(),
        content_type="application/json",
    )
