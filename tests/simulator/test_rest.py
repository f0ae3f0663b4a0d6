"""The REST side over real HTTP: rows, errors, weights and bans; and the truth that tests are judged by."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harness.processes import Room, wait_for, write_config
from services.simulator.rest import BAN_MS, FORBEARANCE, Weights
from tests.simulator.served import NOON, Served, served

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("simulator"), start_time=NOON + 30_000, quirks=False) as simulator:
        yield simulator


def used(headers: Any) -> int:
    return int(headers["X-MBX-USED-WEIGHT-1M"])


def test_exchange_info_lists_what_trades_and_how(simulator: Served) -> None:
    info = simulator.get("/fapi/v1/exchangeInfo")
    bitcoin = next(row for row in info["symbols"] if row["symbol"] == "BTCUSDT")
    assert bitcoin["status"] == "TRADING"
    assert bitcoin["contractType"] == "PERPETUAL"
    assert {row["filterType"] for row in bitcoin["filters"]} >= {"PRICE_FILTER", "LOT_SIZE"}
    assert info["rateLimits"][0]["limit"] == 2_400


@pytest.mark.parametrize(
    ("path", "parameters", "code"),
    [
        ("klines", {}, -1102),
        ("klines", {"symbol": "NOSUCHUSDT", "interval": "1m"}, -1121),
        ("klines", {"symbol": "BTCUSDT", "interval": "2m"}, -1120),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1_501}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": "soon"}, -1102),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": 2, "endTime": 1}, -1023),
        ("aggTrades", {"symbol": "BTCUSDT", "startTime": NOON - 60 * HOUR_MS}, -4166),
        ("aggTrades", {"symbol": "BTCUSDT", "fromId": 1}, -4166),
        ("historicalTrades", {"symbol": "BTCUSDT"}, -2014),
    ],
)
def test_wrong_questions_get_the_exchanges_errors(
    simulator: Served, path: str, parameters: dict[str, Any], code: int
) -> None:
    status, content, _ = simulator.ask(f"/fapi/v1/{path}", **parameters)
    assert (status, content["code"]) == (401 if code == -2014 else 400, code)


def test_questions_cost_their_weight(simulator: Served) -> None:
    costs: list[tuple[str, dict[str, Any], int]] = [
        ("time", {}, 1),
        ("exchangeInfo", {}, 1),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 99}, 1),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 101}, 2),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m"}, 5),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1_500}, 10),
        ("aggTrades", {"symbol": "BTCUSDT"}, 20),
        ("trades", {"symbol": "BTCUSDT"}, 5),
        ("ticker/24hr", {}, 40),
        ("ticker/24hr", {"symbol": "BTCUSDT"}, 1),
    ]
    for path, parameters, weight in costs:
        before = used(simulator.ask("/fapi/v1/time")[2])
        after = used(simulator.ask(f"/fapi/v1/{path}", **parameters)[2])
        # A minute may have begun in between.
        assert after - before == weight or after == weight, (path, parameters)


def test_agg_trades_follow_each_other_by_id(simulator: Served) -> None:
    newest = simulator.get("/fapi/v1/aggTrades", symbol="BTCUSDT", limit=10)
    assert [row["a"] for row in newest] == list(range(newest[0]["a"], newest[0]["a"] + 10))
    again = simulator.get("/fapi/v1/aggTrades", symbol="BTCUSDT", fromId=newest[3]["a"], limit=5)
    assert again == newest[3:8]
    since = simulator.get("/fapi/v1/aggTrades", symbol="BTCUSDT", startTime=newest[4]["T"], limit=1)
    assert since[0]["T"] == newest[4]["T"]


def test_klines_are_the_sums_of_the_trades_between(simulator: Served) -> None:
    begin = NOON - 3 * MINUTE_MS
    (row,) = simulator.get("/fapi/v1/klines", symbol="ETHUSDT", interval="1m", startTime=begin, limit=1)
    trades: list[Any] = []
    rows = simulator.get("/fapi/v1/aggTrades", symbol="ETHUSDT", startTime=begin, endTime=begin + 59_999, limit=1_000)
    while rows:
        trades += [trade for trade in rows if trade["T"] < begin + MINUTE_MS]
        if rows[-1]["T"] >= begin + MINUTE_MS or len(rows) < 1_000:
            break
        rows = simulator.get("/fapi/v1/aggTrades", symbol="ETHUSDT", fromId=rows[-1]["a"] + 1, limit=1_000)
    assert row[0] == begin
    assert Decimal(row[1]) == Decimal(trades[0]["p"])
    assert Decimal(row[4]) == Decimal(trades[-1]["p"])
    assert Decimal(row[5]) == sum(Decimal(trade["q"]) for trade in trades)
    assert Decimal(row[7]) == sum(Decimal(trade["p"]) * Decimal(trade["q"]) for trade in trades)
    assert row[8] == sum(trade["l"] - trade["f"] + 1 for trade in trades)
    assert Decimal(row[9]) == sum(Decimal(trade["q"]) for trade in trades if not trade["m"])


def test_the_truth_is_what_the_exchange_says_where_there_are_no_quirks(simulator: Served) -> None:
    wait_for("a minute of trades", lambda: simulator.status()["time"] > NOON + 62_000, timeout=60)
    truth = simulator.get("/simulator/truth", symbol="ETHUSDT", stream="aggTrade", rows=30)["klines"]["1m"]
    closed = [row for row in truth if NOON - 10 * MINUTE_MS <= row["open_time"] <= NOON]
    official = simulator.get(
        "/fapi/v1/klines", symbol="ETHUSDT", interval="1m", startTime=closed[0]["open_time"], limit=len(closed)
    )
    assert [row[0] for row in official] == [row["open_time"] for row in closed]
    for row, other in zip(official, closed, strict=True):
        assert Decimal(row[1]) == Decimal(other["open"])
        assert Decimal(row[4]) == Decimal(other["close"])
        assert Decimal(row[5]) == Decimal(other["volume"])
        assert Decimal(row[7]) == Decimal(other["quote_volume"])
        assert row[8] == int(other["count"])


def test_who_asks_too_much_is_refused_then_banned_and_longer_each_time() -> None:
    weights = Weights(100)
    assert weights.charge("a", 100, 0) == (100, None)
    for _ in range(FORBEARANCE):
        _, refused = weights.charge("a", 1, 20_000)
        assert refused is not None
        assert (refused.status, refused.headers["Retry-After"]) == (429, "40")
    _, banned = weights.charge("a", 1, 20_000)
    assert banned is not None
    assert (banned.status, banned.headers["Retry-After"]) == (418, str(BAN_MS // 1000))
    assert weights.charge("b", 1, 20_000)[1] is None
    assert weights.charge("a", 1, 20_000 + BAN_MS)[1] is None


def test_the_limit_holds_over_http(tmp_path: Path) -> None:
    with served(tmp_path, weight_limit=60) as simulator:
        statuses = [simulator.ask("/fapi/v1/ticker/24hr")[0] for _ in range(20)]
    assert 429 in statuses
    assert statuses[0] == 200


def test_a_port_that_is_taken_is_said_so(simulator: Served, tmp_path: Path) -> None:
    other = Room("simulator", write_config(tmp_path, simulator={"port": simulator.port, "symbols": 3}))
    wait_for("its end", lambda: other.process.poll() is not None)
    assert other.process.returncode != 0
    assert f"cannot listen on 127.0.0.1:{simulator.port}" in other.log
    assert "Traceback" not in other.log
