"""The exchange's klines: closed ones only, in pages, for the engine and for a command that compares."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from harness.processes import wait_for
from services.ingest.binance.endpoints import venue_of
from services.ingest.decimals import Decimals
from services.ingest.kline_history import KlineHistory
from services.ingest.rate_limit import WeightBudget
from services.ingest.rest import Rest
from services.ingest.throttled_log import ThrottledLog
from shared.config import Config, SimulatorConfig
from shared.wire import FetchKlines, Klines, kline_rows
from tests.ingest.played import (
    FORMING,
    MINUTE,
    START,
    Exchange,
    playing,
)


def test_klines_are_fetched_closed_ones_only(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        first = FORMING - 2000 * MINUTE
        played.engine.ask(FetchKlines("BTCUSDT", "1m", first, FORMING + 10 * MINUTE))
        wait_for("both pages", lambda: len(played.engine.of(Klines)) == 2)
        opens = [row for page in played.engine.of(Klines) for row in kline_rows(page.rows)["open_time"].tolist()]
        assert opens == list(range(first, FORMING, MINUTE))
        assert [asked["limit"] for asked in exchange.requests("klines") if "startTime" in asked] == ["1500", "511"]
        played.engine.ask(FetchKlines("BTCUSDT", "1M", FORMING, FORMING))
        empty = played.engine.wait(Klines, lambda page: page.interval == "1M")
        assert empty.rows == b""


@pytest.mark.parametrize(("after_ms", "is_closed"), [(0, False), (2_900, False), (3_100, True)])
def test_a_kline_that_has_just_ended_is_not_taken_for_closed(
    exchange: Exchange, after_ms: int, is_closed: bool
) -> None:
    exchange.jump(60)
    venue = venue_of(Config(simulator=SimulatorConfig(port=exchange.port)))
    ended = FORMING + MINUTE
    expected = ended if is_closed else FORMING
    sent: list[Klines] = []

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            rest = Rest(session, venue, WeightBudget(2400, 1.0), lambda: START, lambda _: None)
            klines = KlineHistory(
                rest,
                venue,
                "aggTrade",
                Decimals(),
                lambda _: ended + after_ms,
                ThrottledLog(),
                sent.append,  # type: ignore[arg-type]
            )
            assert (await klines.announcement("BTCUSDT", 5)).klines_until == expected
            await klines.fetch(FetchKlines("BTCUSDT", "1m", FORMING - 3 * MINUTE, ended))

    asyncio.run(run())
    (page,) = sent
    assert kline_rows(page.rows)["open_time"].tolist()[-1] == expected - MINUTE
