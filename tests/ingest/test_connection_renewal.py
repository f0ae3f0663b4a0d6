"""Websockets that are replaced before they end, and bans that outlive the process: ingest over its real sockets."""

import json
import time
from itertools import count
from pathlib import Path

import pytest

from harness.processes import wait_for
from services.ingest.rate_limit import read_ban, write_ban
from shared.wire import FeedState, FetchTrades
from tests.ingest.played import START, Exchange, Fill, agg_frame, playing, ticker_frame

STREAM = "btcusdt@aggTrade"


def test_the_feed_stays_connected_while_one_websocket_follows_another(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange, connection_max_ms=1_500) as played:
        played.subscribe(STREAM)
        trade_id = 0

        def trades() -> bool:
            nonlocal trade_id
            trade_id += 1
            exchange.say(agg_frame("BTCUSDT", Fill(trade_id, START + trade_id)))
            return exchange.connections >= 4

        wait_for("three more websockets", trades)
        wait_for("the last trade", lambda: trade_id in {row[1] for row in played.rows()})
        assert {row[1] for row in played.rows()} == set(range(1, trade_id + 1))
        states = played.engine.of(FeedState)
        connected = [state.connected for state in states[[state.connected for state in states].index(True) :]]
        assert all(connected)


def test_a_websocket_that_is_going_to_be_closed_is_replaced_at_once(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe(STREAM)
        exchange.say(json.dumps({"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": START}}))
        wait_for("the next websocket", lambda: STREAM in exchange.names(connection=2))
        wait_for("the end of the former", lambda: exchange.open == 1)
        assert all(state.connected for state in played.engine.of(FeedState)[-3:])


def test_a_stream_that_is_acknowledged_and_silent_gets_another_websocket(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange, silence_ms=1_000) as played:
        played.subscribe(STREAM)
        exchange.ticking = False
        began = time.monotonic()
        prices = count(1)

        def ticks() -> bool:
            exchange.say(ticker_frame("BTCUSDT", c=str(next(prices))))
            return exchange.connections >= 2

        wait_for("another websocket", ticks, every=0.1)
        assert time.monotonic() - began > 2.5
        assert "silent though they trade: BTCUSDT" in played.room.log


def test_a_ban_is_obeyed_by_the_next_ingest_too(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        refusal = {"code": -1003, "msg": "Way too many requests"}
        exchange.refusals.append(("exchangeInfo", 418, {"Retry-After": "10"}, refusal))
        exchange.say(ticker_frame("NEWUSDT"))
        wait_for("the ban", lambda: "the exchange says 418" in played.room.log)
        banned_at = time.monotonic()
    asked = len(exchange.asked)
    with playing(tmp_path, exchange) as played:
        wait_for("the next ingest", lambda: "the exchange has banned this address" in played.room.log)
        wait_for("its first question", lambda: len(exchange.asked) > asked)
        assert time.monotonic() - banned_at >= 9.5
        played.engine.connected()


def test_a_ban_that_cannot_be_written_is_obeyed_logged_and_written_later(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        in_the_way = tmp_path / "data" / "ban.new"
        in_the_way.mkdir()
        refusal = {"code": -1003, "msg": "Way too many requests"}
        exchange.refusals.append(("exchangeInfo", 418, {"Retry-After": "60"}, refusal))
        exchange.say(ticker_frame("NEWUSDT"))
        wait_for("its word", lambda: "ban not written: it is kept in memory" in played.room.log)
        asked = len(exchange.asked)
        assert not (tmp_path / "data" / "ban").exists()
        in_the_way.rmdir()
        rest = f"http://127.0.0.1:{exchange.port}/fapi/v1"
        until = wait_for("the file", lambda: read_ban(tmp_path / "data" / "ban", rest))
        assert abs(until - time.time_ns() // 1_000_000 - 55_000) < 10_000
        played.engine.ask(FetchTrades("BTCUSDT", 1, 2))
        seen = len(played.engine.of(FeedState))
        wait_for("two more heartbeats", lambda: len(played.engine.of(FeedState)) > seen + 1)
        assert len(exchange.asked) == asked
        assert played.room.stop() == 0
        assert "retried" not in played.room.log


def test_what_is_noted_of_bans_is_of_this_exchange_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "ban"
    assert read_ban(path, "here") == 0
    write_ban(path, "here", 17)
    assert (read_ban(path, "here"), read_ban(path, "elsewhere")) == (17, 0)
    for text in ("", "{", "[1]", '{"rest": "here"}', '{"rest": "here", "until": "x"}'):
        path.write_text(text)
        assert read_ban(path, "here") == 0


def test_an_exchange_whose_clock_jumps_is_measured_again(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        for jump_s in (30, -20):
            exchange.jump(jump_s)
            known = len(played.engine.of(FeedState))
            wait_for(
                "the new time",
                lambda: any(
                    abs(state.exchange_time - exchange.now) < 2_000
                    for state in played.engine.of(FeedState)[known:][-1:]  # noqa: B023
                ),
            )


@pytest.mark.parametrize("wrong_ms", [3_600_000, 315_360_000_000, -21_600_000])
def test_a_first_answer_about_the_time_is_not_believed_alone(exchange: Exchange, tmp_path: Path, wrong_ms: int) -> None:
    exchange.wrong_ms = [wrong_ms]
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        exchange.wrong_ms = [wrong_ms]
        # The ticker's word that something is off makes ingest ask for the time.
        exchange.say(ticker_frame("BTCUSDT", event_time=exchange.now + wrong_ms))
        wait_for("doubt", lambda: "time not confirmed: the exchange says" in played.room.log)
        seen = len(played.engine.of(FeedState))
        wait_for("two more heartbeats", lambda: len(played.engine.of(FeedState)) > seen + 1)
        assert len(exchange.requests("time")) >= 7
        for state in played.engine.of(FeedState):
            now = exchange.now - (time.monotonic_ns() - state.monotonic_ns) // 1_000_000
            assert abs(state.exchange_time - now) < 200
