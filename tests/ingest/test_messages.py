"""The border: names, requests, answers."""

import json
from decimal import Decimal
from typing import Any

import pytest

from harness.processes import recording, unpacked
from services.ingest.binance.endpoints import venue_of
from services.ingest.binance.messages import (
    Malformed,
    banned_until,
    control_message,
    read_agg_trades,
    read_error,
    read_exchange_info,
    read_klines,
    stream_name,
    symbol_of,
)
from services.ingest.binance.scan import plain_klines
from services.ingest.klines import decimals_for, kline_rows, parse
from shared.config import Config, ExchangeConfig, SimulatorConfig
from shared.kline import CLOSED, EXCHANGE, FINAL, figure
from tests.ingest.played import listing

MINUTE = 60_000


@pytest.mark.parametrize(
    ("name", "count", "limit", "symbol", "decimals"),
    [
        ("usdm-exchangeInfo.json", 8, 2400, "1000SHIBUSDT", (6, 0)),
        ("usdm-exchangeInfo-2021-07-22.json.gz", 122, 2400, "BTCUSDT", (2, 3)),
        ("usdm-testnet-exchangeInfo-2025-12-24.json.gz", 660, 6000, "ETHUSDT", (2, 3)),
        ("spot-exchangeInfo-2021-10-12.json.gz", 1695, 1200, "BTCUSDT", (2, 5)),
    ],
)
def test_recorded_lists_of_symbols_are_read_in_full(
    name: str, count: int, limit: int, symbol: str, decimals: tuple[int, int]
) -> None:
    body = unpacked(recording(name))
    refused: list[str] = []
    listings, said = read_exchange_info(body, lambda kind, _: refused.append(kind))
    assert (len(listings), said, refused) == (count, limit, [])
    one = next(entry for entry in listings if entry.symbol == symbol)
    assert (one.price_decimals, one.quantity_decimals, one.trading) == (*decimals, True)
    trading = [entry["symbol"] for entry in json.loads(body)["symbols"] if entry["status"] == "TRADING"]
    assert [entry.symbol for entry in listings if entry.trading] == trading


def test_a_tick_of_zero_leaves_the_precision_to_decide_and_an_odd_symbol_is_refused_alone() -> None:
    symbols: list[dict[str, Any]] = [listing("AUSDT", tick="0", step="0.0001"), listing("BUSDT", tick="x")]
    symbols.append({"symbol": "CUSDT", "filters": []})
    refused: list[str] = []
    body = json.dumps({"symbols": symbols}).encode()
    listings, limit = read_exchange_info(body, lambda kind, _: refused.append(kind))
    assert [tuple(entry) for entry in listings] == [("AUSDT", True, 2, 4)]
    assert (limit, refused) == (None, ["exchangeInfo symbol"] * 2)
    with pytest.raises(Malformed):
        read_exchange_info(b"<html>", lambda *_: None)


def test_stream_names_lower_ascii_letters_only_and_lead_back() -> None:
    assert stream_name("币安人生USDT", "aggTrade") == "币安人生usdt@aggTrade"
    assert symbol_of("币安人生usdt@aggTrade", "aggTrade") == "币安人生USDT"
    assert stream_name("BTCUSDT_261225", "trade") == "btcusdt_261225@trade"
    assert symbol_of("btcusdt@trade", "aggTrade") is None
    assert symbol_of("@aggTrade", "aggTrade") is None
    assert json.loads(control_message("SUBSCRIBE", ["a@trade"], 7)) == {
        "method": "SUBSCRIBE",
        "params": ["a@trade"],
        "id": 7,
    }


def test_the_ban_that_a_message_names_is_read() -> None:
    body = b'{"code":-1003,"msg":"Way too many requests; IP(1.2.3.4) banned until 1768725416206. Please use"}'
    assert banned_until(read_error(body)[1]) == 1768725416206
    assert banned_until("Too many requests") is None
    assert banned_until("banned until never") is None
    assert read_error(b"<html>")[0] == 0


def test_each_venue_has_its_routes_and_weights() -> None:
    usdm = venue_of(Config(exchange=ExchangeConfig(name="binance-usdm")))
    assert usdm.routes("aggTrade") == {"market": "wss://fstream.binance.com/market/stream"}
    assert usdm.routes("trade") == {
        "market": "wss://fstream.binance.com/market/stream",
        "public": "wss://fstream.binance.com/public/stream",
    }
    assert [usdm.klines("A", "1m", limit).weight for limit in (100, 101, 500, 501, 1000, 1001, 1500)] == [
        1,
        2,
        2,
        5,
        5,
        10,
        10,
    ]
    assert usdm.rest + usdm.agg_trades("A").path == "https://fapi.binance.com/fapi/v1/aggTrades"
    spot = venue_of(Config(exchange=ExchangeConfig(name="binance-spot")))
    assert list(spot.routes("trade")) == list(spot.routes("aggTrade")) == ["market"]
    assert (spot.klines("A", "1m", 1000).weight, spot.agg_trades("A").weight, spot.weight_limit) == (2, 4, 6000)
    played = venue_of(Config(simulator=SimulatorConfig(port=9999)))
    assert played.rest == "http://127.0.0.1:9999/fapi/v1"
    assert played.routes("trade")["public"] == "ws://127.0.0.1:9999/public/stream"
    assert (played.api_key, usdm.api_key) == ("simulator", "")


def test_a_page_of_trades_must_ascend() -> None:
    row = '{"a":%d,"p":"1","q":"1","f":1,"l":2,"T":5,"m":false}'
    assert read_agg_trades(f"[{row % 1},{row % 2}]".encode()).trade_counts == [2, 2]
    with pytest.raises(Malformed, match="ascend"):
        read_agg_trades(f"[{row % 2},{row % 2}]".encode())
    with pytest.raises(Malformed):
        read_agg_trades(b'{"code":-1}')


def kline(open_time: int, *, price: str = "2.5", volume: str = "3", quote: str = "7.5", length: int = MINUTE) -> Any:
    return [open_time, price, price, price, price, volume, open_time + length - 1, quote, 1, "0", "0", "0"]


def read(interval: str, *rows: Any) -> Any:
    return parse(interval, read_klines(json.dumps(rows).encode()))


def test_the_documented_kline_is_read_to_the_last_digit() -> None:
    row = (
        b'[[1499040000000,"0.01634790","0.80000000","0.01575800","0.01577100","148976.11427815",1499644799999,'
        b'"2434.19055334",308,"1756.87402397","28.46694368","17928899.62484339"]]'
    )
    parsed, refused = parse("1w", read_klines(row))
    assert refused == 0
    rows, left_out = kline_rows(parsed, 7, 8)
    assert left_out == 0
    got = {name: figure(rows[0], name) for name in ("open", "high", "low", "close", "volume", "quote_volume")}
    assert got == {
        "open": 163479,
        "high": 8000000,
        "low": 157580,
        "close": 157710,
        "volume": 14897611427815,
        "quote_volume": 2434190553340000000,
    }
    assert int(rows[0]["trade_count"]) == 308
    assert rows[0]["flags"] == EXCHANGE | FINAL | CLOSED


def test_klines_off_the_grid_or_out_of_order_are_refused() -> None:
    parsed, refused = read(
        "1m", kline(0), kline(30_000), kline(MINUTE), kline(MINUTE), kline(2 * MINUTE, length=59_000)
    )
    assert (parsed.open_times.tolist(), refused) == ([0, MINUTE], 3)
    # A week opens on a Monday, a month on its first.
    week = 7 * 24 * 60 * MINUTE
    monday = 1_699_833_600_000
    assert read("1w", kline(monday, length=week))[1] == 0
    assert read("1w", kline(monday + 86_400_000, length=week))[1] == 1
    november, december = 1_698_796_800_000, 1_701_388_800_000
    assert read("1M", kline(november, length=december - november))[1] == 0
    assert read("1M", kline(november, length=week))[1] == 1
    # Nobody says where 3d begins.
    assert read("3d", kline(86_400_000, length=3 * 86_400_000))[1] == 0


def test_klines_with_impossible_numbers_are_refused() -> None:
    assert read("1m", kline(0, price="0"))[1] == 1
    assert read("1m", kline(0, volume="-1"))[1] == 1
    crossed = kline(0)
    crossed[3] = "2.6"
    parsed, _ = read("1m", crossed)
    assert kline_rows(parsed, 2, 3)[1] == 1


@pytest.mark.parametrize(
    ("quote", "price_decimals", "quantity_decimals"),
    [
        ("612345678901.12345678", 2, 6),
        ("32767999999999.999999999", 2, 7),
        ("327679999999.9999999999", 5, 5),
        ("9223372036854775807", 0, 0),
        ("9223372036854775808", 0, 0),
        ("1000000000000000000", 2, 2),
        ("32767", 10, 8),
        ("3", 10, 10),
        ("0", 10, 10),
    ],
)
def test_a_quote_volume_beyond_64_bits_is_read_to_the_last_digit(
    quote: str, price_decimals: int, quantity_decimals: int
) -> None:
    body = json.dumps([kline(0, price="2", volume="1", quote=quote)], separators=(",", ":")).encode()
    parsed, refused = parse("1m", plain_klines(body) or read_klines(body))
    rows, left_out = kline_rows(parsed, price_decimals, quantity_decimals)
    assert (refused, left_out) == (0, 0)
    assert figure(rows[0], "quote_volume") == Decimal(quote).scaleb(price_decimals + quantity_decimals)


def test_a_quote_volume_that_does_not_fit_is_left_out() -> None:
    parsed, refused = read("1m", kline(0, quote="32768"), kline(MINUTE))
    assert (refused, kline_rows(parsed, 10, 8)[1]) == (0, 1)
    assert read("1m", kline(0, quote="9" * 27))[1] == 1
    assert read("1m", kline(0, volume="9223372036854775808"))[1] == 1


def test_fine_old_klines_do_not_take_the_space_of_the_future() -> None:
    old = read("1m", kline(0, volume="1.123456"))[0]
    assert decimals_for([old], 2, 3) == (2, 6)
    assert decimals_for([old, read("1m", kline(0, quote="500000000000"))[0]], 2, 3) == (2, 6)
    large = read("1m", kline(0, quote="500000000000000"))[0]
    assert decimals_for([old, large], 2, 3) == (2, 3)
    # The fine one is left out then, not rounded.
    assert kline_rows(old, 2, 3)[1] == 1
    assert kline_rows(large, 2, 3)[1] == 0
