"""Trades become klines, each id once, in whatever order and company they come."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.decimals import INT64_MAX
from shared.interval import INTERVAL_NAMES
from shared.kline import FINAL, QUOTE_MAX, SATURATED, TRADE
from shared.wire import FetchTrades, Instrument, Trades, pack_instruments
from tests.engine.played import FIELDS, MINUTE, START, PlayedEngine, Trade, batch, expected, market, number


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_shuffled_split_and_duplicated_feeds_give_the_same_klines(seed: int, count: int) -> None:
    trades = market(seed, count)
    source = random.Random(seed)
    feed = trades + source.choices(trades, k=source.randrange(40))
    source.shuffle(feed)
    played = PlayedEngine(START + 6 * MINUTE)
    played.add()
    # A void id that comes before any price has nowhere to be.
    feed.insert(0, next(trade for trade in feed if trade.trade_count))
    while feed:
        size = source.randrange(1, 20)
        played.apply(batch(feed[:size]))
        feed = feed[size:]
    assert played.values() == expected(trades)
    assert played.engine.book.counters[0]["applied"] == len(trades)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_live_feed_that_opens_minutes_gives_the_same_klines(seed: int) -> None:
    trades = market(seed, 150)
    played = PlayedEngine()
    played.add()
    for start in range(0, len(trades), 7):
        part = trades[start : start + 7]
        played.until(part[0].time)
        played.now_ns = (part[-1].time - START) * 1_000_000
        played.apply(batch(part))
    assert played.values() == expected(trades)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_decimals_that_grow_midway_change_no_value(seed: int, price: int, quantity: int) -> None:
    trades = market(seed, 60)
    played = PlayedEngine(START + 6 * MINUTE)
    played.add()
    played.apply(batch(trades[:30]))
    finer = [
        trade._replace(price=trade.price * 10**price, quantity=trade.quantity * 10**quantity) for trade in trades[30:40]
    ]
    played.apply(batch(finer, decimals=(2 + price, 3 + quantity)))
    played.apply(batch(trades[40:]))
    scaled = [trade._replace(price=trade.price * 10**price, quantity=trade.quantity * 10**quantity) for trade in trades]
    assert played.values() == expected(scaled)


def test_a_trade_seen_twice_counts_once() -> None:
    played = PlayedEngine()
    played.add()
    trade = Trade(5, START + 10, 100, 7)
    played.apply(batch([trade, trade]), batch([trade]))
    assert played.values()["1m", START]["volume"] == 7
    assert played.engine.book.counters[0]["duplicates"] == 2


def test_a_void_id_is_covered_and_decides_no_price() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 100, 7), Trade(6, START + 20, 1, 9, trade_count=0)]))
    row = played.values()["1m", START]
    assert (row["low"], row["close"], row["volume"], row["last_id"], row["id_count"]) == (100, 100, 7, 6, 2)


def test_no_row_ever_shows_a_price_of_0() -> None:
    played = PlayedEngine(START + 5 * MINUTE)
    played.add()
    void = Trade(5, START + MINUTE, 0, 0, trade_count=0)
    played.apply(batch([void]))
    assert played.rows() == {}
    played.apply(batch([Trade(7, START + 3 * MINUTE, 100, 7)]), batch([void._replace(id=6)]))
    assert {int(row["low"]) for row in played.rows().values()} == {100}
    assert played.values()["1m", START + MINUTE]["id_count"] == 1


def test_a_late_trade_corrects_its_own_minute_and_the_flat_ones_behind_it() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 100, 7)]))
    played.until(START + 3 * MINUTE)
    played.apply(batch([Trade(6, START + 59_999, 120, 1)]))
    rows = played.rows()
    assert rows["1m", START]["close"] == 120
    assert rows["1m", START]["revision"] == 1
    assert [int(rows["1m", START + minute * MINUTE]["close"]) for minute in (1, 2, 3)] == [120, 120, 120]
    assert [int(rows["1m", START + minute * MINUTE]["revision"]) for minute in (1, 2, 3)] == [1, 1, 0]
    assert played.engine.book.counters[0]["late"] == 1


def test_impossible_trades_are_refused_counted_and_still_missing() -> None:
    played = PlayedEngine()
    played.add()
    good = Trade(5, START + 10, 100, 7)
    bad = [
        good._replace(id=6, price=0),
        good._replace(id=7, price=-5),
        good._replace(id=8, quantity=-1),
        good._replace(id=9, time=START + 3_600_000),
        good._replace(id=10, time=-1),
        good._replace(id=11, price=2**40, quantity=2**40),
        good._replace(id=-3),
        good._replace(id=12, trade_count=-1),
    ]
    played.apply(batch([good, *bad, good._replace(id=13, quantity=1)]))
    assert played.engine.book.counters[0]["refused"] == len(bad)
    assert played.values()["1m", START]["volume"] == 8
    assert played.engine.gaps(0) == [(0, 4), (6, 12)]
    rows = np.frombuffer(batch([good]).rows, dtype=np.int64).copy()
    rows[0] = 5
    played.apply(Trades(pack_instruments([Instrument("BTCUSDT", 2, 3)]), rows.tobytes()))
    assert played.engine.book.counters[0]["refused"] == len(bad) + 1


def test_a_symbol_that_nobody_announced_is_counted_and_dropped() -> None:
    played = PlayedEngine()
    played.apply(batch([Trade(5, START + 10, 100, 7)], symbol="NOBODYUSDT"))
    assert played.engine.book.counters[0]["unknown_symbol"] == 1


def test_numbers_that_would_not_fit_are_refused_and_nothing_is_changed() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 10**9, 10**8)]))
    played.apply(batch([Trade(6, START + 20, 1, 1)], decimals=(12, 12)))
    assert played.values()["1m", START]["quote_volume"] == 10**17
    assert played.engine.dropped == {"trades whose decimals do not fit": 1}


def test_decimals_that_there_is_no_room_for_are_taken_off_where_they_are_zeros() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 10**9, 10**8)]))
    played.apply(batch([Trade(6, START + 20, 3 * 10**5, 7 * 10**4)], decimals=(7, 7)))
    row = played.values()["1m", START]
    assert (row["close"], row["volume"], row["quote_volume"]) == (3, 10**8 + 7, 10**17 + 21)
    played.apply(batch([Trade(7, START + 30, 3 * 10**5, 7 * 10**4 + 1)], decimals=(7, 7), covered=[(7, 9)]))
    assert played.engine.dropped == {"trades whose decimals do not fit": 1}
    assert played.engine.book.symbols[0]["last_id"] == 6


def test_more_quote_volume_than_64_bits_is_exact_in_every_interval() -> None:
    played = PlayedEngine()
    played.add()
    trades = [
        Trade(number, START + number * 20_000, 10**9, 8 * 10**9 + number, buyer_is_maker=number % 3 == 0)
        for number in range(1, 30)
    ]
    for trade in trades:
        played.until(trade.time)
        played.apply(batch([trade]))
    played.apply(batch([Trade(30, START + 599_999, 1, 1)]))
    rows = played.values()
    assert rows == expected([*trades, Trade(30, START + 599_999, 1, 1)])
    assert max(row["quote_volume"] for row in rows.values()) > 2 * 10**20
    assert played.health(0)["symbols_saturated"] == []


def test_what_is_full_says_so_and_its_minutes_go_on() -> None:
    played = PlayedEngine()
    played.add()
    trades = [Trade(number + 1, START + number * MINUTE, 1, 9 * 10**18) for number in range(4)]
    for trade in trades:
        played.until(trade.time)
        played.apply(batch([trade], covered=[(0, trade.id)]))
    played.until(START + 4 * MINUTE)
    played.apply(batch([Trade(5, START + 4 * MINUTE, 1, 5)]))
    rows, whole = played.rows(), expected([*trades, Trade(5, START + 4 * MINUTE, 1, 5)])
    full = {key for key, want in whole.items() if want["volume"] > INT64_MAX}
    assert {interval for interval, _ in full} == {*INTERVAL_NAMES} - {"1m"}
    for key, want in whole.items():
        held = want | {name: min(want[name], INT64_MAX) for name in ("volume", "taker_buy_volume")}
        assert {name: number(rows[key], name) for name in FIELDS} == held, key
        assert bool(rows[key]["flags"] & SATURATED) == (key in full), key
        assert not rows[key]["flags"] & FINAL or key not in full, key
    assert all(rows["1m", trade.time]["flags"] & FINAL for trade in trades)
    assert played.health(0)["symbols_saturated"] == ["BTCUSDT"]
    played.save()
    again = PlayedEngine(played.time, played.restored())
    assert again.health(0)["symbols_saturated"] == ["BTCUSDT"]
    assert {key: row.tobytes() for key, row in again.rows().items()} == {
        key: row.tobytes() for key, row in rows.items()
    }


def test_a_quote_volume_beyond_its_two_fields_is_full() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch(Trade(number, START + number, 3 * 10**9, 3 * 10**9) for number in range(3_642)))
    for row in played.rows().values():
        assert number(row, "quote_volume") == QUOTE_MAX
        assert row["flags"] & SATURATED
        assert (row["volume"], row["trade_count"], row["last_id"]) == (3_642 * 3 * 10**9, 3_642, 3_641)


def test_an_answer_may_speak_of_a_symbol_in_the_decimals_it_had_and_has() -> None:
    played = PlayedEngine()
    played.add()
    rows = np.array([(0, *Trade(0, START + 1, 100, 7)), (1, *Trade(1, START + 2, 1_000, 70))], TRADE)
    both = pack_instruments([Instrument("BTCUSDT", 2, 3), Instrument("BTCUSDT", 3, 4)])
    played.apply(Trades(both, rows.tobytes()))
    row = played.values()["1m", START]
    assert (row["open"], row["close"], row["volume"]) == (1_000, 1_000, 140)


def test_rows_are_the_same_whenever_they_are_settled() -> None:
    trades = market(11, 200)
    looked, unseen = PlayedEngine(), PlayedEngine()
    for played in (looked, unseen):
        played.add()
    for begin in range(0, len(trades), 3):
        part = trades[begin : begin + 3]
        for played in (looked, unseen):
            played.until(max(played.time, part[-1].time))
            played.apply(batch(part))
        looked.values()
    assert unseen.values() == looked.values() == expected(trades)


def test_a_trade_that_is_refused_stays_missing() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 100, 7), Trade(9, START + 20, 100, 7)], covered=[(0, 5)]))
    # Two of these trades are of a time that cannot be yet.
    future = [Trade(number, START + 60 * MINUTE, 100, 7) for number in (6, 8)]
    played.apply(batch(future, covered=[(6, 8)]))
    assert played.engine.gaps(0) == [(6, 8)]
    played.apply(batch([Trade(6, START + 15, 100, 7)], covered=[(6, 8)]))
    assert played.engine.gaps(0) == [(7, 8)]
    assert played.values()["1m", START]["volume"] == 21


def test_what_is_missing_is_asked_for_and_asked_again() -> None:
    played = PlayedEngine(gap_retry_ms=5_000)
    played.add()
    played.apply(batch([], covered=[(0, 9)]))
    played.apply(batch([Trade(10, START + 10, 100, 7)], event_time=START + 20))
    played.until(START + 1_500)
    played.engine.take_commands()
    played.apply(batch([Trade(14, START + 1_400, 100, 7), Trade(20, START + 1_400, 100, 7)], event_time=START + 1_450))
    played.engine.tick(played.now_ns)
    last = START + 1_400
    asked = [FetchTrades("BTCUSDT", 11, 13, to_time=last), FetchTrades("BTCUSDT", 15, 19, to_time=last)]
    assert played.engine.take_commands() == asked
    played.until(START + 4_000)
    assert played.engine.take_commands() == []
    played.until(START + 7_000)
    assert played.engine.take_commands() == asked
    played.apply(batch([Trade(number, START + 1_000, 90, 1) for number in (11, 12, 13)], covered=[(11, 13)]))
    played.until(START + 8_100)
    assert played.engine.take_commands() == asked[1:]
    played.apply(batch([Trade(number, START + 1_400, 90, 1) for number in range(15, 20)], covered=[(15, 19)]))
    played.until(START + 20_000)
    assert played.engine.take_commands() == []
    assert played.engine.gaps(0) == []
    # Each id from 10 to 20 was applied, or does not exist.
    assert played.values()["1m", START]["id_count"] == 11


def test_a_symbol_that_stays_silent_after_the_feed_came_up_is_asked_about_once() -> None:
    played = PlayedEngine(silence_ask_ms=5_000)
    for name in ("AUSDT", "BUSDT"):
        played.add(name)
        played.apply(batch([Trade(0, START, 100, 7)], symbol=name))
    played.apply(played.feed(session=2, engine=0))
    played.engine.take_commands()
    played.until(START + 4_000)
    played.apply(batch([Trade(1, START + 3_000, 100, 7)], symbol="BUSDT"))
    played.until(START + 4_900)
    assert played.engine.take_commands() == []
    wait_ms = played.engine.wait_ms(played.now_ns)
    assert wait_ms is not None
    assert wait_ms <= 100
    played.until(START + 5_000)
    assert played.engine.take_commands() == [FetchTrades("AUSDT", 1, -1)]
    played.apply(batch([Trade(1, START + 10, 90, 1)], symbol="AUSDT", covered=[(1, 1)]))
    played.until(START + 60_000)
    assert played.engine.take_commands() == []
    assert played.rows("AUSDT")["1m", START]["low"] == 90


def test_an_old_trade_out_of_somebodys_memory_does_not_hide_those_behind_it() -> None:
    """The feed was away and comes back while the engine does: ingest's memory shows what was before."""
    played = PlayedEngine(silence_ask_ms=3_000)
    played.add()
    played.apply(batch([], covered=[(0, 8)]), batch([Trade(9, START + 10, 100, 7)], event_time=START + 20))
    played.until(START + 60_000)
    played.apply(replace(played.feed(), since=START + 60_000))
    played.apply(batch([Trade(10, START + 20_000, 100, 7)]))
    played.engine.take_commands()
    played.until(START + 64_000)
    assert FetchTrades("BTCUSDT", 11, -1) in played.engine.take_commands()
    # One from after that shows by its id whether any is missing.
    played.apply(batch([], covered=[(11, 11)]), replace(played.feed(), since=START + 64_000))
    played.until(START + 65_000)
    played.apply(batch([Trade(12, START + 64_500, 100, 7)], event_time=START + 64_600))
    played.engine.take_commands()
    played.until(START + 70_000)
    assert FetchTrades("BTCUSDT", 13, -1) not in played.engine.take_commands()


def test_a_trade_of_a_minute_that_has_left_memory_is_not_applied() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 100, 7)]))
    played.until(START + 100 * MINUTE)
    played.apply(batch([Trade(6, START + 20, 100, 7), Trade(7, START + MINUTE, 100, 1)]))
    assert played.engine.book.counters[0]["beyond_window"] == 1
    assert played.engine.gaps(0) == [(0, 4), (6, 6)]
