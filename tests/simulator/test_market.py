"""The generated market as a function: what it says of the same minute in different ways is the same."""

import time
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from services.simulator.grid import DAY_MS, INTERVALS, MINUTE_MS, end_time, open_time
from services.simulator.market.generated import GeneratedMarket
from services.simulator.rows import KINDS, Rows
from tests.simulator.served import LATE_IN_A_MINUTE, NOON, left, made

FIELDS = ("open_time", "open", "high", "low", "close", "volume", "quote_volume", "count")
QUOTES = ("quote_volume", "taker_buy_quote_volume")
MORE = ("taker_buy_volume", "taker_buy_quote_volume")


def trades_since(
    market: GeneratedMarket, symbol: str, kind: str, since: int, most: int = 10**9
) -> list[dict[str, Any]]:
    """Return what left on a stream, one dict a trade, and not many more than `most`."""
    instrument = market.find(symbol)
    assert instrument is not None
    rows: list[dict[str, Any]] = []
    for part in market.trades_since(instrument, kind, since):
        rows += [dict(zip(part.dtype.names, values, strict=True)) for values in part.tolist()]
        if len(rows) >= most:
            break
    return rows


def klines(market: GeneratedMarket, symbol: str, interval: str, start: int, until: int) -> list[dict[str, Any]]:
    instrument = market.find(symbol)
    assert instrument is not None
    rows = market.klines(instrument, interval, start, until)
    found = [dict(zip(rows.dtype.names, values, strict=True)) for values in rows.tolist()]
    for row in found:
        for name in QUOTES:
            row[name] += 10**18 * row.pop(f"more_{name}")
    return found


def folded(trades: list[dict[str, Any]], end: int) -> dict[int, dict[str, Any]]:
    """Return the 1m klines of executed trades, one trade at a time; `end`: trades from then on are left out."""
    minutes: dict[int, dict[str, Any]] = {}
    for trade in trades:
        if trade.get("kind", 0) != 0 or trade["time"] >= end:
            continue
        opened, price, quantity = trade["time"] // MINUTE_MS * MINUTE_MS, trade["price"], trade["quantity"]
        row = minutes.setdefault(
            opened,
            dict.fromkeys((*FIELDS, *MORE), 0) | {"open_time": opened, "open": price, "high": price, "low": price},
        )
        row["high"], row["low"], row["close"] = max(row["high"], price), min(row["low"], price), price
        row["volume"] += quantity
        row["quote_volume"] += price * quantity
        row["count"] += trade["last"] - trade["first"] + 1 if "last" in trade else 1
        if not trade["maker"]:
            row["taker_buy_volume"] += quantity
            row["taker_buy_quote_volume"] += price * quantity
    return minutes


def advance(market: GeneratedMarket, ms: int) -> None:
    end = market.now + ms
    while market.now < end:
        market.advance(min(end, market.now + 250), set())


@pytest.mark.parametrize("quirks", [True, False])
def test_official_klines_are_made_of_single_trades(quirks: bool) -> None:
    market = made(quirks=quirks)
    advance(market, 6 * MINUTE_MS)
    since, end = NOON - 10 * MINUTE_MS, NOON + 5 * MINUTE_MS
    for symbol in ("BTCUSDT", "DOGEUSDT", "币安人生USDT", "HYPEUSDT"):
        minutes = folded(trades_since(market, symbol, "trade", since), end)
        official = {row["open_time"]: row for row in klines(market, symbol, "1m", since, end - 1) if row["count"]}
        assert minutes == official


def test_without_quirks_klines_of_aggregates_equal_the_official_ones() -> None:
    market = made(quirks=False, symbols=60, trades_per_second=600.0)
    advance(market, 3 * MINUTE_MS)
    since, end = NOON - 5 * MINUTE_MS, NOON + 2 * MINUTE_MS
    for instrument in market.instruments():
        minutes = folded(trades_since(market, instrument.symbol, "aggTrade", since), end)
        official = klines(market, instrument.symbol, "1m", since, end - 1)
        assert minutes == {row["open_time"]: row for row in official if row["count"]}


def test_with_quirks_aggregates_straddle_minutes_and_count_burnt_ids() -> None:
    market = made(quirks=True)
    since, end = NOON - 120 * MINUTE_MS, NOON
    differing = 0
    volume = 0
    for symbol in ("XRPUSDT", "DOGEUSDT", "BNBUSDT"):
        minutes = folded(trades_since(market, symbol, "aggTrade", since), end)
        official = {row["open_time"]: row for row in klines(market, symbol, "1m", since, end - 1) if row["count"]}
        for opened, row in minutes.items():
            differing += row["volume"] != official[opened]["volume"]
            volume += row["volume"] - official[opened]["volume"]
            assert row["close"] == official[opened]["close"]
            assert row["count"] >= official[opened]["count"] - 12
        assert sum(row["count"] for row in minutes.values()) > sum(row["count"] for row in official.values())
    assert differing > 5
    # What one minute lacks the next one has, but at the ends.
    assert abs(volume) < 10_000_000


@pytest.mark.parametrize("quirks", [True, False])
def test_ids_have_no_holes_and_times_never_go_back(quirks: bool) -> None:
    market = made(quirks=quirks)
    for symbol in ("BTCUSDT", "LINKUSDT"):
        # Across a midnight, where another day's tables begin.
        since = NOON // DAY_MS * DAY_MS - 30 * MINUTE_MS
        for kind in ("aggTrade", "trade"):
            trades = trades_since(market, symbol, kind, since, 8_000)
            assert len(trades) > 500
            assert all(later["id"] == earlier["id"] + 1 for earlier, later in pairwise(trades))
            assert all(later["time"] >= earlier["time"] for earlier, later in pairwise(trades))
            assert all(later["event_time"] >= earlier["event_time"] for earlier, later in pairwise(trades))
            assert all(5 <= trade["event_time"] - trade["time"] <= 155 for trade in trades if kind == "aggTrade")


def test_an_aggregate_is_the_sum_of_its_fills() -> None:
    market = made()
    singles = {trade["id"]: trade for trade in trades_since(market, "ETHUSDT", "trade", NOON - 10 * MINUTE_MS)}
    kinds = {KINDS[trade["kind"]] for trade in singles.values()}
    assert {"MARKET", "NA"} <= kinds
    aggregates = trades_since(market, "ETHUSDT", "aggTrade", NOON - 9 * MINUTE_MS)[:-5]
    assert len(aggregates) > 1000
    for aggregate in aggregates:
        fills = [singles[trade_id] for trade_id in range(aggregate["first"], aggregate["last"] + 1)]
        executed = [fill for fill in fills if fill["kind"] == 0]
        assert sum(fill["quantity"] for fill in executed) == aggregate["quantity"]
        assert {fill["price"] for fill in executed} == {aggregate["price"]}
        assert executed[0]["time"] == aggregate["time"]
        assert executed[-1]["time"] - aggregate["time"] <= 100


def test_neighbouring_aggregates_of_one_price_and_side_are_one() -> None:
    market = made()
    trades = trades_since(market, "BTCUSDT", "aggTrade", NOON - 30 * MINUTE_MS)
    alike = [
        (earlier, later)
        for earlier, later in pairwise(trades)
        if (earlier["price"], earlier["maker"]) == (later["price"], later["maker"])
        and later["time"] - earlier["time"] < 100
        # Between two steadies the price that trades wander around moves, and may meet the one before.
        and earlier["time"] // 300_000 == later["time"] // 300_000
    ]
    assert not alike


def test_longer_klines_are_what_minutes_make() -> None:
    market = made(history_days=25)
    for symbol in ("BTCUSDT", "HYPEUSDT"):
        instrument = market.find(symbol)
        assert instrument is not None
        minutes = klines(market, symbol, "1m", 0, market.now)
        for interval in INTERVALS:
            merged: dict[int, list[dict[str, Any]]] = {}
            for minute in minutes:
                merged.setdefault(open_time(interval, minute["open_time"], instrument.grid_3d), []).append(minute)
            rows = klines(market, symbol, interval, 0, market.now)
            assert [row["open_time"] for row in rows] == list(merged)
            for row in rows:
                parts = merged[row["open_time"]]
                traded = [part for part in parts if part["count"]] or parts[-1:]
                assert row["open"] == traded[0]["open"]
                assert row["high"] == max(part["high"] for part in traded)
                assert row["low"] == min(part["low"] for part in traded)
                assert row["close"] == parts[-1]["close"]
                for name in ("volume", "quote_volume", "count", *MORE):
                    assert row[name] == sum(part[name] for part in parts)


def test_every_kline_opens_where_the_one_before_ends() -> None:
    market = made(history_days=200)
    for interval in INTERVALS:
        rows = klines(market, "SOLUSDT", interval, NOON - 190 * DAY_MS if interval != "1m" else NOON, market.now)
        assert len(rows) > 1 or interval == "1m"
        for earlier, later in pairwise(rows):
            assert later["open_time"] == end_time(interval, earlier["open_time"])


def test_the_grids_of_3d_differ_by_symbol() -> None:
    market = made()
    assert {instrument.grid_3d % (3 * DAY_MS) for instrument in market.instruments()} == {0, DAY_MS, 2 * DAY_MS}


def test_a_restarted_market_goes_on_where_it_would_be() -> None:
    first = made(seed=5)
    advance(first, 3 * MINUTE_MS)
    later = made(seed=5, start=LATE_IN_A_MINUTE + 2 * MINUTE_MS, history_days=10)
    advance(later, 3 * MINUTE_MS)
    common = LATE_IN_A_MINUTE + 3 * MINUTE_MS
    for symbol in ("BTCUSDT", "ADAUSDT"):
        before = [trade for trade in trades_since(first, symbol, "aggTrade", NOON) if trade["event_time"] <= common]
        after = [trade for trade in trades_since(later, symbol, "aggTrade", NOON) if trade["event_time"] <= common]
        assert before == after
        assert later.last_ids()[symbol]["aggTrade"] > first.last_ids()[symbol]["aggTrade"]
        end = NOON + MINUTE_MS
        assert (
            klines(first, symbol, "1h", end - DAY_MS, end - MINUTE_MS)[:-1]
            == klines(later, symbol, "1h", end - DAY_MS, end - MINUTE_MS)[:-1]
        )


def test_days_are_the_same_made_alone_or_together() -> None:
    market = made()
    days, coin = market._generator.days, market._coins["SOLUSDT"]
    first = NOON // DAY_MS - 20
    many = days.many(coin, first, first + 19)
    for at in range(19):
        alone = days.day(coin, first + at)
        assert (many.ids[at * 1440 : at * 1440 + 1441] == alone.ids).all()
        assert (many.ticks[at * 288 : (at + 1) * 288] == alone.ticks).all()
        assert (many.late[at * 1440 : (at + 1) * 1440] == alone.late).all()
        assert (many.warps[at * 1440 : (at + 1) * 1440] == alone.warps).all()


def test_what_leaves_tick_by_tick_is_what_the_market_says() -> None:
    seed = int(time.time())
    print("seed", seed)
    market = made(seed=seed, symbols=40, trades_per_second=1000.0)
    rng = np.random.default_rng(seed)
    wanted = {f"{i.stream_base}@{kind}" for i in market.instruments() for kind in ("aggTrade", "trade")}
    market.follow(wanted)
    messages: dict[str, list[bytes]] = {}
    end = market.now + 150_000
    while market.now < end:
        for chunk in left(market, market.now + int(rng.integers(1, 300)), wanted):
            messages.setdefault(chunk.stream, []).extend(chunk.messages)
    for instrument in market.instruments():
        for kind in ("aggTrade", "trade"):
            said = [
                trade["id"]
                for trade in trades_since(market, instrument.symbol, kind, market.started - 1_000)
                if trade["event_time"] > market.started
            ]
            key = b'"a":' if kind == "aggTrade" else b'"t":'
            got = [
                int(message.split(key)[1].split(b",")[0])
                for message in messages.get(f"{instrument.stream_base}@{kind}", [])
            ]
            assert got == said


def test_activity_falls_with_rank_and_some_are_silent() -> None:
    market = made(symbols=100, history_days=1)
    counts = [row.trades for row in market.day_stats()]
    assert counts[0] == max(counts)
    assert 300 * 86_400 * 0.6 < sum(counts) < 300 * 86_400 * 1.4
    assert min(counts) < 500
    quiet = market.day_stats()[counts.index(min(counts))].instrument.symbol
    rows = klines(market, quiet, "1m", NOON - 60 * MINUTE_MS, NOON - 1)
    assert len(rows) == 60
    assert any(row["count"] == 0 for row in rows)
    for earlier, later in pairwise(rows):
        if not later["count"]:
            assert {later[name] for name in ("open", "high", "low", "close")} == {earlier["close"]}


def test_a_market_without_trades_has_flat_klines() -> None:
    market = made(trades_per_second=0.0)
    advance(market, MINUTE_MS)
    rows = klines(market, "BTCUSDT", "1m", NOON - 5 * MINUTE_MS, market.now)
    assert {row["count"] for row in rows} == {0}
    assert len({row["close"] for row in rows}) == 1
    assert market.trades == 0


def test_without_history_klines_begin_with_the_minute_of_the_start() -> None:
    market = made(history_days=0)
    for interval in ("1m", "5m", "1h", "1M"):
        rows = klines(market, "BTCUSDT", interval, 0, market.now)
        assert len(rows) == 1
        assert rows[0]["count"] == klines(market, "BTCUSDT", "1m", 0, market.now)[0]["count"]


def test_a_price_is_on_its_tick_and_near_what_is_familiar() -> None:
    market = made(symbols=60)
    for instrument in market.instruments():
        rows = [row for row in klines(market, instrument.symbol, "1h", 0, market.now) if row["count"]]
        assert all(row[name] % instrument.tick == 0 for row in rows for name in ("open", "high", "low", "close"))
        assert all(row["low"] > 0 for row in rows)
    close = klines(market, "BTCUSDT", "1d", 0, market.now)[-1]["close"]
    assert Decimal(30_000) < Decimal(close).scaleb(-2) < Decimal(200_000)


def test_coins_are_listed_trade_and_are_delisted() -> None:
    interval = 30.0
    market = made(listing_interval_s=interval, trades_per_second=2000.0)
    assert any(market.status(i) == "PENDING_TRADING" for i in market.instruments())
    pending = next(i for i in market.instruments() if market.status(i) == "PENDING_TRADING")
    wanted = {f"{pending.stream_base}@aggTrade"}
    first: Rows = None
    tickers = b""
    while market.now < pending.onboard + 20_000:
        for _ in left(market, market.now + 250, wanted):
            first = market.now if first is None else first
        chunk = market.ticker()
        if first and chunk:
            tickers += chunk.messages[0]
    assert pending.onboard < first < pending.onboard + 20_000
    assert pending.symbol.encode() in tickers
    assert market.status(pending) == "TRADING"
    trades = trades_since(market, pending.symbol, "aggTrade", 0)
    assert trades[0]["id"] == 1
    assert trades[0]["time"] >= pending.onboard
    assert [trade["id"] for trade in trades] == list(range(1, len(trades) + 1))
    rows = klines(market, pending.symbol, "1m", 0, market.now)
    assert rows[0]["open_time"] == pending.onboard // MINUTE_MS * MINUTE_MS
    assert sum(row["count"] for row in klines(market, pending.symbol, "1d", 0, market.now)) == sum(
        row["count"] for row in rows
    )
    while market.now < pending.delivery + 30_000:
        market.advance(market.now + 250, set())
    market.ticker()
    assert market.status(pending) == "SETTLING"
    rows = klines(market, pending.symbol, "1m", 0, market.now)
    assert rows[-1]["open_time"] + MINUTE_MS == pending.delivery
    last = market.last_ids()[pending.symbol]["aggTrade"]
    market.advance(market.now + 250, set())
    assert market.last_ids()[pending.symbol]["aggTrade"] == last
    while market.find(pending.symbol):
        market.advance(market.now + 1000, set())
        market.ticker()
    assert market.now < pending.delivery + 4 * interval * 1000


def test_kline_events_follow_the_forming_kline_and_close_it() -> None:
    market = made()
    stream = "btcusdt@kline_1m"
    market.follow({stream})
    events: list[bytes] = []
    end = NOON + MINUTE_MS + 2_000
    while market.now < end:
        for chunk in left(market, market.now + 50, {stream}):
            assert chunk.stream == stream
            events += chunk.messages
    closed = [event for event in events if b'"x":true' in event]
    assert len(closed) == 1
    assert len(events) > 10
    row = klines(market, "BTCUSDT", "1m", NOON, NOON)[0]
    assert f'"t":{NOON},"T":{NOON + MINUTE_MS - 1}'.encode() in closed[0]
    assert f'"n":{row["count"]}'.encode() in closed[0]
