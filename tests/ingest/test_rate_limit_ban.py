"""An ingest that starts while REST says nothing: what the engine knows goes on over the websocket."""

import json
import time
import urllib.request
from pathlib import Path

from harness.processes import Room, wait_for, write_config
from services.ingest.rate_limit import write_ban
from shared.config import load
from shared.wire import AddSymbol, FeedState, FetchTrades, RemoveSymbol, Subscribe, Trades, instruments_of
from tests.ingest.played import START, Engine, Exchange, Fill, agg_frame, playing

STREAM = "btcusdt@aggTrade"
BAN_S = 4.0


def be_banned(folder: Path, exchange: Exchange, seconds: float) -> None:
    """Leave what an ingest leaves that got a 418."""
    (folder / "data").mkdir()
    until = time.time_ns() // 1_000_000 + int(seconds * 1000)
    write_ban(folder / "data" / "ban", f"http://127.0.0.1:{exchange.port}/fapi/v1", until)


def test_what_the_engine_knows_is_live_although_the_address_is_banned(exchange: Exchange, tmp_path: Path) -> None:
    exchange.add("NEWUSDT")
    be_banned(tmp_path, exchange, 3_600)
    with playing(tmp_path, exchange) as played:
        state = played.engine.connected()
        assert abs(state.exchange_time - exchange.now) < 2_000
        played.engine.ask(Subscribe([STREAM, "goneusdt@aggTrade"], complete=True))
        wait_for("the subscription", lambda: STREAM in exchange.names())
        exchange.say(agg_frame("BTCUSDT", Fill(7, START, price="100.50")))
        exchange.say(agg_frame("BTCUSDT", Fill(8, START, price="100.505")))
        wait_for("the trades", lambda: {row[1] for row in played.rows()} >= {7, 8})
        assert instruments_of(played.engine.of(Trades)[-1])[0].price_decimals == 3
        assert not exchange.asked
        assert not played.engine.of(RemoveSymbol)
        assert not played.engine.of(AddSymbol)
        assert exchange.connections == 1


def test_what_the_engine_does_not_know_comes_when_the_ban_is_over(exchange: Exchange, tmp_path: Path) -> None:
    exchange.add("NEWUSDT")
    be_banned(tmp_path, exchange, BAN_S)
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        played.engine.ask(Subscribe([STREAM, "goneusdt@aggTrade"], complete=True))
        assert played.engine.wait(AddSymbol).symbol == "NEWUSDT"
        assert played.engine.wait(RemoveSymbol).symbol == "GONEUSDT"
        assert [event.symbol for event in played.engine.of(AddSymbol)] == ["NEWUSDT"]
        assert exchange.connections == 1


def test_missing_trades_are_asked_for_once_the_ban_is_over(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START + trade_id) for trade_id in range(1, 8)]
    be_banned(tmp_path, exchange, BAN_S)
    banned_at = time.monotonic()
    with playing(tmp_path, exchange) as played:
        played.subscribe(STREAM)
        played.engine.ask(FetchTrades("BTCUSDT", 3, 5))
        wait_for("the missing trades", lambda: [row[1] for row in played.rows()] == [3, 4, 5])
        assert time.monotonic() - banned_at > BAN_S - 0.5
        assert played.covered() == [(3, 5)]


def test_a_rest_that_fails_keeps_no_trade_waiting(exchange: Exchange, tmp_path: Path) -> None:
    exchange.refusals = [("exchangeInfo", 503, {}, {})] * 1_000
    with playing(tmp_path, exchange) as played:
        played.subscribe(STREAM)
        exchange.say(agg_frame("BTCUSDT", Fill(7, START)))
        wait_for("the trade", lambda: 7 in {row[1] for row in played.rows()})
        assert exchange.refusals


def test_a_limit_that_a_former_ingest_has_used_is_asked_for_first(exchange: Exchange, tmp_path: Path) -> None:
    exchange.weight = 16_000
    exchange.weight_limit = 1_000_000
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        played.engine.ask(Subscribe([], complete=True))
        assert played.engine.wait(AddSymbol).symbol == "BTCUSDT"


def test_a_ban_of_the_simulator_leaves_live_trades_alone_across_a_restart(tmp_path: Path) -> None:
    path = write_config(tmp_path, exchange={"backfill_rows": 59}, simulator={"symbols": 3, "trades_per_second": 200.0})
    config = load({"KLAGG_CONFIG": str(path)})
    simulator = f"http://127.0.0.1:{config.simulator.port}/simulator"
    simulated, ingest = Room("simulator", path), Room("ingest", path)
    try:
        with Engine(path) as engine:
            engine.connected()
            engine.ask(Subscribe([], complete=True, engine=1))
            wait_for("three symbols", lambda: len(engine.of(AddSymbol)) == 3)
            streams = [event.stream for event in engine.of(AddSymbol)]
            post(f"{simulator}/fault?kind=ban&seconds=20")
            engine.ask(FetchTrades("BTCUSDT", 1, 2))
            wait_for("the ban", lambda: "the exchange says 418" in ingest.log)
            ingest.stop()
            seen = len(engine.of(Trades))
            ingest = Room("ingest", path)
            wait_for("its word", lambda: engine.of(FeedState)[-1].connected and engine.of(FeedState)[-1].engine == 0)
            engine.ask(Subscribe(streams, complete=True, engine=1))
            wait_for("live trades", lambda: len(engine.of(Trades)) > seen + 10)
            assert "symbols trade" not in ingest.log.split("banned this address")[1]
            assert len(engine.of(AddSymbol)) == 3
            assert not engine.of(RemoveSymbol)
            wait_for("REST", lambda: "3 symbols trade" in ingest.log.split("banned this address")[1])
            with urllib.request.urlopen(f"{simulator}/status") as answer:
                assert not json.load(answer)["refused"]
    finally:
        ingest.stop()
        simulated.stop()


def post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST")):
        pass
