"""Malformed requests: each gets an answer that says so, or none; the log stays short, and the page is there."""

import asyncio

from tests.malformed import ask_all, requests
from tests.viz.conftest import Place
from tests.viz.test_web import Page, get

SEED, REQUESTS = 1, 10_000
ADDRESSES = {
    **{f"GET {path}": {} for path in ("/", "/app.js", "/api/symbols", "/health", "/healthz", "/readyz", "/ws")},
    "GET /api/history": {"symbol": ["BTCUSDT"], "interval": ["1m", "1M"], "limit": ["5"], "end": ["1790000000000"]},
}


def test_ten_thousand_malformed_requests_cost_nothing_but_their_answers(place: Place) -> None:
    place.start_database()
    room = place.start_viz()
    statuses = asyncio.run(ask_all(place.port, requests(SEED, REQUESTS, ADDRESSES, place.address)))
    told = f"seed {SEED}: {dict(statuses)}\n{room.log[:3_000]}"
    assert sum(statuses.values()) == REQUESTS
    assert statuses[400] > REQUESTS // 10, told
    assert {status for status in statuses if status >= 500} <= {503}, told
    assert "Traceback" not in room.log, told
    assert len(room.log) < 100_000, told
    assert get(place, "/")[0] == 200
    assert get(place, "/health")[2]["bad_requests"] > REQUESTS // 10
    with Page(place) as page:
        page.watch("BTCUSDT", "1m")
        assert page.next("history")
