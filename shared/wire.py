"""Every message between the rooms, and the one codec for them.

Decides the shapes and what single numbers may be; knows no socket. Messages are frozen, and msgpack on the wire, so a
stranger reads snapshots with any msgpack library. Between rooms, rows are one binary field: a little-endian structured
array of `TRADE`, `KLINE` or `PLACED_KLINE` (shared/kline.py), which `np.frombuffer` reads without a copy.

`AppEvent` is what changes the engine's state, beside the clock; `Command` is what the engine asks of ingest;
`StoreRequest` is what it asks of persist.
"""

import zlib
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from shared.arrays import Rows
from shared.bounds import Count, Decimals, Id, Moment, Names, Number, Time
from shared.interval import INTERVALS
from shared.kline import KLINE, PLACED_KLINE, TRADE
from shared.point import StorePoint as StorePoint

Message = TypeVar("Message")

ROWS_MAX = 100_000
"""Of an interval that are asked of the store; memory has some hundred."""
PACKED_QUICKLY = 1
"""Of zlib's levels: the others take longer for little."""


class Instrument(msgspec.Struct, frozen=True, array_like=True):
    """A symbol as a batch speaks of it: its rows are integers in units of 10**-decimals."""

    symbol: str
    price_decimals: Decimals
    quantity_decimals: Decimals


class Covered(msgspec.Struct, frozen=True, array_like=True):
    """A range of ids, both ends inclusive, that an answer is about in whole.

    An id of the range that is not among the batch's rows was left out, and nobody has said what it is. Void is only
    what a row says to be: one with a trade count of 0.
    """

    instrument: Number
    first_id: Id
    last_id: Id
    older_to: Id = -1
    """Ids up to this one are older than the time that was asked for: that of a trade which is. -1: none is known."""


class Trades(msgspec.Struct, frozen=True, tag="trades"):
    """A columnar batch of trades, of the stream or of a repair."""

    instruments: bytes
    """What the rows speak of, and maybe more: `pack_instruments` makes it, `instruments_of` reads it.

    The feed sends the same table with every batch, so that it is packed once, and unpacked when it has changed: as one
    string of bytes, because to find the end of 500 entries takes longer than all else of a small batch; and compressed,
    because ZeroMQ writes 8 KB at once and wakes the reader for each write.
    """
    rows: bytes
    """TRADE[n]; `symbol` indexes the instruments."""
    event_time: Time = 0
    """The exchange's time of the newest event in it, ms; 0 when the batch says nothing about now."""
    covered: list[Covered] = []


class IntervalKlines(msgspec.Struct, frozen=True, array_like=True):
    interval: str
    rows: bytes
    """KLINE[n], ascending, closed ones only."""


class AddSymbol(msgspec.Struct, frozen=True, tag="add_symbol"):
    """A symbol that trades and that the engine did not name in its `Subscribe`: found at start or listed at run time.

    Every trade before `klines_until` is in `klines`, and none after it.
    """

    symbol: str
    price_decimals: Decimals
    quantity_decimals: Decimals
    stream: str
    """The name of its trade stream, as the exchange spells it; opaque to the engine, which asks for it by this name."""
    klines: list[IntervalKlines]
    klines_until: Time
    event_time: Time
    grid_3d: Time = 0
    """An open time of the symbol's 3d klines; 0 if the exchange has none yet."""


class RemoveSymbol(msgspec.Struct, frozen=True, tag="remove_symbol"):
    """A symbol that trades no more: no flat klines from here on; its history stays."""

    symbol: str
    event_time: Time


class Klines(msgspec.Struct, frozen=True, tag="klines"):
    """The exchange's own closed klines that `FetchKlines` asked for."""

    symbol: str
    price_decimals: Decimals
    quantity_decimals: Decimals
    interval: str
    rows: bytes
    """KLINE[n], ascending."""
    audit: bool = False
    """They were asked for to be compared."""


class Mismatch(msgspec.Struct, frozen=True):
    """A minute of ours that is not what the exchange says it is."""

    open_time: Moment
    fields: dict[str, tuple[Number | str, Number | str]]
    """Ours and theirs, of the fields that differ, in units of the symbol's last decimal then; text beyond 64 bits."""


class AuditMark(msgspec.Struct, frozen=True):
    """What comparing a symbol's minutes with the exchange's own klines has shown."""

    until: Moment = 0
    """Minutes that open before it have been compared, or cannot be."""
    counts: dict[str, Count] = {}
    """Minutes by outcome (matched, burnt, straddled, mismatched), and the fields of those that do not match."""
    mismatches: list[Mismatch] = []
    """The newest."""


class Unexplained(msgspec.Struct, frozen=True, array_like=True):
    """Ids that were left out of every answer that was about them, both ends inclusive."""

    first_id: Id
    last_id: Id
    from_time: Moment
    """The trade before the first is no later, ms, ..."""
    to_time: Moment
    """... and the one behind the last no earlier."""
    outcome: str = "open"
    """`open`; `audited`: the exchange's own klines show that they carry no trade; `adopted`: those klines took the
    place of ours."""


class SymbolMark(msgspec.Struct, frozen=True):
    """What has been applied of a symbol, at the same instant as the rows that travel with it."""

    symbol: str
    price_decimals: Decimals
    quantity_decimals: Decimals
    stream: str
    active: bool
    """False once it was removed."""
    grid_3d: Moment
    """An open time of the symbol's 3d klines."""
    seam_time: Moment
    """Trades before this time are in the rows by way of the exchange's own klines; their ids add nothing."""
    last_id: Id
    """The highest id applied; -1 before the first."""
    gaps: list[tuple[Id, Id]]
    """Missing ids below `last_id` that are being asked for: disjoint ascending ranges, both ends inclusive."""
    lacking: list[tuple[str, Moment, Moment]] = []
    """Klines still to come from the exchange: interval, and the open times between which they lie, inclusive."""
    proven_time: Moment = 0
    """Every trade before it was applied."""
    audit: AuditMark = AuditMark()
    unexplained: list[Unexplained] = []
    """Ascending; the newest, if there are too many."""


class Restored(msgspec.Struct, frozen=True, tag="restored"):
    """The store's answer to `Load`, in one or more parts. A part holds all rows of its symbols."""

    session: Number
    """That of the `Load`: what was meant for a former engine is not for this one."""
    marks: list[SymbolMark]
    rows: bytes
    """PLACED_KLINE[n]; `symbol` indexes `marks`; ascending by open time within a symbol and interval."""
    last: bool
    exchange_time: Time
    """The engine's exchange time when the last batch was cut; 0 for an empty store."""
    point: StorePoint = StorePoint()


class Persisted(msgspec.Struct, frozen=True, tag="persisted"):
    """The batch of this number is committed, in these tables, but for the symbols that the database refuses."""

    session: Number
    batch: Number
    tables: str = ""
    refused: Names = []


class StoreState(msgspec.Struct, frozen=True, tag="store_state"):
    """Persist has come up, or the store is not what a batch was for: what is not acknowledged must be sent again."""

    session: Number
    point: StorePoint = StorePoint()
    exchange_time: Time = 0
    unfinished: list[tuple[str, str, Moment, Moment]] = []
    """Klines that the store lacks or may have to change: symbol, interval, first and last open time."""


class FeedState(msgspec.Struct, frozen=True, tag="feed_state"):
    """The feed's heartbeat, sent on every change and twice a second."""

    session: Number
    """Another number means another ingest."""
    connected: bool
    since: Time
    """The exchange's time at which `connected` became what it is."""
    exchange_time: Time
    """The exchange's time, ms, at the moment `monotonic_ns`."""
    monotonic_ns: Number
    """CLOCK_MONOTONIC of this machine, ns: the same in every process."""
    announced: Count = 0
    """How many symbols' history has been fetched since this ingest started, ..."""
    to_announce: Count = 0
    """... out of how many ..."""
    announce_ms: Count = 0
    """... and how long the rest will take, ms."""
    engine: Number = 0
    """The session of the engine that last told it what it knows (`Subscribe.complete`); another one tells it again."""


class Listed(msgspec.Struct, frozen=True, tag="listed"):
    symbols: Names
    """All that trade and are wanted, whether they have begun or wait for their history."""


AppEvent = Trades | AddSymbol | RemoveSymbol | Klines | Restored | Persisted | StoreState | FeedState | Listed


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    streams: Names
    complete: bool = False
    """True: these are all the engine knows. Announce (`AddSymbol`) every other symbol that trades."""
    engine: Number = 0
    """The engine's session, with `complete`: the feed repeats it, so that a lost introduction is noticed."""


class Unsubscribe(msgspec.Struct, frozen=True, tag="unsubscribe"):
    streams: Names


class FetchTrades(msgspec.Struct, frozen=True, tag="fetch_trades"):
    """Ask for the trades of an id range; the answer is one or more `Trades` whose `covered` adds up to it."""

    symbol: str
    first_id: Id
    """0: the beginning is not known by id, only by `from_time`."""
    last_id: Id
    """-1: up to the newest there is."""
    from_time: Moment = 0
    """Trades before it are not wanted; used when `first_id` is 0."""
    to_time: Moment = 0
    """None of them is later: what is missing of an open kline is more urgent than what is of an old one. 0: unknown."""


class FetchKlines(msgspec.Struct, frozen=True, tag="fetch_klines"):
    """Ask for the exchange's own closed klines that open in [start_time, end_time]; answered by `Klines`."""

    symbol: str
    interval: str
    start_time: Moment
    end_time: Moment
    audit: bool = False
    """To be compared with ours: whatever repairs something goes first."""


class Prefer(msgspec.Struct, frozen=True, tag="prefer"):
    symbols: Names
    """Somebody looks at these: of those that are still to be announced, they are next."""


Command = Subscribe | Unsubscribe | FetchTrades | FetchKlines | Prefer


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Ask the store for every symbol's mark and its newest rows."""

    session: Number
    """Of the engine. From here on the store takes the batches of this session alone: one that a former engine left in
    the queue would put rows into the database that this engine does not know of."""
    rows: Annotated[
        list[Annotated[int, Meta(ge=1, le=ROWS_MAX)]], Meta(min_length=len(INTERVALS), max_length=len(INTERVALS))
    ]
    """How many of each interval; all of them are at least 1."""


class DirtyBatch(msgspec.Struct, frozen=True, tag="dirty_batch"):
    """A consistent cut: rows, and the marks of all symbols that the rows speak of. Saved in one transaction."""

    session: Number
    batch: Number
    exchange_time: Time
    marks: list[SymbolMark]
    rows: bytes
    """PLACED_KLINE[n]; `symbol` indexes `marks`; (symbol, interval, open_time) is unique in it."""
    after: StorePoint = StorePoint()
    """What the store has, as far as the engine knows; else nothing is saved, and the answer is `StoreState`."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The engine has stopped: nothing follows."""


StoreRequest = Load | DirtyBatch | Finished


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One kline as subscribers get it, on topic `kline.<SYMBOL>.<interval>`: always the whole row, in decimals.

    A message is two frames: the topic, and this as a msgpack map.
    """

    symbol: str
    interval: str
    sequence: int
    """Counts this topic's messages since `session` began: a step of more than 1 is a loss, which this row heals."""
    session: int
    """Another number means another engine: its sequences begin anew."""
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
    """Every trade before its end was applied, by all that is known. Should one turn up all the same, the row says so:
    `final` off, `revision` up."""
    gap: bool
    """Missing trades may belong in it; they are being fetched."""
    unexplained: bool
    """Ids that belong in it, or may, were left out by whoever was asked: not final while that is so."""
    audited: bool
    """Such ids, and the exchange's own kline has the same trades and volumes: final by that."""
    saturated: bool
    """More was traded in it than klagg's numbers hold: volumes are the true ones or the most that fits. Never final."""
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
"""A msgpack map of the engine's own figures, twice a second, and more often while trades are missing or do not come."""


def kline_topic(symbol: str, interval: str) -> str:
    return f"kline.{symbol}.{interval}"


_encoder = msgspec.msgpack.Encoder()
_instruments_decoder = msgspec.msgpack.Decoder(list[Instrument])
_event_decoder: msgspec.msgpack.Decoder[AppEvent] = msgspec.msgpack.Decoder(AppEvent)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_store_decoder: msgspec.msgpack.Decoder[StoreRequest] = msgspec.msgpack.Decoder(StoreRequest)
_snapshot_decoder = msgspec.msgpack.Decoder(Snapshot)
_tickers_decoder = msgspec.msgpack.Decoder(Tickers)

encode = _encoder.encode

NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are not what they should be: text that is none and endless nesting too."""


class WireError(ValueError):
    """Bytes that are not the message they should be."""


def pack_instruments(instruments: list[Instrument]) -> bytes:
    """Return instruments as `Trades` carries them."""
    return zlib.compress(encode(instruments), PACKED_QUICKLY)


def instruments_of(trades: Trades) -> list[Instrument]:
    """Return what the rows of a batch speak of. Raises WireError."""
    try:
        packed = zlib.decompress(trades.instruments)
    except zlib.error as error:
        raise WireError(f"instruments that are not packed: {error}") from error
    return _decode(_instruments_decoder, packed)


def decode_event(data: bytes) -> AppEvent:
    """Decode an `AppEvent`. Raises WireError."""
    return _decode(_event_decoder, data)


def decode_command(data: bytes) -> Command:
    """Decode a `Command`. Raises WireError."""
    return _decode(_command_decoder, data)


def decode_store_request(data: bytes) -> StoreRequest:
    """Decode a `StoreRequest`. Raises WireError."""
    return _decode(_store_decoder, data)


def decode_snapshot(data: bytes) -> Snapshot:
    """Decode the second frame of a `kline.` topic. Raises WireError."""
    return _decode(_snapshot_decoder, data)


def decode_tickers(data: bytes) -> Tickers:
    """Decode the second frame of the `tickers` topic. Raises WireError."""
    return _decode(_tickers_decoder, data)


def trade_rows(rows: bytes) -> Rows:
    """Read TRADE[n]. Raises WireError. The array is read-only."""
    return _read(rows, TRADE)


def kline_rows(rows: bytes) -> Rows:
    """Read KLINE[n]. Raises WireError. The array is read-only."""
    return _read(rows, KLINE)


def placed_rows(rows: bytes) -> Rows:
    """Read PLACED_KLINE[n]. Raises WireError. The array is read-only."""
    return _read(rows, PLACED_KLINE)


def _decode(decoder: msgspec.msgpack.Decoder[Message], data: bytes) -> Message:
    try:
        return decoder.decode(data)
    except NOT_DECODED as error:
        raise WireError(f"{error} (message begins {data[:40]!r})") from error


def _read(rows: bytes, dtype: np.dtype[np.void]) -> Rows:
    if len(rows) % dtype.itemsize:
        raise WireError(f"{len(rows)} bytes are no whole number of rows of {dtype.itemsize}")
    return np.frombuffer(rows, dtype)
