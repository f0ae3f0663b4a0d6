"""Trades become klines, each id once, in whatever order and company they come."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decimals import INT64_MAX
from shared.interval import INTERVAL_NAMES
from shared.kline import FINAL, QUOTE_MAX, SATURATED
from shared.wire import Instrument, Trades, pack_instruments
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


def test_a_late_trade_corrects_its_own_minute_and_the_flat_ones_after_it() -> None:
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


def test_numbers_that_would_not_fit_are_refused_and_nothing_is_changed() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 10**9, 10**8)]))
    played.apply(batch([Trade(6, START + 20, 1, 1)], decimals=(12, 12)))
    assert played.values()["1m", START]["quote_volume"] == 10**17
    assert played.engine.dropped == {"trades whose decimals do not fit": 1}


def test_more_quote_volume_than_64_bits_is_exact_in_every_interval() -> None:
    played = PlayedEngine()
    played.add()
    trades = [
        Trade(trade_id, START + trade_id * 20_000, 10**9, 8 * 10**9 + trade_id, buyer_is_maker=trade_id % 3 == 0)
        for trade_id in range(1, 30)
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
    trades = [Trade(n + 1, START + n * MINUTE, 1, 9 * 10**18) for n in range(4)]
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
    played.apply(batch(Trade(trade_id, START + trade_id, 3 * 10**9, 3 * 10**9) for trade_id in range(3_642)))
    for row in played.rows().values():
        assert number(row, "quote_volume") == QUOTE_MAX
        assert row["flags"] & SATURATED
        assert (row["volume"], row["trade_count"], row["last_id"]) == (3_642 * 3 * 10**9, 3_642, 3_641)


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
    future = [Trade(trade_id, START + 60 * MINUTE, 100, 7) for trade_id in (6, 8)]
    played.apply(batch(future, covered=[(6, 8)]))
    assert played.engine.gaps(0) == [(6, 8)]
    played.apply(batch([Trade(6, START + 15, 100, 7)], covered=[(6, 8)]))
    assert played.engine.gaps(0) == [(7, 8)]
    assert played.values()["1m", START]["volume"] == 21


def test_a_trade_of_a_minute_that_has_left_memory_is_not_applied() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 100, 7)]))
    played.until(START + 100 * MINUTE)
    played.apply(batch([Trade(6, START + 20, 100, 7), Trade(7, START + MINUTE, 100, 1)]))
    assert played.engine.book.counters[0]["beyond_window"] == 1
    assert played.engine.gaps(0) == [(0, 4), (6, 6)]
