"""The REST side of the protocol: routes, parameters, weights, errors and limits. No socket, no clock.

Decides what is answered to which question (protocol §3), what it costs, and when a client is sent away. What a market
holds comes from the market.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.simulator.grid import INTERVALS, LENGTHS, MONTH_MAX_MS, end_times
from services.simulator.rows import DayStats, Instrument, Rows, text_of
from services.simulator.venue import Market, TooOld
from services.simulator.writing import kline_page

PREFIX = "/fapi/v1/"
KLINES_MAX, TRADES_MAX, OLD_TRADES_MAX = 1_500, 1_000, 500
ROWS_DEFAULT = 500
FORBEARANCE = 10
"""Requests beyond the limit in one minute until the address is banned."""
BAN_MS, BAN_MAX_MS = 120_000, 3 * 86_400_000
"""A first ban, and the longest; each one is twice the one before."""
ADDRESSES_MAX = 10_000
"""Clients whose weight is remembered."""
MINUTE_MS = 60_000


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Refused(Exception):
    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.body = _json({"code": code, "msg": message})


class Spent(msgspec.Struct):
    """What one address has done."""

    minute: int = 0
    weight: int = 0
    refused: int = 0
    bans: int = 0
    banned_until: int = 0


class Weights:
    """Weight by fixed minutes and address, 429 beyond the limit, 418 for who goes on regardless (§3.1)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused: Counter[str] = Counter()
        """Requests that were one too many."""
        self._spent: dict[str, Spent] = {}

    def charge(self, address: str, weight: int, now: int) -> tuple[int, Answer | None]:
        """Charge a request. Return (weight used in this minute, the refusal if it is one too many)."""
        if address not in self._spent and len(self._spent) >= ADDRESSES_MAX:
            self._spent.clear()
        spent = self._spent.setdefault(address, Spent())
        if now < spent.banned_until:
            self.refused["requests while banned"] += 1
            return spent.weight, banned(address, spent.banned_until, now)
        if spent.minute != now // MINUTE_MS:
            spent.minute, spent.weight, spent.refused = now // MINUTE_MS, 0, 0
        spent.weight += weight
        if spent.weight <= self.limit:
            return spent.weight, None
        spent.refused += 1
        if spent.refused > FORBEARANCE:
            spent.banned_until = now + min(BAN_MAX_MS, BAN_MS * 2**spent.bans)
            spent.bans += 1
            self.refused["bans"] += 1
            return spent.weight, banned(address, spent.banned_until, now)
        self.refused["requests beyond the weight"] += 1
        message = (
            f"Too many requests; current limit of IP({address}) is {self.limit} requests per minute. "
            "Please use the websocket for live updates to avoid polling the API."
        )
        wait_ms = MINUTE_MS - now % MINUTE_MS
        return spent.weight, Answer(429, _json({"code": -1003, "msg": message}), _retry_after(wait_ms))


def banned(address: str, until: int, now: int) -> Answer:
    """Return the answer to a banned client."""
    message = (
        f"Way too many requests; IP({address}) banned until {until}. "
        "Please use the websocket for live updates to avoid bans."
    )
    return Answer(418, _json({"code": -1003, "msg": message}), _retry_after(until - now))


def limited(wait_ms: int) -> Answer:
    """Return the answer to a client that must wait, whatever it has asked for."""
    return Answer(429, _json({"code": -1003, "msg": "Too many requests."}), _retry_after(wait_ms))


def unavailable() -> Answer:
    return Answer(503, _json({"code": -1001, "msg": "Service Unavailable."}), {})


def _retry_after(wait_ms: int) -> dict[str, str]:
    return {"Retry-After": str(-(-wait_ms // 1000))}


class Rest:
    def __init__(
        self, market: Market, weights: Weights, omits: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
    ) -> None:
        """`omits` says which ids pages of trades leave out."""
        self.weights = weights
        self._omits = omits
        self._market = market
        self._info: tuple[tuple[Any, ...], bytes] = ((), b"")
        self._routes: dict[str, tuple[Callable[[Mapping[str, str]], int], Callable[[Mapping[str, str]], bytes]]] = {
            "time": (lambda _: 1, lambda _: b""),
            "exchangeInfo": (lambda _: 1, lambda _: self._exchange_info()),
            "klines": (_klines_weight, self._klines),
            "aggTrades": (lambda _: 20, self._agg_trades),
            "trades": (lambda _: 5, self._trades),
            "historicalTrades": (lambda _: 20, self._old_trades),
            "ticker/24hr": (lambda asked: 1 if "symbol" in asked else 40, self._tickers),
        }

    def answer(
        self, path: str, asked: Mapping[str, str], address: str, now: int, weight_now: int, key: str | None
    ) -> Answer:
        """Answer GET `path` (after the prefix). `now`: exchange time; `weight_now`: what weight is counted by."""
        route = self._routes.get(path)
        if route is None:
            return Answer(
                404,
                b'{"code":-5000,"msg":"Path /fapi/v1/%b, Method GET is invalid"}' % path.encode(errors="replace"),
                {},
            )
        weigh, make = route
        used, refusal = self.weights.charge(address, weigh(asked), weight_now)
        if refusal is not None:
            return refusal._replace(headers=refusal.headers | {"X-MBX-USED-WEIGHT-1M": str(used)})
        headers = {"X-MBX-USED-WEIGHT-1M": str(used)}
        try:
            if path == "time":
                return Answer(200, b'{"serverTime":%d}' % now, headers)
            if path == "historicalTrades" and not key:
                raise Refused(-2014, "API-key format invalid.", 401)
            return Answer(200, make(asked), headers)
        except Refused as error:
            return Answer(error.status, error.body, headers)
        except TooOld:
            return Answer(
                400, _json({"code": -4166, "msg": "Search window is restricted to recent 2 days only."}), headers
            )

    def _symbol(self, asked: Mapping[str, str]) -> Instrument:
        name = asked.get("symbol", "")
        if not name:
            raise Refused(-1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
        # The futures host takes lower case as well.
        instrument = self._market.find("".join(x.upper() if x.isascii() else x for x in name))
        if instrument is None:
            raise Refused(-1121, "Invalid symbol.")
        return instrument

    def _klines(self, asked: Mapping[str, str]) -> bytes:
        instrument = self._symbol(asked)
        interval = asked.get("interval", "")
        if not interval:
            raise Refused(-1102, "Mandatory parameter 'interval' was not sent, was empty/null, or malformed.")
        if interval not in INTERVALS:
            raise Refused(-1120, "Invalid interval.")
        limit = _limit(asked, KLINES_MAX)
        start, end = _span(asked)
        now = self._market.now
        length = LENGTHS[interval] or MONTH_MAX_MS
        last = now if end is None else min(end, now)
        if start is None:
            rows = self._market.klines(instrument, interval, max(0, last - length * limit), last)
            rows = rows[rows["open_time"] <= last][-limit:]
        else:
            first = min(max(start, self._market.first_time(instrument)), now)
            rows = self._market.klines(instrument, interval, first, min(last, first + length * (limit + 1)))
            rows = rows[(rows["open_time"] >= start) & (rows["open_time"] <= last)][:limit]
        ends = end_times(interval, rows["open_time"])
        return kline_page(rows, ends, instrument.price_decimals, instrument.quantity_decimals)

    def _agg_trades(self, asked: Mapping[str, str]) -> bytes:
        instrument = self._symbol(asked)
        start, end = _span(asked)
        rows = self._market.agg_trades(instrument, _number(asked, "fromId"), start, end, _limit(asked, TRADES_MAX))
        rows = self._named(rows)
        price, quantity = _template(instrument)
        text = f'{{"a":%d,"p":"{price}","q":"{quantity}","nq":"{quantity}","f":%d,"l":%d,"T":%d,"m":%s}}'
        columns = (
            rows["id"].tolist(),
            *_digits(rows["price"], instrument.price_decimals),
            *_digits(rows["quantity"], instrument.quantity_decimals),
            *_digits(rows["plain_quantity"], instrument.quantity_decimals),
            rows["first"].tolist(),
            rows["last"].tolist(),
            rows["time"].tolist(),
            _booleans(rows["maker"]),
        )
        return _rows(text, columns)

    def _named(self, rows: Rows) -> Rows:
        return rows[~self._omits(rows["id"])] if self._omits is not None else rows

    def _trades(self, asked: Mapping[str, str]) -> bytes:
        return self._single(self._symbol(asked), None, _limit(asked, TRADES_MAX))

    def _old_trades(self, asked: Mapping[str, str]) -> bytes:
        return self._single(self._symbol(asked), _number(asked, "fromId"), _limit(asked, OLD_TRADES_MAX))

    def _single(self, instrument: Instrument, from_id: int | None, limit: int) -> bytes:
        rows = self._named(self._market.single_trades(instrument, from_id, limit))
        price, quantity = instrument.price_decimals, instrument.quantity_decimals
        number, amount = _template(instrument)
        quote = _decimal(price + quantity)
        text = (
            f'{{"id":%d,"price":"{number}","qty":"{amount}","quoteQty":"{quote}","time":%d,"isBuyerMaker":%s,'
            '"isRPITrade":false}'
        )
        columns = (
            rows["id"].tolist(),
            *_digits(rows["price"], price),
            *_digits(rows["quantity"], quantity),
            *_digits(rows["price"] * rows["quantity"], price + quantity),
            rows["time"].tolist(),
            _booleans(rows["maker"]),
        )
        return _rows(text, columns)

    def _tickers(self, asked: Mapping[str, str]) -> bytes:
        if "symbol" in asked:
            symbol = self._symbol(asked).symbol
            found = [_ticker(row, self._market.now) for row in self._market.day_stats() if row[0].symbol == symbol]
            if not found:
                raise Refused(-1121, "Invalid symbol.")
            return _json(found[0])
        return _json([_ticker(row, self._market.now) for row in self._market.day_stats()])

    def _exchange_info(self) -> bytes:
        instruments = self._market.instruments()
        states = tuple((instrument, self._market.status(instrument)) for instrument in instruments)
        if self._info[0] != states:
            self._info = (states, _json([_listing(instrument, status) for instrument, status in states]))
        limits = [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": self.weights.limit},
            {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
        ]
        head = {
            "timezone": "UTC",
            "serverTime": self._market.now,
            "futuresType": "U_MARGINED",
            "rateLimits": limits,
            "exchangeFilters": [],
            "assets": [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}],
        }
        return b'%b,"symbols":%b}' % (_json(head)[:-1], self._info[1])


def _klines_weight(asked: Mapping[str, str]) -> int:
    text = asked.get("limit", "")
    limit = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else ROWS_DEFAULT + 1
    return 1 if limit <= 100 else 2 if limit <= 500 else 5 if limit <= 1000 else 10


def _number(asked: Mapping[str, str], name: str) -> int | None:
    text = asked.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return int(text)


def _limit(asked: Mapping[str, str], most: int) -> int:
    text = asked.get("limit", str(min(ROWS_DEFAULT, most)))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return int(text)


def _span(asked: Mapping[str, str]) -> tuple[int | None, int | None]:
    start, end = _number(asked, "startTime"), _number(asked, "endTime")
    if start is not None and end is not None and start > end:
        raise Refused(-1023, "Start time is greater than end time.")
    return start, end


def _decimal(decimals: int) -> str:
    return f"%d.%0{decimals}d" if decimals else "%d%.0s"


def _template(instrument: Instrument) -> tuple[str, str]:
    return _decimal(instrument.price_decimals), _decimal(instrument.quantity_decimals)


def _digits(values: Any, decimals: int) -> tuple[list[int], list[Any]]:
    if not decimals:
        return values.tolist(), [""] * len(values)
    whole, part = np.divmod(values, 10**decimals)
    return whole.tolist(), part.tolist()


def _booleans(values: Any) -> list[str]:
    return ["true" if value else "false" for value in values.tolist()]


def _rows(text: str, columns: tuple[list[Any], ...]) -> bytes:
    return f"[{','.join([text % row for row in zip(*columns, strict=True)])}]".encode()


def _ticker(stats: DayStats, now: int) -> dict[str, Any]:
    price, quantity = stats.instrument.price_decimals, stats.instrument.quantity_decimals
    change = stats.last - stats.open
    return {
        "symbol": stats.instrument.symbol,
        "priceChange": f"{'-' if change < 0 else ''}{text_of(abs(change), price)}",
        "priceChangePercent": f"{100 * change / max(1, stats.open):.3f}",
        "weightedAveragePrice": text_of(
            stats.quote_volume // 10**quantity // max(1, stats.volume // 10**quantity), price
        )
        if stats.volume
        else "0",
        "lastPrice": text_of(stats.last, price),
        "openPrice": text_of(stats.open, price),
        "highPrice": text_of(stats.high, price),
        "lowPrice": text_of(stats.low, price),
        "volume": text_of(stats.volume, quantity),
        "quoteVolume": text_of(stats.quote_volume, price + quantity),
        "openTime": now - 86_400_000,
        "closeTime": now,
        "count": stats.trades,
    }


def _listing(instrument: Instrument, status: str) -> dict[str, Any]:
    """Write a symbol of exchangeInfo (§3.5)."""
    price, quantity = instrument.price_decimals, instrument.quantity_decimals
    base = instrument.symbol.removesuffix("USDT")
    step, tick = text_of(instrument.step, quantity), text_of(instrument.tick, price)
    return {
        "symbol": instrument.symbol,
        "pair": instrument.symbol,
        "contractType": "PERPETUAL",
        "deliveryDate": instrument.delivery,
        "onboardDate": instrument.onboard,
        "status": status,
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": base,
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "pricePrecision": price,
        "quantityPrecision": quantity,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10000,
        "filters": [
            {"maxPrice": "10000000", "tickSize": tick, "filterType": "PRICE_FILTER", "minPrice": tick},
            {"stepSize": step, "minQty": step, "maxQty": "10000000", "filterType": "LOT_SIZE"},
            {"minQty": step, "maxQty": "1000000", "filterType": "MARKET_LOT_SIZE", "stepSize": step},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"notional": "5", "filterType": "MIN_NOTIONAL"},
            {
                "multiplierDown": "0.9500",
                "multiplierUp": "1.0500",
                "multiplierDecimal": "4",
                "filterType": "PERCENT_PRICE",
            },
        ],
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
    }


def _json(content: Any) -> bytes:
    return msgspec.json.encode(content)
