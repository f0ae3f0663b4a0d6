"""REST against a played exchange; the time of its minutes is the test's own."""

import asyncio
import socket
import sys
import time
import zlib
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from harness.processes import ROOT
from services.ingest.binance.endpoints import Venue, venue_of
from services.ingest.rate_limit import GUARD_MS, MINUTE_MS, STOP_MAX_MS, WeightBudget
from services.ingest.rest import Priority, Rest, RestError
from services.ingest.trade_fetch import urgency
from shared.config import Config, SimulatorConfig
from shared.wire import FetchTrades
from tests.ingest.played import START, Exchange, Fill

TOO_MANY = {"code": -1003, "msg": "Too many requests"}


class Clock:
    """The exchange's time, ms, wherever the test puts it; it runs at the machine's pace from there."""

    def __init__(self, now: int = START) -> None:
        self._ahead = now - time.monotonic_ns() // 1_000_000

    def __call__(self) -> int:
        return time.monotonic_ns() // 1_000_000 + self._ahead


def play(
    exchange: Exchange,
    story: Callable[[Rest, Venue, WeightBudget], Awaitable[None]],
    clock: Callable[[], int] | None = None,
    limit: int = 2400,
) -> None:
    venue = venue_of(Config(simulator=SimulatorConfig(port=exchange.port)))
    weight_budget = WeightBudget(limit, 1.0)

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            await story(Rest(session, venue, weight_budget, clock or Clock(), lambda _: None), venue, weight_budget)

    asyncio.run(run())


@pytest.fixture
def exchange() -> Any:
    with Exchange() as exchange:
        exchange.ticking = False
        exchange.add("BTCUSDT")
        exchange.trades["BTCUSDT"] = [Fill(1, START)]
        yield exchange


def test_an_exchange_that_fails_is_asked_again_and_a_bad_question_is_not(exchange: Exchange) -> None:
    exchange.refusals += [("time", 503, {}, {"msg": "Service Unavailable."}), ("time", 500, {}, {})]
    exchange.refusals += [("klines", 400, {}, {"code": -1121, "msg": "Invalid symbol."})]

    async def story(rest: Rest, venue: Venue, _: WeightBudget) -> None:
        assert b"serverTime" in (await rest.get(venue.time(), Priority.METADATA)).body
        with pytest.raises(RestError, match="Invalid symbol") as caught:
            await rest.get(venue.klines("X", "1m", 5), Priority.KLINES)
        assert caught.value.status == 400
        assert "-1121" in str(caught.value)

    play(exchange, story)
    assert [path for path, _ in exchange.asked] == ["time", "time", "time", "klines"]


def test_attempts_are_bounded(exchange: Exchange) -> None:
    exchange.refusals += [("time", 503, {}, {})] * 5

    async def story(rest: Rest, venue: Venue, _: WeightBudget) -> None:
        with pytest.raises(RestError):
            await rest.get(venue.time(), Priority.METADATA, attempts_max=2)

    play(exchange, story)
    assert len(exchange.asked) == 2


def test_history_has_500_requests_a_second(exchange: Exchange) -> None:
    async def story(rest: Rest, _venue: Venue, _weight_budget: WeightBudget) -> None:
        began = time.monotonic()
        for _ in range(100):
            # Nobody is asked: that would take its time, too.
            rest._finish(1, await rest._permit(1, Priority.HISTORY), None)
        # All but the first two, as two may go after a rest.
        assert time.monotonic() - began > 98 / 500

    play(exchange, story, limit=1_000_000)


def test_repairs_go_ahead_of_history(exchange: Exchange) -> None:
    async def story(rest: Rest, venue: Venue, _: WeightBudget) -> None:
        async def ask(interval: str, priority: Priority) -> None:
            await rest.get(venue.klines("BTCUSDT", interval, 5), priority)

        tasks = [asyncio.create_task(ask("5m", Priority.HISTORY)) for _ in range(100)]
        await asyncio.sleep(0)
        await ask("1m", Priority.KLINES)
        await asyncio.gather(*tasks)

    play(exchange, story, limit=1_000_000)
    assert len(exchange.asked) == 101
    assert "1m" in [asked["interval"] for _, asked in exchange.asked[:20]]


@pytest.mark.parametrize(
    ("status", "headers", "message", "wait_ms"),
    [
        (429, {"Retry-After": "7"}, "Too many requests", 7_000),
        (429, {}, "Too many requests", 40_000 + GUARD_MS),
        (418, {"Retry-After": "300"}, "Way too many requests", 300_000),
        (418, {}, f"Way too many requests; IP(1.2.3.4) banned until {START + 500_000}. Please", 500_000),
        (418, {}, "Way too many requests", 120_000),
    ],
)
def test_all_requests_stop_for_as_long_as_the_exchange_says(
    exchange: Exchange, status: int, headers: dict[str, str], message: str, wait_ms: int
) -> None:
    exchange.refusals.append(("aggTrades", status, headers, {"code": -1003, "msg": message}))

    async def story(rest: Rest, venue: Venue, weight_budget: WeightBudget) -> None:
        task = asyncio.create_task(rest.get(venue.agg_trades("BTCUSDT"), Priority.TRADES))
        while exchange.refusals or not weight_budget.stopped_until:
            await asyncio.sleep(0.01)
        other = asyncio.create_task(rest.get(venue.time(), Priority.TRADES))
        await asyncio.sleep(0.3)
        assert not task.done()
        assert not other.done()
        assert abs(weight_budget.stopped_until - START - wait_ms) < 2_000
        for waiting in (task, other):
            waiting.cancel()
        await asyncio.gather(task, other, return_exceptions=True)

    play(exchange, story)
    assert [path for path, _ in exchange.asked] == ["aggTrades"]


@pytest.mark.parametrize("status", [418, 429])
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Retry-After": "9" * 16}, "Way too many requests"),
        ({"Retry-After": "9" * 5_000}, "Way too many requests"),
        ({}, "IP(1.2.3.4) banned until 9999999999999999. Please"),
        ({"X-MBX-USED-WEIGHT-1M": "9" * 5_000, "Retry-After": "9" * 9}, "Way too many requests"),
    ],
)
def test_numbers_that_cannot_be_stop_all_for_the_longest_ban_at_most(
    exchange: Exchange, status: int, headers: dict[str, str], message: str
) -> None:
    exchange.refusals.append(("aggTrades", status, headers, {"code": -1003, "msg": message}))

    async def story(rest: Rest, venue: Venue, weight_budget: WeightBudget) -> None:
        task = asyncio.create_task(rest.get(venue.agg_trades("BTCUSDT"), Priority.TRADES))
        while not weight_budget.stopped_until and not task.done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not task.done(), task.exception()
        assert 0 < weight_budget.stopped_until - START <= STOP_MAX_MS + 5_000
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(exchange, story)


def test_the_order_is_repairs_then_history_then_metadata(exchange: Exchange) -> None:
    # So close to the minute's end that the wait for the next one is short.
    clock = Clock(START // MINUTE_MS * MINUTE_MS + MINUTE_MS - 1_200)

    async def story(rest: Rest, venue: Venue, weight_budget: WeightBudget) -> None:
        weight_budget.start(2400, clock())
        weight_budget.finish(2400, 0, clock())
        requests = [
            (venue.time(), Priority.METADATA),
            (venue.klines("BTCUSDT", "5m", 5), Priority.HISTORY),
            (venue.klines("BTCUSDT", "1m", 5), Priority.KLINES),
            (venue.agg_trades("BTCUSDT"), Priority.TRADES),
        ]
        tasks = [asyncio.create_task(rest.get(request, priority)) for request, priority in requests]
        await asyncio.sleep(0.1)
        assert not exchange.asked
        assert rest.waiting == 4
        # One at a time, or they would race each other on the way.
        rest._in_flight = 7
        await asyncio.gather(*tasks)

    play(exchange, story, clock)
    assert [path + asked.get("interval", "") for path, asked in exchange.asked] == [
        "aggTrades",
        "klines1m",
        "klines5m",
        "time",
    ]


def test_the_newer_what_is_missing_the_more_urgent_it_is() -> None:
    now = START + 30_000
    asks = [
        FetchTrades("A", 5, 9, to_time=now - 1_000),
        FetchTrades("A", 0, -1, START),
        FetchTrades("A", 5, 9, to_time=now - 600_000),
        FetchTrades("A", 5, 9, to_time=now - 7_200_000),
        FetchTrades("A", 10, -1),
    ]
    assert [urgency(ask, now) for ask in asks] == [
        Priority.OPEN_TRADES,
        Priority.TRADES,
        Priority.TRADES,
        Priority.OLD_TRADES,
        Priority.HISTORY,
    ]


def test_the_exchange_s_own_count_is_believed(exchange: Exchange) -> None:
    exchange.weight = 1500

    async def story(rest: Rest, venue: Venue, weight_budget: WeightBudget) -> None:
        await rest.get(venue.time(), Priority.METADATA)
        assert weight_budget.used(START + 1000) == 1501

    play(exchange, story)


def test_a_request_that_is_cancelled_gives_its_permit_back(exchange: Exchange) -> None:
    async def story(rest: Rest, venue: Venue, weight_budget: WeightBudget) -> None:
        for _ in range(30):
            task = asyncio.create_task(rest.get(venue.time(), Priority.METADATA))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await rest.get(venue.time(), Priority.METADATA)

    play(exchange, story)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(exchange: Exchange, status: int) -> None:
    with Exchange() as other:
        other.add("BTCUSDT")
        elsewhere = f"http://localhost:{other.port}/fapi/v1/historicalTrades?key=told"
        exchange.refusals.append(("time", status, {"Location": elsewhere}, {}))

        async def story(rest: Rest, venue: Venue, _: WeightBudget) -> None:
            request = venue.time()._replace(with_key=True)
            with pytest.raises(RestError, match="a redirect to 'localhost', which is not followed") as caught:
                await rest.get(request, Priority.METADATA, attempts_max=1)
            assert caught.value.status == status
            assert "told" not in str(caught.value)

        play(exchange, story)
        assert [path for path, _ in exchange.asked] == ["time"]
        assert other.asked == []


def test_an_answer_that_is_too_large_is_abandoned(exchange: Exchange) -> None:
    exchange.add("LARGEUSDT")
    exchange.symbols["LARGEUSDT"]["filler"] = "x" * 34_000_000

    async def story(rest: Rest, venue: Venue, _: WeightBudget) -> None:
        with pytest.raises(RestError, match="more than 33554432 bytes"):
            await rest.get(venue.exchange_info(), Priority.METADATA, attempts_max=1)
        exchange.symbols["LARGEUSDT"]["filler"] = "x" * 30_000_000
        assert len((await rest.get(venue.exchange_info(), Priority.METADATA, attempts_max=1)).body) > 30_000_000

    play(exchange, story)


BOMB = """
import asyncio, gc, re, sys
from pathlib import Path
import aiohttp
from services.ingest.rate_limit import WeightBudget
from services.ingest.rest import Priority, Rest, RestError
from services.ingest.binance.endpoints import venue_of
from shared.config import Config, SimulatorConfig

def peak():  # Of this program; getrusage would begin with what its parent had.
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

async def run():
    venue = venue_of(Config(simulator=SimulatorConfig(port=int(sys.argv[1]))))
    async with aiohttp.ClientSession() as session:
        rest = Rest(session, venue, WeightBudget(2400, 1.0), lambda: 1_790_164_800_000, lambda _: None)
        await rest.get(venue.time(), Priority.METADATA, 1)
        gc.collect()
        before = peak()
        for _ in range(5):
            try:
                await rest.get(venue.exchange_info(), Priority.METADATA, 1)
            except RestError as error:
                print(error, file=sys.stderr)
        await rest.get(venue.time(), Priority.METADATA, 1)
        print(peak() - before)

asyncio.run(run())
"""
"""Asks a bomb five times, and prints by how many KiB its memory grew."""


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_two_gibibytes_in_two_megabytes_take_64_mib_at_most(encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    zeros = bytes(2**20)
    bomb = b"".join([packer.compress(zeros) for _ in range(2048)]) + packer.flush()
    assert len(bomb) < 3 * 2**20

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/time"):
            return web.json_response({"serverTime": START})
        return web.Response(body=bomb, headers={"Content-Encoding": encoding})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.SockSite(runner, listening := socket.create_server(("127.0.0.1", 0))).start()
        asker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BOMB, str(listening.getsockname()[1]), cwd=ROOT, stdout=PIPE, stderr=PIPE
        )
        try:
            out, said = await asyncio.wait_for(asker.communicate(), 60)
        finally:
            await runner.cleanup()
        assert said.count(b"more than 33554432 bytes") == 5, said.decode()
        print(f"{int(out) / 1024:.0f} MiB")
        assert int(out) <= 64 * 1024

    asyncio.run(run())
