"""What subscribers get from the engine: klines, tickers and health, and the topics that they come on.

Other people's programs depend on it: a field may be added, and none is changed or removed. A message is two frames, the
topic and a msgpack map, which any msgpack library reads. Knows nothing of the messages between klagg's own services,
which are in wire.py.
"""

from typing import Any, TypeVar

import msgspec

Message = TypeVar("Message")

NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are not a message: for text that is not UTF-8 and endless nesting too."""


class WireError(ValueError):
    """Bytes that are not the message they should be."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One kline, on topic `kline.<SYMBOL>.<interval>`: always the whole row, in decimals."""

    symbol: str
    interval: str
    sequence: int
    """Counts this topic's messages since `session` began: a step of more than 1 is a loss, but this row is whole."""
    session: int
    """Of the engine; another number means that it was restarted, and that sequences begin again."""
    exchange_time: int
    open_time: int
    close_time: int
    """Inclusive, as the exchange has it: the next open time less 1 ms."""
    open: str
    high: str
    low: str
    close: str
    volume: str
    quote_volume: str
    trade_count: int
    taker_buy_volume: str
    taker_buy_quote_volume: str
    first_id: int
    """The range of trade ids in it and their number; 0 when it has none."""
    last_id: int
    id_count: int
    closed: bool
    """The exchange's clock has passed its end."""
    final: bool
    """Every trade before its end was applied, by all that is known. Should another one come all the same, the row is
    sent again, with `final` off and a higher `revision`."""
    gap: bool
    """Missing trades may belong in it; they are being fetched."""
    unexplained: bool
    """It may lack ids that the exchange left out of its answers: not final while that is so."""
    audited: bool
    """It may lack such ids, but the exchange's own kline has the same trades and volumes: final by that."""
    saturated: bool
    """More was traded in it than klagg's numbers hold: volumes are true or the largest that fit. Never final."""
    source: str
    """`trades`, `exchange` (the exchange's own kline) or `both`."""
    revision: int


class Tickers(msgspec.Struct, frozen=True, kw_only=True):
    """Last price and 24 h figures of all symbols, in columns, on topic `tickers`, twice a second."""

    sequence: int
    session: int
    exchange_time: int
    symbols: list[str]
    last: list[str]
    open_24h: list[str]
    high_24h: list[str]
    low_24h: list[str]
    volume_24h: list[str]
    quote_volume_24h: list[str]
    active: list[bool]


TICKERS_TOPIC = "tickers"
HEALTH_TOPIC = "engine.health"
"""A msgpack map of the engine's own figures, twice a second, and more often while trades are missing or late."""


def kline_topic(symbol: str, interval: str) -> str:
    return f"kline.{symbol}.{interval}"


_snapshot_decoder = msgspec.msgpack.Decoder(Snapshot)
_tickers_decoder = msgspec.msgpack.Decoder(Tickers)
_health_decoder = msgspec.msgpack.Decoder(dict[str, Any])


def decode_snapshot(data: bytes) -> Snapshot:
    """Decode the second frame of a `kline.` topic. Raises WireError."""
    return decode(_snapshot_decoder, data)


def decode_tickers(data: bytes) -> Tickers:
    """Decode the second frame of the `tickers` topic. Raises WireError."""
    return decode(_tickers_decoder, data)


def decode_health(data: bytes) -> dict[str, Any]:
    """Decode the second frame of the `engine.health` topic. Raises WireError."""
    return decode(_health_decoder, data)


def decode(decoder: msgspec.msgpack.Decoder[Message], data: bytes) -> Message:
    """Decode a message with any decoder. Raises WireError."""
    try:
        return decoder.decode(data)
    except NOT_DECODED as error:
        raise WireError(f"{error} (message begins {data[:40]!r})") from error
