"""Where the exchange is, how it is asked, and what a request weighs.

Decides addresses, routes, paths, parameters and weights of the three venues (the sections named are those of the
exchange's protocol). Sends nothing.
"""

from typing import Any, NamedTuple

import msgspec

from shared.addresses import at
from shared.config import Config

TICKER_ROUTE = "market"
"""The route that has the stream of all tickers."""
PAGE_MAX = 1000
"""Rows of one page of trades (§3.4)."""
KEYED_PAGE_MAX = 500
"""Rows of one page of historicalTrades."""
WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
KEY_HEADER = "X-MBX-APIKEY"


class Request(NamedTuple):
    path: str
    weight: int
    parameters: dict[str, str]
    with_key: bool = False


class Venue(msgspec.Struct, frozen=True, kw_only=True):
    """One market of the exchange: where it is, what a request weighs, how much one may ask."""

    rest: str
    sockets: dict[str, str]
    """Route to URL; a stream belongs to one route (§1.1)."""
    trade_route: str
    """The route of the `trade` stream."""
    weight_limit: int
    klines_max: int
    info_weight: int
    tickers_weight: int
    klines_weights: list[tuple[int, int]]
    """(highest limit, weight), ascending (§3.3)."""
    agg_trades_weight: int
    recent_weight: int
    keyed_weight: int
    api_key: str

    def route(self, stream: str) -> str:
        return self.trade_route if stream.endswith("@trade") else TICKER_ROUTE

    def routes(self, kind: str) -> dict[str, str]:
        """Return the routes that one kind of trade stream needs, with their URLs: the ticker's is always among them."""
        return {route: self.sockets[route] for route in dict.fromkeys([TICKER_ROUTE, self.route(f"@{kind}")])}

    def time(self) -> Request:
        return Request("/time", 1, {})

    def exchange_info(self) -> Request:
        return Request("/exchangeInfo", self.info_weight, {})

    def tickers(self) -> Request:
        return Request("/ticker/24hr", self.tickers_weight, {})

    def klines(
        self, symbol: str, interval: str, limit: int, start_time: int | None = None, end_time: int | None = None
    ) -> Request:
        weight = next(weight for highest, weight in self.klines_weights if limit <= highest)
        parameters = {"symbol": symbol, "interval": interval, "limit": str(limit)}
        if start_time is not None:
            parameters["startTime"] = str(start_time)
        if end_time is not None:
            parameters["endTime"] = str(end_time)
        return Request("/klines", weight, parameters)

    def agg_trades(
        self, symbol: str, *, from_id: int | None = None, start_time: int | None = None, limit: int = PAGE_MAX
    ) -> Request:
        parameters = {"symbol": symbol, "limit": str(limit)}
        if from_id is not None:
            parameters["fromId"] = str(from_id)
        if start_time is not None:
            parameters["startTime"] = str(start_time)
        return Request("/aggTrades", self.agg_trades_weight, parameters)

    def recent_trades(self, symbol: str) -> Request:
        return Request("/trades", self.recent_weight, {"symbol": symbol, "limit": str(PAGE_MAX)})

    def keyed_trades(self, symbol: str, from_id: int) -> Request:
        parameters = {"symbol": symbol, "fromId": str(from_id), "limit": str(KEYED_PAGE_MAX)}
        return Request("/historicalTrades", self.keyed_weight, parameters, with_key=True)


_FUTURES: dict[str, Any] = {
    "trade_route": "public",
    "weight_limit": 2400,
    "klines_max": 1500,
    "info_weight": 1,
    "tickers_weight": 40,
    "klines_weights": [(100, 1), (500, 2), (1000, 5), (1500, 10)],
    "agg_trades_weight": 20,
    "recent_weight": 5,
    "keyed_weight": 20,
}
_SPOT: dict[str, Any] = {
    "trade_route": "market",
    "weight_limit": 6000,
    "klines_max": 1000,
    "info_weight": 20,
    "tickers_weight": 80,
    "klines_weights": [(1000, 2)],
    "agg_trades_weight": 4,
    "recent_weight": 25,
    "keyed_weight": 25,
}


def venue_of(config: Config) -> Venue:
    key = config.exchange.api_key
    if config.exchange.name == "binance-spot":
        sockets = {"market": "wss://stream.binance.com:9443/stream"}
        return Venue(rest="https://api.binance.com/api/v3", sockets=sockets, api_key=key, **_SPOT)
    if config.exchange.name == "binance-usdm":
        base = "wss://fstream.binance.com"
        rest = "https://fapi.binance.com/fapi/v1"
    else:
        address = at(config.simulator.host, config.simulator.port)
        base = f"ws://{address}"
        rest = f"http://{address}/fapi/v1"
        key = key or "simulator"
    sockets = {route: f"{base}/{route}/stream" for route in ("market", "public")}
    return Venue(rest=rest, sockets=sockets, api_key=key, **_FUTURES)
