"""Faults on demand: each of them is what it says, and only for as long as it lasts."""

import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from harness.processes import wait_for
from services.simulator.faults import AT_ONCE, LASTING, ONCE, Fault, Faults, read_fault
from services.simulator.frames import TICKER_STREAM, Chunk
from tests.simulator.served import NOON, Served, collect, made, served, subscribe

STREAM = "btcusdt@aggTrade"


def chunk(*numbers: int, stream: str = STREAM) -> Chunk:
    return Chunk(stream, [str(event_id).encode() for event_id in numbers])


def sent(faults: Faults, now_s: float, *chunks: Chunk) -> list[int]:
    """Return the numbers that are sent; -1 for what is none."""
    messages = [message for each in faults.distort(list(chunks), now_s) for message in each.messages]
    return [int(message) if message.isdigit() else -1 for message in messages]


def faulty(**fault: Any) -> Faults:
    faults = Faults(1)
    faults.begin(Fault(**{"share": 1.0, **fault}), 0.0)
    return faults


def test_messages_are_left_out_repeated_and_held_back() -> None:
    assert sent(faulty(kind="skip"), 1, chunk(1, 2, 3)) == []
    assert sent(faulty(kind="repeat"), 1, chunk(1, 2)) == [1, 1, 2, 2]
    late = faulty(kind="delay", ms=3_000)
    assert sent(late, 1, chunk(1, 2)) == []
    assert sent(late, 3.9) == []
    assert sent(late, 4.1) == [1, 2]
    assert sent(faulty(kind="garbage"), 1, chunk(1, 2))[1::2] == [1, 2]


def test_what_is_out_of_order_comes_all_the_same() -> None:
    faults = Faults(1)
    faults.begin(Fault(kind="reorder", share=0.3), 0.0)
    came = [
        event_id
        for begin in range(0, 500, 5)
        for event_id in sent(faults, begin / 100, chunk(*range(begin, begin + 5)))
    ]
    came += sent(faults, 9.0)
    assert came != sorted(came)
    assert sorted(came) == list(range(500))


def test_ids_that_pages_leave_out_are_the_same_ones_while_it_lasts() -> None:
    faults = Faults(1)
    ids = np.arange(1_000_000, 1_010_000)
    assert not faults.omits(ids, 0.0).any()
    faults.begin(Fault(kind="omit", share=0.1, seconds=10), 0.0)
    omitted = faults.omits(ids, 1.0)
    assert 800 < omitted.sum() < 1_200
    assert (faults.omits(ids[500:], 9.0) == omitted[500:]).all()
    assert not faults.omits(ids, 10.1).any()


def test_a_share_is_a_share_and_an_end_is_an_end() -> None:
    faults = Faults(1)
    faults.begin(Fault(kind="skip", share=0.1, seconds=10), 0.0)
    assert 50 < 1_000 - len(sent(faults, 1, chunk(*range(1_000)))) < 200
    assert len(sent(faults, 10.1, chunk(*range(1_000)))) == 1_000
    assert faults.quiet


def test_silence_spares_nobody_and_the_other_faults_spare_the_ticker() -> None:
    assert sent(faulty(kind="silent"), 1, chunk(1), chunk(2, stream=TICKER_STREAM)) == []
    assert sent(faulty(kind="skip"), 1, chunk(1), chunk(2, stream=TICKER_STREAM)) == [2]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "kind"),
        ({"kind": "nothing"}, "no such fault; there are drop,"),
        ({"kind": "skip", "share": "2"}, "out of range"),
        ({"kind": "skip", "seconds": "0"}, "out of range"),
        ({"kind": "skip", "ms": "x"}, "ms"),
        ({"kind": "skip", "colour": "red"}, "colour"),
    ],
)
def test_bad_requests_are_refused_in_words(asked: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_fault(asked)


def test_a_symbol_s_decimals_grow_and_its_numbers_stay() -> None:
    market = made()
    market.advance(NOON + 55_000, set())
    before = market.find("BTCUSDT")
    assert before is not None
    klines = market.klines(before, "1m", NOON, market.now)
    market.refine("BTCUSDT")
    after = market.find("BTCUSDT")
    assert after is not None
    assert (after.price_decimals, after.quantity_decimals) == (before.price_decimals + 1, before.quantity_decimals + 1)
    finer = market.klines(after, "1m", NOON, market.now)
    for name, factor in (("open", 10), ("high", 10), ("volume", 10), ("quote_volume", 100), ("count", 1)):
        assert (finer[name] == klines[name] * factor).all()
    last = market.last_ids()["BTCUSDT"]["aggTrade"]
    market.advance(NOON + 59_000, set())
    rows = market.agg_trades(after, last - 1, None, None, 1_000)
    assert rows["id"].tolist() == list(range(last - 1, rows["id"][-1] + 1))
    assert rows["id"][-1] > last
    assert not (rows["price"] % 10).any()


def test_decimals_grow_no_further_than_a_month_of_numbers_fits() -> None:
    """A market that wraps around would be no truth to compare with."""
    market = made()
    market.advance(NOON + 55_000, set())

    def refine() -> None:
        for _ in range(9):
            market.refine("DOGEUSDT")

    with pytest.raises(ValueError, match="DOGEUSDT"):
        refine()
    coin = market.find("DOGEUSDT")
    assert coin is not None
    for interval in ("1m", "1d", "1w", "1M"):
        rows = market.klines(coin, interval, NOON - 62 * 86_400_000, market.now)
        assert len(rows)
        assert (rows["quote_volume"] >= rows["taker_buy_quote_volume"]).all()
        assert (rows["taker_buy_quote_volume"] >= 0).all()


def test_a_coin_is_listed_at_once_and_another_one_ends_with_its_minute() -> None:
    market = made(trades_per_second=3_000.0)
    symbol = market.list_coin()
    market.delist("ETHUSDT")
    for step in range(1, 40):
        market.advance(NOON + 50_000 + step * 1_000, set())
    ids = market.last_ids()
    assert ids[symbol]["aggTrade"] > 0
    ether, ended = market.find("ETHUSDT"), ids["ETHUSDT"]["aggTrade"]
    assert ether is not None
    assert market.status(ether) == "SETTLING"
    market.advance(NOON + 150_000, set())
    assert market.last_ids()["ETHUSDT"]["aggTrade"] == ended
    assert market.agg_trades(ether, None, None, None, 1)["time"][0] < NOON + 60_000
    with pytest.raises(KeyError):
        market.delist("NOBODYUSDT")


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("faults")) as simulator:
        yield simulator


def set_fault(simulator: Served, **fault: object) -> Any:
    return simulator.post("/simulator/fault?" + "&".join(f"{name}={value}" for name, value in fault.items()))


def test_every_fault_can_be_asked_for(simulator: Served) -> None:
    listed = simulator.get("/simulator/fault")
    assert (listed["at once"].keys(), listed["lasting"].keys()) == (AT_ONCE.keys(), LASTING.keys())
    assert listed["once"].keys() == ONCE.keys()
    for kind in LASTING:
        assert kind in set_fault(simulator, kind=kind, seconds=0.1, ms=1)["faults"]
    wait_for("their end", lambda: not simulator.status()["faults"])
    status, content, _ = simulator.ask("/simulator/status")
    assert (status, content["refused"]) == (200, {})


def test_websockets_break_close_and_are_refused(simulator: Served) -> None:
    for kind in ("drop", "close"):
        with simulator.socket("/market/ws") as socket:
            set_fault(simulator, kind=kind)
            with pytest.raises(ConnectionClosed) as closed:
                collect(socket, 5)
        assert (closed.value.rcvd.code if closed.value.rcvd else None) == (1001 if kind == "close" else None)
    set_fault(simulator, kind="refuse", seconds=0.5)
    with pytest.raises(InvalidStatus), simulator.socket("/market/ws"):
        pass
    wait_for("its end", lambda: not simulator.status()["faults"])
    with simulator.socket("/market/ws"):
        pass


def test_the_end_of_a_websocket_is_announced(simulator: Served) -> None:
    with simulator.socket("/market/stream") as socket:
        set_fault(simulator, kind="shutdown", seconds=0.3)
        (message,) = collect(socket, 5, enough=1)
        assert (message["stream"], message["data"]["e"]) == ("!serverShutdown", "serverShutdown")
        with simulator.socket("/market/ws") as another:
            with pytest.raises(ConnectionClosed):
                collect(socket, 5)
            assert collect(another, 0.2) == []


def test_a_muted_stream_is_well_on_a_new_websocket(simulator: Served) -> None:
    with simulator.socket("/market/ws") as old:
        subscribe(old, STREAM, "ethusdt@aggTrade")
        assert collect(old, 10, enough=1)
        set_fault(simulator, kind="mute", symbol="BTCUSDT")
        collect(old, 0.3)
        with simulator.socket("/market/ws") as new:
            subscribe(new, STREAM)
            assert collect(new, 10, enough=5)
            assert {message["s"] for message in collect(old, 10, enough=5)} == {"ETHUSDT"}
    assert simulator.ask("/simulator/fault")[0] == 200


def test_a_websocket_lives_as_long_as_is_asked(simulator: Served) -> None:
    set_fault(simulator, kind="lifetime", ms=500, seconds=5)
    began = time.monotonic()
    with simulator.socket("/market/ws") as socket, pytest.raises(ConnectionClosed):
        collect(socket, 10)
    assert time.monotonic() - began > 0.5
    set_fault(simulator, kind="lifetime", ms=500, seconds=0.001)


def test_rest_fails_in_every_way(simulator: Served) -> None:
    set_fault(simulator, kind="error", share=1, seconds=0.3)
    assert simulator.ask("/fapi/v1/time")[0] == 503
    wait_for("its end", lambda: not simulator.status()["faults"])
    set_fault(simulator, kind="stall", share=1, ms=700, seconds=0.3)
    began = time.monotonic()
    assert simulator.ask("/fapi/v1/time")[0] == 200
    assert time.monotonic() - began > 0.6
    set_fault(simulator, kind="cut", share=1, seconds=0.3)
    with pytest.raises((OSError, HTTPException)):
        simulator.get("/fapi/v1/klines", symbol="BTCUSDT", interval="1m")
    wait_for("its end", lambda: not simulator.status()["faults"])


def test_a_client_that_goes_on_asking_is_noticed(simulator: Served) -> None:
    set_fault(simulator, kind="limit", share=1, ms=2_000, seconds=0.2)
    status, _, headers = simulator.ask("/fapi/v1/time")
    assert (status, headers["Retry-After"]) == (429, "2")
    assert simulator.status()["refused"] == {}

    def noticed() -> object:
        assert simulator.ask("/fapi/v1/time")[0] in (200, 429)
        return simulator.status()["refused"]

    assert wait_for("being noticed", noticed, timeout=30, every=0.1) == {"asked while told not to": 1}
    set_fault(simulator, kind="ban", seconds=0.4)
    status, content, _ = simulator.ask("/fapi/v1/time")
    assert status == 418
    assert "banned until" in content["msg"]
    wait_for("its end", lambda: not simulator.status()["faults"])


YEARS = 10 * 365 * 86_400_000


def test_a_time_is_wrong_once(simulator: Served) -> None:
    before = simulator.get("/fapi/v1/time")["serverTime"]
    assert set_fault(simulator, kind="time", ms=YEARS)["once"] == ["time"]
    assert simulator.get("/fapi/v1/time")["serverTime"] >= before + YEARS
    assert simulator.get("/fapi/v1/time")["serverTime"] < before + 60_000
    set_fault(simulator, kind="time", ms=-2 * YEARS)
    assert simulator.get("/fapi/v1/time")["serverTime"] < before - YEARS
    assert simulator.status()["once"] == []
    with simulator.socket(f"/market/stream?streams={STREAM}/{TICKER_STREAM}") as socket:
        set_fault(simulator, kind="event", ms=YEARS)
        frames = wait_for("two tickers", lambda: more(socket, TICKER_STREAM, 2), timeout=60)
        assert [row["E"] >= before + YEARS for frame in frames for row in frame[:1]] == [True, False]
        set_fault(simulator, kind="event", ms=-YEARS, symbol="BTCUSDT")
        trades = wait_for("its trades", lambda: more(socket, STREAM, 30), timeout=60)
        wrong = [trade for trade in trades if trade["E"] < before]
        assert len(wrong) == 1
        assert wrong[0]["T"] >= before


def more(socket: Any, stream: str, count: int) -> list[Any]:
    """Return the data of the next messages of a stream."""
    messages: list[Any] = []
    while len(messages) < count:
        messages += [message["data"] for message in collect(socket, 5.0, 1) if message["stream"] == stream]
    return messages


def test_the_exchange_s_clock_jumps(simulator: Served) -> None:
    before = simulator.get("/fapi/v1/time")["serverTime"]
    set_fault(simulator, kind="clock", ms=90_000)
    assert simulator.get("/fapi/v1/time")["serverTime"] >= before + 90_000
    wait_for("the market", lambda: simulator.status()["time"] >= before + 90_000)
    set_fault(simulator, kind="clock", ms=-30_000)
    assert simulator.get("/fapi/v1/time")["serverTime"] < before + 90_000
