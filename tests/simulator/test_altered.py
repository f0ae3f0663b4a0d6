"""Trades that are not what the seed made them: streams, pages and klines all say the same of them."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from services.simulator.grid import MINUTE_MS, open_time
from services.simulator.market.generated import GeneratedMarket
from services.simulator.rows import MARKET, Rows
from services.simulator.venue import TooOld
from tests.simulator.served import LATE_IN_A_MINUTE, NOON, left, made

KINDS = ("aggTrade", "trade")
FIELDS = ("open", "high", "low", "close", "volume", "quote_volume", "count")


def streamed(market: GeneratedMarket, until: int, kind: str, symbol: str = "BTCUSDT") -> list[Any]:
    """Let a market go on and return what a stream says."""
    stream = f"{symbol.lower()}@{kind}"
    market.follow([stream])
    return [
        json.loads(message)
        for now in range(market.now, until + 1, 50)
        for chunk in left(market, now, {stream})
        for message in chunk.messages
    ]


def paged(market: GeneratedMarket, kind: str, from_id: int | None, limit: int = 1_000) -> Rows:
    instrument = market.find("BTCUSDT")
    assert instrument is not None
    if kind == "trade":
        return market.single_trades(instrument, from_id, limit)
    return market.agg_trades(instrument, from_id, None, None, limit)


def summed(market: GeneratedMarket, interval: str, since: int) -> dict[int, list[int]]:
    """Return open time to the fields of a kline that its single trades make up, in the order of their ids."""
    instrument = market.find("BTCUSDT")
    assert instrument is not None
    klines: dict[int, list[int]] = {}
    for rows in market.trades_since(instrument, "trade", since):
        for row in rows[rows["kind"] == MARKET]:
            price, quantity = int(row["price"]), int(row["quantity"])
            kline = klines.setdefault(open_time(interval, int(row["time"]), instrument.grid_3d), [price] * 4 + [0] * 3)
            kline[1], kline[2], kline[3] = max(kline[1], price), min(kline[2], price), price
            kline[4], kline[5], kline[6] = kline[4] + quantity, kline[5] + quantity * price, kline[6] + 1
    return klines


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_trade_says_an_earlier_time_on_the_stream_and_in_pages(kind: str) -> None:
    market = made(start=NOON + 5_000)
    happens = market.make_late("BTCUSDT", 70_000)
    came = streamed(market, happens + 2_000, kind)
    ids, times = [row["a" if kind == "aggTrade" else "t"] for row in came], [row["T"] for row in came]
    assert ids == list(range(ids[0], ids[-1] + 1))
    fallen = [index for index in range(1, len(times)) if times[index] < times[index - 1] - 1_000]
    assert len(fallen) == 1
    assert times[fallen[0]] == max(happens - 70_000, NOON - MINUTE_MS)
    assert NOON - MINUTE_MS <= times[fallen[0]] < NOON <= happens
    page = paged(market, kind, ids[0])
    said = dict(zip(page["id"].tolist(), page["time"].tolist(), strict=True))
    assert all(
        said[row["t" if kind == "trade" else "a"]] == row["T"] for row in came if row.get("X", "MARKET") == "MARKET"
    )


def test_the_klines_have_a_late_trade_in_the_minute_that_it_says() -> None:
    market = made(start=NOON - 2 * MINUTE_MS)
    before = market.klines
    market.advance(NOON + 5_000, set())
    instrument = market.find("BTCUSDT")
    assert instrument is not None
    untouched = before(instrument, "1m", NOON - MINUTE_MS, NOON - 1).copy()
    happens = market.make_late("BTCUSDT", 70_000)
    assert (market.klines(instrument, "1m", NOON - MINUTE_MS, NOON - 1) == untouched).all(), "it is still to come"
    market.advance(happens + 3 * MINUTE_MS, set())
    for interval in ("1m", "3m", "5m", "30m", "1h"):
        wanted = summed(market, interval, NOON - 60 * MINUTE_MS)
        rows = market.klines(instrument, interval, NOON - 60 * MINUTE_MS, market.now)
        compared = 0
        for row in rows[1:-1]:
            assert [int(row[name]) for name in FIELDS] == wanted[int(row["open_time"])], (interval, row)
            compared += 1
        assert compared or interval == "1h"
    market.refine("BTCUSDT")
    (row,) = market.klines(instrument, "1m", NOON - MINUTE_MS, NOON - 1)
    assert [int(row[name]) for name in FIELDS] == summed(market, "1m", NOON - MINUTE_MS)[NOON - MINUTE_MS]
    changed = market.klines(instrument, "1m", NOON - MINUTE_MS, NOON - 1)
    assert (changed["count"] > untouched["count"]).tolist() == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_a_symbol_that_is_listed_again_begin_with_1_and_what_was_before_is_not_sent(kind: str) -> None:
    market = made(start=LATE_IN_A_MINUTE)
    market.advance(NOON + 55_000, set())
    instrument = market.find("BTCUSDT")
    assert instrument is not None
    klines = market.klines(instrument, "1m", NOON, market.now).copy()
    name = "t" if kind == "trade" else "a"
    last = streamed(market, NOON + 55_500, kind)[-1][name]
    market.relist("BTCUSDT")
    again = market.find("BTCUSDT")
    assert again is not None
    assert (again.onboard, again.symbol) == (NOON + 55_500, "BTCUSDT")
    came = streamed(market, NOON + 59_000, kind)
    ids = [row[name] for row in came]
    old = [trade_id for trade_id in ids if trade_id > last]
    assert ids == [*old, *range(1, len(ids) - len(old) + 1)]
    assert len(ids) > len(old) + 10
    assert market.last_ids()["BTCUSDT"][kind] == ids[-1]
    if kind == "aggTrade":
        new = came[len(old) :]
        assert new[0]["f"] == 1
        assert all(row["l"] < after["f"] for row, after in pairwise(new))
    for page in (paged(market, kind, 1), paged(market, kind, None)):
        assert page["id"][0] == 1
        assert set(page["id"].tolist()) <= set(ids)
    assert paged(market, kind, 5)["id"][0] in (5, 6, 7)
    assert len(paged(market, kind, last)) == 0
    assert (market.klines(again, "1m", NOON, NOON + 55_000)["open"] == klines["open"]).all()
    later = np.concatenate(list(market.trades_since(again, kind, NOON + 55_500)))
    assert later["id"][-1] == ids[-1]


def test_a_market_that_cannot_take_it_says_so() -> None:
    market = made(symbols=20, trades_per_second=0.01)
    with pytest.raises(ValueError, match="too seldom"):
        market.make_late("BTCUSDT", 1_000)
    with pytest.raises(KeyError):
        market.make_late("NOBODYUSDT", 1_000)
    with pytest.raises(KeyError):
        market.relist("NOBODYUSDT")
    with pytest.raises(TooOld):
        paged(market, "aggTrade", 1)
