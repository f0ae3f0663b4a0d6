"""Malformed requests to the exchange and to its control API: no traceback, a short log, and the market goes on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.malformed import ask_all, requests
from tests.simulator.served import Served, served

SEED, REQUESTS = 3, 2_500
SYMBOL, TIME = ["BTCUSDT"], ["1790000000000"]
SPAN = {"startTime": TIME, "endTime": TIME, "limit": ["5"]}
ADDRESSES = {
    **{f"GET {path}": {} for path in ("/fapi/v1/time", "/fapi/v1/exchangeInfo", "/ws", "/simulator/status")},
    "GET /fapi/v1/klines": {"symbol": SYMBOL, "interval": ["1m", "1M"], **SPAN},
    "GET /fapi/v1/aggTrades": {"symbol": SYMBOL, "fromId": ["5"], **SPAN},
    "GET /fapi/v1/historicalTrades": {"symbol": SYMBOL, "fromId": ["5"], "limit": ["5"]},
    "GET /fapi/v1/ticker/24hr": {"symbol": SYMBOL},
    "GET /market/stream": {"streams": ["btcusdt@aggTrade"]},
    "GET /simulator/truth": {"symbol": SYMBOL, "stream": ["trade"], "since": TIME, "rows": ["5"]},
    "GET /simulator/written": {"streams": ["btcusdt@aggTrade"]},
    "POST /simulator/speed": {"value": ["1", "2"]},
    "POST /simulator/resume": {},
    "POST /simulator/fault": {
        "kind": ["close", "drop", "shutdown", "mute", "decimals", "list", "delist", "clock", "time", "event", "omit"],
        "seconds": ["1"],
        "share": ["0.5"],
        "ms": ["10"],
        "symbol": SYMBOL,
    },
}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("truth")) as simulator:
        yield simulator


def test_malformed_requests_cost_nothing_but_their_answers(tmp_path: Path) -> None:
    with served(tmp_path, weight_limit=10**9) as simulator:
        asked = requests(SEED, REQUESTS, ADDRESSES, f"127.0.0.1:{simulator.port}")
        statuses = asyncio.run(ask_all(simulator.port, asked))
        context = f"seed {SEED}: {dict(statuses)}\n{simulator.room.log[:3_000]}"
        assert statuses[400] > REQUESTS // 10, context
        assert {status for status in statuses if status >= 500} <= {503}, context
        assert "Traceback" not in simulator.room.log, context
        assert len(simulator.room.log) < 100_000, context
        assert simulator.status()["trades"] > 0


@pytest.mark.parametrize("since", ["0", "9" * 30, "²", "-1", "9" * 18])
def test_the_truth_is_answered_of_a_time_that_was(simulator: Served, since: str) -> None:
    status, content, _ = simulator.ask("/simulator/truth", symbol="BTCUSDT", since=since)
    assert status == 400
    assert "since" in content["error"]
