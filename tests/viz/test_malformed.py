"""Malformed requests: each gets an answer that says so, or none; the log stays short, and the page is there."""

import asyncio

from tests.malformed import ask_all, requests
from tests.viz.conftest import System
from tests.viz.test_web import Page, get

SEED, REQUESTS = 1, 10_000
ADDRESSES = {
    **{f"GET {path}": {} for path in ("/", "/app.js", "/api/symbols", "/health", "/healthz", "/readyz", "/ws")},
    "GET /api/history": {"symbol": ["BTCUSDT"], "interval": ["1m", "1M"], "limit": ["5"], "end": ["1790000000000"]},
}


def test_ten_thousand_malformed_requests_cost_nothing_but_their_answers(system: System) -> None:
    system.start_database()
    room = system.start_viz()
    statuses = asyncio.run(ask_all(system.port, requests(SEED, REQUESTS, ADDRESSES, system.address)))
    context = f"seed {SEED}: {dict(statuses)}\n{room.log[:3_000]}"
    assert sum(statuses.values()) == REQUESTS
    assert statuses[400] > REQUESTS // 10, context
    assert {status for status in statuses if status >= 500} <= {503}, context
    assert "Traceback" not in room.log, context
    assert len(room.log) < 100_000, context
    assert get(system, "/")[0] == 200
    assert get(system, "/health")[2]["bad_requests"] > REQUESTS // 10
    with Page(system) as page:
        page.watch("BTCUSDT", "1m")
        assert page.next("history")
