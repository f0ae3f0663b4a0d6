"""The room as a process, between a played exchange and a played engine, on real sockets."""

import signal
from pathlib import Path

import numpy as np

from harness.processes import Room, wait_for
from shared.calendar import next_open_time
from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED, EXCHANGE, FINAL
from shared.wire import (
    AddSymbol,
    FeedState,
    FetchKlines,
    FetchTrades,
    Listed,
    RemoveSymbol,
    Subscribe,
    Trades,
    Unsubscribe,
    instruments_of,
    kline_rows,
    trade_rows,
)
from tests.ingest.played import (
    FORMING,
    MINUTE,
    START,
    Engine,
    Exchange,
    Fill,
    agg_frame,
    playing,
    ticker_frame,
)


def test_an_answer_to_the_first_message_is_received_however_soon_it_comes(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        wait_for("the first word", lambda: played.engine.of(FeedState), every=0.0)
        assert played.engine.try_to_ask(Subscribe(["btcusdt@aggTrade"], complete=True))
        wait_for("the subscription", lambda: "btcusdt@aggTrade" in exchange.names())


def test_symbols_are_announced_by_volume_with_every_closed_kline_of_every_interval(
    exchange: Exchange, tmp_path: Path
) -> None:
    exchange.add("ETHUSDT", volume="1000")
    exchange.add("OLDUSDT", volume="5000", status="SETTLING")
    with playing(tmp_path, exchange) as played:
        state = played.engine.connected()
        assert abs(state.exchange_time - exchange.now) < 2_000
        assert not played.engine.of(AddSymbol)
        assert exchange.names() == ["!miniTicker@arr"]
        assert sorted(played.engine.wait(Listed).symbols) == ["BTCUSDT", "ETHUSDT"]
        played.engine.ask(Subscribe([], complete=True))
        bitcoin = played.engine.wait(AddSymbol, lambda event: event.symbol == "BTCUSDT")
        ether = played.engine.wait(AddSymbol, lambda event: event.symbol == "ETHUSDT")
        assert {event.symbol for event in played.engine.of(AddSymbol)} == {"BTCUSDT", "ETHUSDT"}
        history = [asked["symbol"] for asked in exchange.requests("klines")]
        assert history[0] == "ETHUSDT"
        assert history.count("ETHUSDT") == 15
        assert (bitcoin.price_decimals, bitcoin.quantity_decimals) == (2, 3)
        assert (bitcoin.stream, ether.stream) == ("btcusdt@aggTrade", "ethusdt@aggTrade")
        assert bitcoin.klines_until == FORMING
        assert [part.interval for part in bitcoin.klines] == list(INTERVAL_NAMES)
        for part in bitcoin.klines:
            rows = kline_rows(part.rows)
            opens = rows["open_time"].tolist()
            assert len(opens) == 59
            # The last closed one ends before the seam, and the one after it does not.
            assert next_open_time(part.interval, opens[-1]) <= FORMING
            assert next_open_time(part.interval, next_open_time(part.interval, opens[-1])) > FORMING
            assert set(rows["flags"].tolist()) == {EXCHANGE | FINAL | CLOSED}
            assert not any(rows[name].any() for name in ("first_id", "last_id", "id_count", "open_id", "close_id"))
            assert set(rows["volume"].tolist()) == {1500}
            assert rows["quote_volume"].tolist() == (rows["close"] * 1500).tolist()
            assert np.all(rows["trade_count"] == 3)
        assert kline_rows(bitcoin.klines[0].rows)["open_time"].tolist()[-1] == FORMING - MINUTE
        done = played.engine.wait(FeedState, lambda state: state.announced == 2)
        assert (done.to_announce, done.announce_ms) == (2, 0)
        # Nothing is subscribed before the engine says so.
        assert exchange.names() == ["!miniTicker@arr"]


def test_what_the_engine_knows_is_subscribed_and_not_announced(exchange: Exchange, tmp_path: Path) -> None:
    exchange.add("ETHUSDT")
    with playing(tmp_path, exchange) as played:
        # The engine knows one that trades, one that does not, and one of another kind of stream.
        played.subscribe("btcusdt@aggTrade")
        played.engine.ask(Subscribe(["btcusdt@aggTrade", "gonusdt@aggTrade", "ethusdt@trade"], complete=True))
        played.engine.wait(AddSymbol, lambda event: event.symbol == "ETHUSDT")
        played.engine.wait(RemoveSymbol, lambda event: event.symbol == "GONUSDT")
        assert "ethusdt@trade" not in exchange.names()
        assert exchange.names().count("btcusdt@aggTrade") == 1
        assert "BTCUSDT" not in [event.symbol for event in played.engine.of(AddSymbol)]
        # An engine that has lost everything is sent everything again.
        before = len(played.engine.of(AddSymbol))
        played.engine.ask(Subscribe([], complete=True))
        wait_for(
            "both again",
            lambda: {event.symbol for event in played.engine.of(AddSymbol)[before:]} == {"BTCUSDT", "ETHUSDT"},
        )


def test_trades_come_as_exact_integers_and_a_bad_frame_harms_no_other(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        exchange.say(
            agg_frame("BTCUSDT", Fill(1, START, "83091.70", "0.022", fills=3)),
            '{"stream":"btcusdt@aggTrade","data":{"e":"aggTr',
            agg_frame("NOSUCH", Fill(1, START)),
            agg_frame("BTCUSDT", Fill(2, START, "abc")),
            agg_frame("BTCUSDT", Fill(3, START, "100.1", "-0.5")),
            agg_frame("BTCUSDT", Fill(4, START), l=1),
            agg_frame("BTCUSDT", Fill(5, START), st=2),
            agg_frame("BTCUSDT", Fill(6, START, "0.5", "1", buyer_is_maker=True)),
            agg_frame("BTCUSDT", Fill(7, START, "0.12345", "1")),
        )
        wait_for("the last trade", lambda: len(played.rows()) >= 3)
        batches = played.engine.of(Trades)
        last = instruments_of(batches[-1])[0]
        assert (last.price_decimals, last.quantity_decimals) == (5, 3)
        exact = []
        for batch in batches:
            scale = 10 ** (5 - instruments_of(batch)[0].price_decimals)
            exact += [(row[1], row[3] * scale, row[4], row[5], row[6]) for row in trade_rows(batch.rows).tolist()]
        assert exact == [(1, 8309170000, 22, 3, 0), (6, 50000, 1000, 1, 1), (7, 12345, 1000, 1, 0)]
        assert batches[-1].event_time == START + 5
        # Decimals never shrink.
        exchange.say(agg_frame("BTCUSDT", Fill(8, START, "83091.70", "0.022")))
        wait_for("one more", lambda: len(played.rows()) == 4)
        assert played.rows()[-1] == ("BTCUSDT", 8, START, 8309170000, 22, 1, 0)
        assert played.room.stop() == 0
        assert "rows of another market 1," in played.room.log
        assert "refused (ids) 1," in played.room.log
        for kind in ("not JSON", "unknown symbol", "price not a number", "quantity negative", "ids"):
            assert played.room.log.count(f"refused ({kind}), and counted") == 1


def test_a_silent_connection_is_replaced_and_every_stream_subscribed_again(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange, silence_ms=1000) as played:
        played.subscribe("btcusdt@aggTrade")
        exchange.ticking = False
        lost = played.engine.wait(FeedState, lambda state: not state.connected)
        assert "silent for" in played.room.log
        exchange.ticking = True
        wait_for("streams of the next connection", lambda: len(exchange.names(connection=2)) == 2)
        back = played.engine.wait(FeedState, lambda state: state.connected and state.since >= lost.since)
        assert back.session == lost.session
        assert sorted(exchange.names(connection=2)) == ["!miniTicker@arr", "btcusdt@aggTrade"]


def test_a_broken_connection_is_replaced(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        exchange.drop()
        played.engine.wait(FeedState, lambda state: not state.connected)
        wait_for("streams of the next connection", lambda: "btcusdt@aggTrade" in exchange.names(connection=2))
        exchange.say(agg_frame("BTCUSDT", Fill(1, START)))
        wait_for("its trades", played.rows)


def test_a_listing_at_run_time_is_noticed_by_the_ticker_and_announced(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        # The next ticker names it.
        exchange.add("币安人生USDT")
        new = played.engine.wait(AddSymbol)
        assert (new.symbol, new.stream) == ("币安人生USDT", "币安人生usdt@aggTrade")
        played.subscribe(new.stream, complete=False)
        exchange.say(agg_frame("币安人生USDT", Fill(1, START)))
        wait_for("its trade", lambda: [row[0] for row in played.rows()] == ["币安人生USDT"])


def test_a_symbol_that_stops_trading_is_removed_and_can_come_back(exchange: Exchange, tmp_path: Path) -> None:
    exchange.add("ETHUSDT")
    with playing(tmp_path, exchange, symbols_refresh_ms=1000) as played:
        played.subscribe("btcusdt@aggTrade", "ethusdt@aggTrade")
        exchange.add("ETHUSDT", status="SETTLING")
        removed = played.engine.wait(RemoveSymbol)
        assert removed.symbol == "ETHUSDT"
        assert abs(removed.event_time - exchange.now) < 5_000
        played.engine.ask(Unsubscribe(["ethusdt@aggTrade"]))
        wait_for("the end of the stream", lambda: exchange.names("UNSUBSCRIBE") == ["ethusdt@aggTrade"])
        exchange.add("ETHUSDT")
        played.engine.wait(AddSymbol, lambda event: event.symbol == "ETHUSDT")


def test_only_configured_symbols_are_announced_and_no_more_than_the_maximum(exchange: Exchange, tmp_path: Path) -> None:
    for index in range(5):
        exchange.add(f"S{index}USDT", volume=str(index))
    with playing(tmp_path, exchange, symbols=["s1usdt", "S3/USDT", "S4USDT", "S4USDC"], symbols_max=2) as played:
        played.engine.connected()
        assert "there is no symbol 'S4USDC'; the nearest is S4USDT" in played.room.log
        played.engine.ask(Subscribe([], complete=True))
        wait_for("both", lambda: len(played.engine.of(AddSymbol)) == 2)
        assert [event.symbol for event in played.engine.of(AddSymbol)] == ["S4USDT", "S3USDT"]


def test_with_clock_speed_0_only_events_move_the_time(exchange: Exchange, tmp_path: Path) -> None:
    exchange.ticking = False
    with playing(tmp_path, exchange, clock_speed=0.0, silence_ms=20_000) as played:
        played.subscribe("btcusdt@aggTrade")
        states = played.engine.of(FeedState)
        wait_for("one more heartbeat", lambda: len(played.engine.of(FeedState)) > len(states))
        assert len({state.exchange_time for state in played.engine.of(FeedState)}) == 1
        later = START + 600_000
        exchange.say(ticker_frame("BTCUSDT", event_time=later))
        assert played.engine.wait(FeedState, lambda state: state.exchange_time == later)
        exchange.say(agg_frame("BTCUSDT", Fill(1, later + 55)))
        assert played.engine.wait(FeedState, lambda state: state.exchange_time == later + 60)


def test_ingest_waits_for_an_exchange_that_is_not_there_yet(tmp_path: Path) -> None:
    late = Exchange()
    late.add("BTCUSDT")
    with playing(tmp_path, late) as played:
        wait_for("its patience", lambda: "waiting for the exchange" in played.room.log)
        with late:
            played.engine.connected()
            assert played.room.process.poll() is None


def test_a_second_ingest_on_the_same_folder_does_not_start(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.engine.connected()
        second = Room("ingest", tmp_path / "klagg.toml")
        assert second.process.wait(10) == 3


def test_the_engine_may_come_back_and_misses_no_announcement(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        session = played.engine.connected().session
        played.engine.close()
        played.engine = Engine(tmp_path / "klagg.toml")
        try:
            assert played.engine.connected().session == session
            played.engine.ask(Subscribe([], complete=True))
            played.engine.wait(AddSymbol)
        finally:
            played.engine.close()


def test_an_engine_that_comes_back_is_shown_the_last_trade_of_every_symbol(exchange: Exchange, tmp_path: Path) -> None:
    exchange.add("ETHUSDT")
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade", "ethusdt@aggTrade")
        exchange.say(agg_frame("ETHUSDT", Fill(3, START)), *(agg_frame("BTCUSDT", Fill(n, START + n)) for n in (7, 8)))
        wait_for("the stream", lambda: len(played.rows()) == 3)
        played.engine.close()
        played.engine = Engine(tmp_path / "klagg.toml")
        try:
            played.engine.ask(Subscribe(["btcusdt@aggTrade", "ethusdt@aggTrade"], complete=True))
            batch = played.engine.wait(Trades)
            assert sorted(trade_rows(batch.rows)["id"].tolist()) == [3, 8]
            assert (batch.event_time, batch.covered) == (START + 8, [])
        finally:
            played.engine.close()


def test_commands_that_arrive_while_it_ends_do_no_harm(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        # Many questions wait for REST, so that it has something to end.
        exchange.refusals.append(("aggTrades", 429, {"Retry-After": "30"}, {"code": -1003, "msg": "Too many requests"}))
        played.engine.ask(FetchTrades("BTCUSDT", 1, 1))
        wait_for("the refusal", lambda: "the exchange says 429" in played.room.log)
        played.room.process.send_signal(signal.SIGTERM)
        trade_id = 1
        while played.room.process.poll() is None:
            trade_id += 2_000
            played.engine.try_to_ask(FetchTrades("BTCUSDT", trade_id, trade_id))
        # `playing` looks at how it ended.
        assert trade_id > 1


def test_a_command_that_is_none_is_counted_and_the_next_one_is_obeyed(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        for message in (b"\xc1", b"", b"\x81\xa4type\xa7nothing"):
            played.engine.send(message)
        played.engine.ask(FetchKlines("BTCUSDT", "7m", 0, START))
        played.engine.ask(FetchKlines("BTCUSDT", "1m", 0, 2**62))
        played.engine.ask(FetchTrades("BTCUSDT", 2**63, 2**63 + 1))
        played.engine.ask(FetchTrades("BTCUSDT", -5, -3))
        exchange.trades["BTCUSDT"] = [Fill(1, START)]
        played.engine.ask(FetchTrades("BTCUSDT", 1, 1))
        wait_for("the answer", lambda: played.covered() == [(1, 1)])
        assert played.room.stop() == 0
        assert "refused (command) 6," in played.room.log
        assert "refused (question) 1," in played.room.log
