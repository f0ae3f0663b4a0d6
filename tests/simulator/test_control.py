"""The API that controls the simulator: the market's pace, and when trades were written."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.simulator.served import Served, collect, served, subscribe


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("control")) as simulator:
        yield simulator


def test_the_market_s_pace_can_be_changed(simulator: Served) -> None:
    assert simulator.post("/simulator/speed?value=20")["speed"] == 20.0
    assert simulator.get("/simulator/speed") | {"time": 0} == {"speed": 20.0, "time": 0, "behind": 0}
    began, before = time.monotonic(), simulator.status()["time"]
    while simulator.status()["time"] < before + 10_000:
        assert time.monotonic() < began + 9
        time.sleep(0.05)
    simulator.post("/simulator/speed?value=1")
    before = simulator.status()["time"]
    time.sleep(0.2)
    assert before < simulator.status()["time"] < before + 5_000


def test_the_tap_says_when_a_watched_trade_was_written(simulator: Served) -> None:
    assert simulator.get("/simulator/written", streams="btcusdt@aggTrade") == []
    with simulator.socket("/market/stream") as socket:
        subscribe(socket, "btcusdt@aggTrade", "ethusdt@aggTrade")
        began = time.monotonic_ns()
        ids = [message["data"]["a"] for message in collect(socket, 20, enough=60) if message["data"]["s"] == "BTCUSDT"]
        ended = time.monotonic_ns()
    notes = [note for note in simulator.get("/simulator/written", streams="") if began <= note[2] <= ended]
    assert {stream for stream, _, _ in notes} == {"btcusdt@aggTrade"}
    assert {last for _, last, _ in notes} & set(ids)
    assert simulator.get("/simulator/written", streams="") == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Host": "elsewhere.example"},
        {"Host": "elsewhere.example", "Origin": "http://elsewhere.example"},
        {"Host": "[broken"},
    ],
)
def test_pages_of_other_sites_do_not_drive_it(simulator: Served, headers: dict[str, str]) -> None:
    for method, path in (("POST", "pause"), ("POST", "fault?kind=drop"), ("POST", "speed?value=20"), ("GET", "status")):
        address = f"http://127.0.0.1:{simulator.port}/simulator/{path}"
        request = urllib.request.Request(address, headers=headers, method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == 403
    assert not simulator.status()["paused"]
    assert simulator.get("/simulator/speed")["speed"] == 1.0
    assert simulator.ask("/fapi/v1/time", headers)[0] == 200


def test_its_own_page_drives_it(simulator: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{simulator.port}"}
    assert simulator.ask("/simulator/status", own)[0] == 200
