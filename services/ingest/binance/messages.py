"""Every key and spelling that the exchange uses in its frames and answers; no other file has one.

Decides how a frame or an answer is read and how a control message is written (the sections named are those of the
exchange's protocol). What is read is returned under our own names: frames as named fields, columns, listings. Holds no
socket and no clock. Where the exchange is and how it is asked is in endpoints.py.
"""

import string
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from services.ingest.decimals import DECIMALS_MAX, parse_numbers
from services.ingest.klines import DECIMAL_FIELDS, KlineColumns
from shared.decimals import decimals_of
from shared.names import is_name
from shared.wire import NOT_DECODED

TICKER_STREAM = "!miniTicker@arr"
"""About once a second, every symbol that traded: a heartbeat, and how listings are noticed (§2.5)."""
NAMES_MAX = 200
"""Stream names of one SUBSCRIBE; more than about 350 have been dropped silently (§1.3)."""
STREAMS_MAX = 1024
"""Streams of one connection; one more and the exchange closes it (§1.3)."""

Refuse = Callable[[str, bytes], None]
"""Called with the kind of what is refused, and its content."""

TIME_MAX = 100_000_000_000_000
"""Milliseconds until the year 5138; microseconds would be beyond it."""
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX)]
COUNT_MAX = 2**53
_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class Malformed(ValueError):
    """An answer of the exchange that is not what was asked for."""


_TO_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_TO_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)


def stream_name(symbol: str, kind: str) -> str:
    """Return `btcusdt@aggTrade`; letters outside ASCII stay as they are (§1.2)."""
    return f"{symbol.translate(_TO_LOWER)}@{kind}"


def symbol_of(stream: str, kind: str) -> str | None:
    """Return the symbol of a trade stream; None if it is not one of this kind."""
    name, _, suffix = stream.partition("@")
    return name.translate(_TO_UPPER) if name and suffix == kind else None


def control_message(method: str, streams: list[str], message_id: int) -> bytes:
    """Write SUBSCRIBE or UNSUBSCRIBE (§1.4)."""
    return msgspec.json.encode({"method": method, "params": streams, "id": message_id})


_TRADE_KEYS = {
    "symbol": "s",
    "id": "t",
    "price": "p",
    "quantity": "q",
    "time": "T",
    "event_time": "E",
    "buyer_is_maker": "m",
    "kind": "X",
    "market": "st",
}
_AGG_KEYS = _TRADE_KEYS | {"id": "a", "first_fill": "f", "last_fill": "l"}
MARKET_TRADE = "MARKET"
"""The kind of an ordinary trade (§2.4)."""
OUR_MARKET = 1
"""The exchange's other market shares the ticker, and a client that may trade both gets rows of both."""
BEFORE_STREAM, AFTER_STREAM = b'{"stream":"', b',"data":{'
"""What surrounds the name of a stream in a data frame (§1.2)."""


class AggTrade(msgspec.Struct, gc=False, rename=_AGG_KEYS):
    """A frame of `@aggTrade` (§2.1, §2.2)."""

    symbol: str
    id: _Id
    price: str
    quantity: str
    first_fill: _Id
    last_fill: _Id
    time: _Time
    event_time: _Time
    buyer_is_maker: bool
    market: int = OUR_MARKET

    @property
    def trade_count(self) -> int:
        """How many fills it merged; -1 if its own ids contradict each other."""
        return self.last_fill - self.first_fill + 1 or -1


class Trade(msgspec.Struct, gc=False, rename=_TRADE_KEYS):
    """A frame of `@trade` (§2.4)."""

    symbol: str
    id: _Id
    price: str
    quantity: str
    time: _Time
    event_time: _Time
    buyer_is_maker: bool
    kind: str = MARKET_TRADE
    market: int = OUR_MARKET

    @property
    def trade_count(self) -> int:
        """0 for a void id: a transfer off the book, or no execution at all."""
        return 1 if self.kind == MARKET_TRADE else 0


class Ticker(msgspec.Struct, gc=False, rename={"symbol": "s", "event_time": "E", "price": "c", "market": "st"}):
    """A row of `!miniTicker@arr` (§2.5)."""

    symbol: str
    event_time: _Time
    price: str = ""
    market: int = OUR_MARKET


class _AggMessage(msgspec.Struct):
    data: AggTrade | list[Ticker]


class _TradeMessage(msgspec.Struct):
    data: Trade | list[Ticker]


def message_type(kind: str) -> Any:
    """Return the type of a data frame: `data` is a trade of this kind, or a list of tickers."""
    return _AggMessage if kind == "aggTrade" else _TradeMessage


TRADE_FIELDS = (*_AGG_KEYS,)
"""All fields that are read of a trade's frame."""


def trade_keys(kind: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (the keys of a trade's frame by field, the fields that it must have), as `message_type` reads them."""
    fields = msgspec.structs.fields(AggTrade if kind == "aggTrade" else Trade)
    return {field.name: field.encode_name for field in fields}, tuple(field.name for field in fields if field.required)


class Reply(NamedTuple):
    """The exchange's answer to a control message; `message_id` is None if it could not tell which one."""

    message_id: int | None
    error: str = ""


class Shutdown:
    """The exchange says that it will close the connection soon (§1.3)."""


def read_control(frame: bytes) -> Reply | Shutdown | None:
    """Read a frame that is not data; None if it is of no known kind. Raises Malformed if it is not JSON at all."""
    try:
        content = msgspec.json.decode(frame)
    except NOT_DECODED as error:
        raise Malformed(str(error)) from error
    if not isinstance(content, dict):
        return None
    if content.get("stream") == "!serverShutdown" or content.get("e") == "serverShutdown":
        return Shutdown()
    if "stream" not in content and ("id" in content or "error" in content):
        message_id, refusal = content.get("id"), content.get("error")
        return Reply(message_id if type(message_id) is int else None, str(refusal) if refusal else "")
    return None


class Listing(NamedTuple):
    """A symbol as exchangeInfo has it."""

    symbol: str
    trading: bool
    price_decimals: int
    quantity_decimals: int


class _Filter(msgspec.Struct):
    filterType: str
    tickSize: str = "0"
    stepSize: str = "0"


class _Symbol(msgspec.Struct):
    symbol: str
    status: str
    filters: list[_Filter]
    pricePrecision: int = 0
    """Futures only, and finer than the tick: numbers on the wire have this many decimals (§3.5)."""
    quantityPrecision: int = 0


class _RateLimit(msgspec.Struct):
    rateLimitType: str
    interval: str
    intervalNum: int
    limit: int


class _Info(msgspec.Struct):
    symbols: list[msgspec.Raw]
    rateLimits: list[_RateLimit] = []


def read_exchange_info(body: bytes, refuse: Refuse) -> tuple[list[Listing], int | None]:
    """Return (listings, weight limit a minute if it names one). Raises Malformed; an odd symbol is refused alone."""
    info = _decode(_Info, body)
    limit = next(
        (
            entry.limit
            for entry in info.rateLimits
            if (entry.rateLimitType, entry.interval, entry.intervalNum) == ("REQUEST_WEIGHT", "MINUTE", 1)
        ),
        None,
    )
    listings = []
    for raw in info.symbols:
        try:
            listings.append(_listing(msgspec.json.decode(raw, type=_Symbol)))
        except ValueError:
            refuse("exchangeInfo symbol", bytes(raw))
    return listings, limit


def _listing(symbol: _Symbol) -> Listing:
    filters = {entry.filterType: entry for entry in symbol.filters}
    tick = filters.get("PRICE_FILTER", _Filter("")).tickSize
    step = filters.get("LOT_SIZE", _Filter("")).stepSize
    price_decimals = max(symbol.pricePrecision, decimals_of(tick))
    quantity_decimals = max(symbol.quantityPrecision, decimals_of(step))
    if not is_name(symbol.symbol) or not 0 <= max(price_decimals, quantity_decimals) <= DECIMALS_MAX:
        raise ValueError(f"{symbol.symbol!r} with {price_decimals} and {quantity_decimals} decimals")
    return Listing(symbol.symbol, symbol.status == "TRADING", price_decimals, quantity_decimals)


class _Volume(msgspec.Struct):
    symbol: str
    quoteVolume: str


class _ServerTime(msgspec.Struct):
    serverTime: _Time


def read_time(body: bytes) -> int:
    """Return the exchange's time, ms. Raises Malformed."""
    return int(_decode(_ServerTime, body).serverTime)


def read_volumes(body: bytes) -> dict[str, float]:
    """Return the 24 h quote volume of each symbol: exact enough to sort by. Raises Malformed."""
    try:
        return {row.symbol: float(row.quoteVolume) for row in _decode(list[_Volume], body)}
    except ValueError as error:
        raise Malformed(str(error)) from error


class _Error(msgspec.Struct):
    code: int
    msg: str = ""


def read_error(body: bytes) -> tuple[int, str]:
    """Return (code, message) of a refused request; code 0 if there is none."""
    try:
        error = msgspec.json.decode(body, type=_Error)
    except NOT_DECODED:
        return 0, body[:100].decode("utf-8", "replace")
    return error.code, error.msg


def banned_until(message: str) -> int | None:
    """Return the time, ms, that a 418 or 429 names; None if it names none (§3.1)."""
    _, found, rest = message.partition("banned until ")
    digits = rest.split(".")[0].split(" ")[0].split(",")[0]
    return int(digits) if found and digits.isascii() and digits.isdigit() and len(digits) <= 16 else None


class _AggRow(msgspec.Struct, gc=False, rename=_AGG_KEYS):
    id: _Id
    price: str
    quantity: str
    first_fill: _Id
    last_fill: _Id
    time: _Time
    buyer_is_maker: bool


class _TradeRow(msgspec.Struct, gc=False, rename={"quantity": "qty", "buyer_is_maker": "isBuyerMaker"}):
    id: _Id
    price: str
    quantity: str
    time: _Time
    buyer_is_maker: bool


class TradePage(NamedTuple):
    """Trades of one symbol as REST answered them, ascending by id, in columns."""

    ids: list[int]
    times: list[int]
    trade_counts: list[int]
    prices: list[str]
    quantities: list[str]
    buyer_is_maker: list[bool]

    def from_index(self, index: int) -> "TradePage":
        return TradePage(*(column[index:] for column in self))  # type: ignore[arg-type]


def read_agg_trades(body: bytes) -> TradePage:
    """Raises Malformed."""
    rows = _decode(list[_AggRow], body)
    return _page(rows, [row.last_fill - row.first_fill + 1 or -1 for row in rows])


def read_trades(body: bytes) -> TradePage:
    """Raises Malformed. Void ids are not among the rows."""
    rows = _decode(list[_TradeRow], body)
    return _page(rows, [1] * len(rows))


def _page(rows: list[Any], trade_counts: list[int]) -> TradePage:
    ids = [row.id for row in rows]
    if any(later <= earlier for earlier, later in pairwise(ids)):
        raise Malformed(f"ids do not ascend in a page that begins at {ids[0]}")
    return TradePage(
        ids,
        [row.time for row in rows],
        trade_counts,
        [row.price for row in rows],
        [row.quantity for row in rows],
        [row.buyer_is_maker for row in rows],
    )


_KlineRow = tuple[_Time, str, str, str, str, str, _Time, str, _Count, str, str, Any]


def read_klines(body: bytes) -> KlineColumns:
    """Raises Malformed."""
    rows = _decode(list[_KlineRow], body)
    texts = [text for row in rows for text in (row[1], row[2], row[3], row[4], row[5], row[7], row[9], row[10])]
    return KlineColumns(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[6] for row in rows], np.int64),
        np.array([row[8] for row in rows], np.int64),
        *(column.reshape(len(rows), len(DECIMAL_FIELDS)) for column in parse_numbers(texts)),
    )


def _decode(kind: Any, body: bytes) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except NOT_DECODED as error:
        raise Malformed(f"{error} (answer begins {body[:100]!r})") from error
