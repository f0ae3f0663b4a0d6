"""Missing trades: by id or since a time, from memory or by REST, and none of them requested twice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from harness.processes import wait_for
from shared.wire import FetchTrades, RemoveSymbol, Subscribe, Trades
from tests.ingest.played import (
    FORMING,
    START,
    Exchange,
    Fill,
    Played,
    agg_frame,
    playing,
    trade_frame,
)


def test_trades_are_fetched_by_id_in_pages_that_add_up(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START - 50_000 + trade_id) for trade_id in range(1, 2600)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        played.engine.ask(FetchTrades("BTCUSDT", 100, 2299))
        wait_for("all pages", lambda: played.covered()[-1:] == [(2100, 2299)])
        assert played.covered() == [(100, 1099), (1100, 2099), (2100, 2299)]
        assert [row[1] for row in played.rows()] == list(range(100, 2300))
        assert all(batch.event_time == 0 for batch in played.engine.of(Trades))
        # Up to the newest there is.
        played.engine.ask(FetchTrades("BTCUSDT", 2500, -1))
        wait_for("the newest", lambda: played.covered()[-1] == (2500, 2599))


@contextmanager
def rest_stands_still(exchange: Exchange, played: Played) -> Iterator[None]:
    """Let what is asked in the block wait with a question that was asked before it."""
    exchange.refusals.append(("aggTrades", 429, {"Retry-After": "4"}, {"code": -1003, "msg": "Too many requests"}))
    played.engine.ask(FetchTrades("BTCUSDT", 100, 101))
    # Ingest's own word: the exchange has sent it before ingest has received it.
    wait_for("the refusal", lambda: "the exchange says 429" in played.room.log)
    exchange.asked.clear()
    yield
    # Commands are carried out in order: an answer to this one means that the questions before it were taken.
    played.engine.ask(Subscribe(["goneusdt@aggTrade"]))
    wait_for("the answer to the command after them", lambda: played.engine.of(RemoveSymbol))
    assert not exchange.asked


def test_missing_trades_of_one_page_cost_one_request(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START - 50_000 + trade_id) for trade_id in range(1, 2600)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        with rest_stands_still(exchange, played):
            for first, last in ((105, 105), (400, 410), (1099, 1099), (1100, 1100), (90, 91)):
                played.engine.ask(FetchTrades("BTCUSDT", first, last))
        wait_for("all of them", lambda: len(played.covered()) == 3)
        assert sorted(played.covered()) == [(90, 91), (100, 1099), (1100, 1100)]
        assert sorted(asked["fromId"] for asked in exchange.requests("aggTrades")) == ["100", "1100", "90"]
        # What has been answered takes nothing along any more.
        played.engine.ask(FetchTrades("BTCUSDT", 105, 105))
        wait_for("one more", lambda: played.covered()[3:] == [(105, 105)])


def test_a_large_gap_is_fetched_once_however_its_beginning_moves(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START - 50_000 + trade_id) for trade_id in range(1, 4000)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        with rest_stands_still(exchange, played):
            for first in (1500, 1600, 2700, 3500, 1500):
                played.engine.ask(FetchTrades("BTCUSDT", first, 3600))
        wait_for("all of it", lambda: len(played.covered()) == 4)
        assert sorted(played.covered()) == [(100, 101), (1500, 2499), (2500, 3499), (3500, 3600)]
        assert sorted(row[1] for row in played.rows()) == [100, 101, *range(1500, 3601)]


def test_what_the_stream_brought_is_answered_from_memory(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START - 50_000 + trade_id) for trade_id in range(1, 41)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        for fill in exchange.trades["BTCUSDT"][20:]:
            exchange.say(agg_frame("BTCUSDT", fill))
        wait_for("the stream", lambda: len(played.rows()) == 20)
        played.engine.ask(FetchTrades("BTCUSDT", 25, 40))
        wait_for("the answer", lambda: played.covered() == [(25, 40)])
        assert not exchange.requests("aggTrades")
        # What came before the stream is REST's.
        played.engine.ask(FetchTrades("BTCUSDT", 15, 22))
        wait_for("the answer of both", lambda: played.covered()[1:] == [(21, 22), (15, 20)])
        assert [asked["fromId"] for asked in exchange.requests("aggTrades")] == ["15"]


def test_the_newest_trades_are_asked_for_when_the_stream_has_begun(exchange: Exchange, tmp_path: Path) -> None:
    # A trade between the answer and the stream's begin would be in neither, and show by the next id only.
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START - 50_000 + trade_id) for trade_id in range(1, 10)]
    with playing(tmp_path, exchange) as played:
        exchange.reply_after_s = 0.7
        played.subscribe("btcusdt@aggTrade")
        played.engine.ask(FetchTrades("BTCUSDT", 5, -1))
        played.engine.ask(FetchTrades("BTCUSDT", 1, 3))
        wait_for("what waits for nothing", lambda: played.covered() == [(1, 3)])
        exchange.trades["BTCUSDT"].append(Fill(10, START))
        wait_for("the newest", lambda: played.covered() == [(1, 3), (5, 10)])


def test_trades_since_a_time_cover_every_id_before_it(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, FORMING - 1000 + trade_id * 100) for trade_id in range(1, 50)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        played.engine.ask(FetchTrades("BTCUSDT", 0, 29, FORMING))
        wait_for("the answer", lambda: played.covered() == [(0, 29)])
        assert [row[1] for row in played.rows()] == list(range(10, 30))
        # Nothing since then: the newest id says where the future begins.
        played.engine.ask(FetchTrades("BTCUSDT", 0, -1, START + 3_600_000))
        wait_for("the newest id", lambda: played.covered()[-1] == (0, 49))
        assert len(played.rows()) == 20
        # An exchange that searches no further than a little while is asked by id.
        exchange.search_ms = 10
        played.engine.ask(FetchTrades("BTCUSDT", 0, -1, FORMING + 3001))
        wait_for("the last ones", lambda: len(played.rows()) == 29)
        assert [row[1] for row in played.rows()[20:]] == list(range(41, 50))
        assert played.covered()[-1] == (0, 49)
        # Never traded.
        before = len(played.engine.of(Trades))
        played.engine.ask(FetchTrades("ETHUSDT", 0, -1, START))
        wait_for("an empty answer", lambda: len(played.engine.of(Trades)) == before + 1)
        assert played.engine.of(Trades)[-1].covered == []


def test_trades_that_are_too_old_are_not_answered_and_not_asked_twice(exchange: Exchange, tmp_path: Path) -> None:
    message = {"code": -4166, "msg": "Search window is restricted to recent 2 days only."}
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START) for trade_id in range(1, 10)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        exchange.refusals.append(("aggTrades", 400, {}, message))
        played.engine.ask(FetchTrades("BTCUSDT", 1, 5))
        wait_for("the log to say so", lambda: "trades unreachable" in played.room.log)
        played.engine.ask(FetchTrades("BTCUSDT", 1, 5))
        played.engine.ask(FetchTrades("BTCUSDT", 2, 5))
        wait_for("the other answer", lambda: played.covered() == [(2, 5)])
        assert len(exchange.requests("aggTrades")) == 2


def test_void_ids_of_the_trade_stream_are_covered_without_rows(exchange: Exchange, tmp_path: Path) -> None:
    void = {5, 6, 1500, 2400}
    exchange.trades["BTCUSDT"] = [
        Fill(trade_id, FORMING - 10_000 + trade_id * 10) for trade_id in range(1, 2600) if trade_id not in void
    ]
    with playing(tmp_path, exchange, stream="trade") as played:
        played.subscribe("btcusdt@trade")
        assert [sent.route for sent in exchange.sent if "btcusdt@trade" in sent.names] == ["public"]
        assert [sent.route for sent in exchange.sent if "!miniTicker@arr" in sent.names] == ["market"]
        exchange.say(
            trade_frame("BTCUSDT", Fill(2600, START)),
            trade_frame("BTCUSDT", Fill(2601, START, "0", "0"), X="NA"),
            trade_frame("BTCUSDT", Fill(2602, START, "1.2345678", "9"), X="INSURANCE_FUND"),
            route="public",
        )
        wait_for("three trades", lambda: len(played.rows()) == 3)
        assert [row[1:2] + row[3:6] for row in played.rows()] == [
            (2600, 10050, 2000, 1),
            (2601, 0, 0, 0),
            (2602, 0, 0, 0),
        ]
        # The recent thousand needs no key, and goes by one request.
        played.engine.ask(FetchTrades("BTCUSDT", 2399, 2410))
        wait_for("the recent ones", lambda: (2399, 2410) in played.covered())
        assert [row[1] for row in played.rows()[3:]] == [2399, *range(2401, 2411)]
        assert not exchange.requests("historicalTrades")
        # Older ones come by key, in pages of five hundred.
        before = len(played.rows())
        played.engine.ask(FetchTrades("BTCUSDT", 2, 1200))
        wait_for("the older ones", lambda: sum(last - first + 1 for first, last in played.covered()) == 12 + 1199)
        assert [row[1] for row in played.rows()[before:]] == [n for n in range(2, 1201) if n not in void]
        assert exchange.requests("historicalTrades")[0]["key"] == "simulator"
        # Since a time, backwards until it is passed: everything is covered, from 0.
        before, parts_before = len(played.rows()), len(played.covered())
        played.engine.ask(FetchTrades("BTCUSDT", 0, 2599, FORMING - 1000))
        wait_for("the beginning", lambda: any(first == 0 for first, _ in played.covered()))
        assert sorted(row[1] for row in played.rows()[before:]) == [n for n in range(900, 2600) if n not in void]
        parts = sorted(played.covered()[parts_before:])
        assert parts[0][0] == 0
        assert parts[-1][1] == 2599
        assert all(later[0] == earlier[1] + 1 for earlier, later in pairwise(parts))


def test_looking_back_ends_where_nothing_is_older(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START) for trade_id in range(3_000_000_000, 3_000_001_700)]
    with playing(tmp_path, exchange, stream="trade") as played:
        played.subscribe("btcusdt@trade")
        played.engine.ask(FetchTrades("BTCUSDT", 0, -1, FORMING - 1000))
        wait_for("the beginning", lambda: any(first == 0 for first, _ in played.covered()))
        assert sorted(row[1] for row in played.rows()) == list(range(3_000_000_000, 3_000_001_700))
        assert len(exchange.requests("historicalTrades")) <= 3
        # What lies before the symbol's first trade is no hole.
        assert {first for first, _ in played.covered() if first < 3_000_000_000} == {0}


def test_rest_stops_at_429_and_goes_on_when_it_may(exchange: Exchange, tmp_path: Path) -> None:
    exchange.trades["BTCUSDT"] = [Fill(trade_id, START) for trade_id in range(1, 10)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        exchange.refusals.append(("aggTrades", 429, {"Retry-After": "5"}, {"code": -1003, "msg": "Too many requests"}))
        began = time.monotonic()
        played.engine.ask(FetchTrades("BTCUSDT", 1, 5))
        wait_for("the refusal", lambda: "the exchange says 429" in played.room.log)
        asked = len(exchange.asked)
        # Live trades are untouched meanwhile.
        exchange.say(agg_frame("BTCUSDT", Fill(10, START)))
        wait_for("a live trade", played.rows, timeout=4.5)
        assert len(exchange.asked) == asked
        wait_for("the answer", lambda: played.covered() == [(1, 5)])
        assert time.monotonic() - began > 4.8


def test_ids_that_an_answer_left_out_are_asked_of_rest_again(exchange: Exchange, tmp_path: Path) -> None:
    everything = [Fill(trade_id, START - 50_000 + trade_id) for trade_id in range(1, 41)]
    exchange.trades["BTCUSDT"] = [fill for fill in everything if fill.id not in (5, 6, 20)]
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        # At the beginning, in the middle, and all of it.
        for ask in ((5, 10), (15, 25), (5, 6)):
            played.engine.ask(FetchTrades("BTCUSDT", *ask))
            wait_for("the answer", lambda: played.covered()[-1:] == [ask])  # noqa: B023
        assert [row[1] for row in played.rows()] == [*range(7, 11), *range(15, 20), *range(21, 26)]
        exchange.trades["BTCUSDT"] = everything
        for ask in ((5, 6), (20, 20)):
            asked, answers = len(exchange.requests("aggTrades")), len(played.covered())
            played.engine.ask(FetchTrades("BTCUSDT", *ask))
            wait_for("the answer", lambda: played.covered()[answers:] == [ask])  # noqa: B023
            assert len(exchange.requests("aggTrades")) == asked + 1
        assert [row[1] for row in played.rows()[-3:]] == [5, 6, 20]


def test_every_row_that_is_no_market_trade_is_handed_on_as_a_void_id(exchange: Exchange, tmp_path: Path) -> None:
    kinds = ["NA", "INSURANCE_FUND", "ADL", "SOMETHING_NEW", "", "market", "MARKETS"]
    with playing(tmp_path, exchange, stream="trade") as played:
        played.subscribe("btcusdt@trade")
        frames = [
            trade_frame("BTCUSDT", Fill(trade_id, START, "0", "0"), X=kind) for trade_id, kind in enumerate(kinds, 1)
        ]
        frames += [
            trade_frame("BTCUSDT", Fill(8, START, "", ""), X="NA"),
            trade_frame("BTCUSDT", Fill(9, START, "NaN", "-1"), X="NA"),
            # What is decoded and not scanned, because of the escape.
            trade_frame("BTCUSDT", Fill(10, START, "0", "0"), X="N\\u0041").replace("\\\\", "\\"),
            trade_frame("BTCUSDT", Fill(11, START)),
        ]
        exchange.say(*frames, route="public")
        wait_for("all of them", lambda: len(played.rows()) == 11)
        assert [(row[1], row[5]) for row in played.rows()] == [*((trade_id, 0) for trade_id in range(1, 11)), (11, 1)]
        # Where REST's trades end before them, that is an answer about ids that are known to be.
        exchange.trades["BTCUSDT"] = [Fill(11, START)]
        played.engine.ask(FetchTrades("BTCUSDT", 12, 13))
        wait_for("the answer about later ones", lambda: played.covered() == [(12, 13)])
        # From memory as from the stream.
        played.engine.ask(FetchTrades("BTCUSDT", 1, 11))
        wait_for("the answer", lambda: played.covered() == [(12, 13), (1, 11)])
        assert [row[5] for row in played.rows()[11:]] == [0] * 10 + [1]


def test_an_aggregate_is_never_a_void_id(exchange: Exchange, tmp_path: Path) -> None:
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade")
        exchange.say(
            agg_frame("BTCUSDT", Fill(1, START), X="NA"),
            agg_frame("BTCUSDT", Fill(2, START), f=20, l=19),
            agg_frame("BTCUSDT", Fill(3, START), f=20, l=18),
            agg_frame("BTCUSDT", Fill(4, START, "0", "0"), X="NA"),
            agg_frame("BTCUSDT", Fill(5, START)),
        )
        wait_for("the last", lambda: played.rows()[-1:] and played.rows()[-1][1] == 5)
        assert [(row[1], row[5]) for row in played.rows()] == [(1, 1), (5, 1)]
        exchange.trades["BTCUSDT"] = [Fill(7, START, fills=0)]
        played.engine.ask(FetchTrades("BTCUSDT", 7, 7))
        wait_for("its word", lambda: "trades unreachable: BTCUSDT 7 to 7" in played.room.log)
        assert len(played.rows()) == 2
