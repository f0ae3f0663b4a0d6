"""Every message between the services, and the one codec for them. What subscribers get is in snapshot.py.

Decides the shapes; knows no socket and no rule of the domain. Messages are frozen, and msgpack on the wire. Rows travel
as one binary field: a little-endian structured array of `TRADE`, `KLINE` or `PLACED_KLINE` (shared/kline.py), which
`np.frombuffer` reads without a copy.

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
from shared.snapshot import NOT_DECODED as NOT_DECODED
from shared.snapshot import WireError as WireError
from shared.snapshot import decode

Message = TypeVar("Message")

ROWS_MAX = 100_000
"""Rows of an interval that a `Load` may ask for; the engine's memory has some hundred."""
COMPRESSION_LEVEL = 1
"""Of zlib: higher ones take longer and save little."""


class Instrument(msgspec.Struct, frozen=True, array_like=True):
    """A symbol as the rows of a batch refer to it: their integers are in units of 10**-decimals."""

    symbol: str
    price_decimals: Decimals
    quantity_decimals: Decimals


class Covered(msgspec.Struct, frozen=True, array_like=True):
    """A range of ids, both ends inclusive, about which an answer is complete.

    An id of the range that is not among the batch's rows was left out by the exchange; it is not known what it is. An
    id is void only if it has a row that says so: one with a trade count of 0.
    """

    instrument: Number
    first_id: Id
    last_id: Id
    older_to: Id = -1
    """The id of a trade that is older than the time that was asked for, as are all ids before it. -1: none is known."""


class Trades(msgspec.Struct, frozen=True, tag="trades"):
    """A columnar batch of trades, of the stream or of a repair."""

    instruments: bytes
    """The instruments of the rows, and maybe more: `pack_instruments` makes it, `instruments_of` reads it.

    The feed sends the same table with every batch, so that it is packed once, and unpacked when it has changed. It is
    one string of bytes, because to decode 500 entries takes longer than all else of a small batch. It is compressed,
    because ZeroMQ writes at most 8 KB at once and wakes the receiver for each write.
    """
    rows: bytes
    """TRADE[n]; `symbol` indexes the instruments."""
    event_time: Time = 0
    """The exchange's time of the newest event in it, ms; 0 if the batch is of a repair and says nothing of the time."""
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
    """A symbol that trades no more: it gets no flat klines from here on, and its history stays."""

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
    """They were requested to be compared with ours."""
    start_time: Moment = 0
    """They answer for the range from here to the last of them, or all of it where there is none."""


class Mismatch(msgspec.Struct, frozen=True):
    """A minute of ours that differs from the exchange's own kline."""

    open_time: Moment
    fields: dict[str, tuple[Number | str, Number | str]]
    """What differs: our number and theirs, in units of the symbol's last decimal then; text beyond 64 bits."""


class AuditMark(msgspec.Struct, frozen=True):
    """The result of comparing a symbol's minutes with the exchange's own klines."""

    until: Moment = 0
    """All minutes that open before it have been compared, or cannot be."""
    counts: dict[str, Count] = {}
    """Minutes by outcome (matched, burnt, straddled, mismatched), and the fields of those that do not match."""
    mismatches: list[Mismatch] = []
    """The newest."""


class Unexplained(msgspec.Struct, frozen=True, array_like=True):
    """Ids that every answer that covers them has left out, both ends inclusive."""

    first_id: Id
    last_id: Id
    from_time: Moment
    """The time of the trade before them, or later, ms, ..."""
    to_time: Moment
    """... and of the one after them, or earlier."""
    outcome: str = "open"
    """`open`; `audited`: the exchange's klines show that they have no trade; `adopted`: those klines replaced ours."""


class SymbolMark(msgspec.Struct, frozen=True):
    """What has been applied of a symbol, at the same instant as the rows of the same message."""

    symbol: str
    price_decimals: Decimals
    quantity_decimals: Decimals
    stream: str
    active: bool
    """False once it was removed."""
    grid_3d: Moment
    """An open time of the symbol's 3d klines."""
    seam_time: Moment
    """Trades before this time are in the rows as part of the exchange's own klines; their ids are not applied."""
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


class StorePoint(msgspec.Struct, frozen=True, array_like=True):
    """The last batch that the store has. Every answer of persist names it, and the engine compares it with its own.

    A store that was emptied, or set back by a backup or a failover that lagged, has another one.
    """

    tables: str = ""
    """The identity of the tables: it changes when they are emptied; empty: nothing was ever saved."""
    session: Number = 0
    """The engine that made the last batch, ..."""
    batch: Number = 0
    """... and the batch's number."""

    def continues(self, known: "StorePoint", session: int) -> bool:
        """Say whether this is the point that an engine knows, or a later one of the same engine's batches."""
        if self == known:
            return True
        known_batch = known.batch if known.session == session else -1
        return self.session == session and self.batch >= known_batch and known.tables in ("", self.tables)


class Restored(msgspec.Struct, frozen=True, tag="restored"):
    """The store's answer to `Load`, in one or more parts. A part holds all rows of its symbols."""

    session: Number
    """That of the `Load`: an answer to a former engine is not for this one."""
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
    """Persist has started, or a batch was for another store: what is not acknowledged must be sent again."""

    session: Number
    point: StorePoint = StorePoint()
    exchange_time: Time = 0
    unfinished: list[tuple[str, str, Moment, Moment]] = []
    """Klines that the store lacks or may have to change: symbol, interval, first and last open time."""


class FeedState(msgspec.Struct, frozen=True, tag="feed_state"):
    """The heartbeat of ingest, sent on every change and twice a second."""

    session: Number
    """Another number means another ingest."""
    connected: bool
    since: Time
    """The exchange's time at which `connected` changed."""
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
    """The session of the engine that sent the last complete `Subscribe`; one of another session sends it again."""


class Listed(msgspec.Struct, frozen=True, tag="listed"):
    symbols: Names
    """All that trade and are wanted, whether they have begun or wait for their history."""


AppEvent = Trades | AddSymbol | RemoveSymbol | Klines | Restored | Persisted | StoreState | FeedState | Listed


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    streams: Names
    complete: bool = False
    """True: these are all the engine knows. Announce (`AddSymbol`) every other symbol that trades."""
    engine: Number = 0
    """The engine's session, with `complete`: `FeedState` repeats it, so that the engine notices a loss."""


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
    """None of them is later: what an open kline lacks is more urgent than what an old one lacks. 0: unknown."""


class FetchKlines(msgspec.Struct, frozen=True, tag="fetch_klines"):
    """Ask for the exchange's own closed klines that open in [start_time, end_time]; answered by `Klines`."""

    symbol: str
    interval: str
    start_time: Moment
    end_time: Moment
    audit: bool = False
    """To be compared with ours: every repair goes first."""


class Prefer(msgspec.Struct, frozen=True, tag="prefer"):
    symbols: Names
    """Subscribers watch these: of those that are still to be announced, they are next."""


Command = Subscribe | Unsubscribe | FetchTrades | FetchKlines | Prefer


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Ask the store for every symbol's mark and its newest rows."""

    session: Number
    """Of the engine. From here on the store takes the batches of this session alone: a batch that a former engine left
    in the queue would write rows that this engine does not know of."""
    rows: Annotated[
        list[Annotated[int, Meta(ge=1, le=ROWS_MAX)]], Meta(min_length=len(INTERVALS), max_length=len(INTERVALS))
    ]
    """How many of each interval; all of them are at least 1."""


class DirtyBatch(msgspec.Struct, frozen=True, tag="dirty_batch"):
    """A consistent cut: rows, and the marks of all their symbols. Saved in one transaction."""

    session: Number
    batch: Number
    exchange_time: Time
    marks: list[SymbolMark]
    rows: bytes
    """PLACED_KLINE[n]; `symbol` indexes `marks`; (symbol, interval, open_time) is unique in it."""
    after: StorePoint = StorePoint()
    """What the store has, as far as the engine knows; else nothing is saved, and the answer is `StoreState`."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The engine has stopped: no batch follows."""


StoreRequest = Load | DirtyBatch | Finished


_encoder = msgspec.msgpack.Encoder()
_instruments_decoder = msgspec.msgpack.Decoder(list[Instrument])
_event_decoder: msgspec.msgpack.Decoder[AppEvent] = msgspec.msgpack.Decoder(AppEvent)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_store_decoder: msgspec.msgpack.Decoder[StoreRequest] = msgspec.msgpack.Decoder(StoreRequest)

encode = _encoder.encode


def pack_instruments(instruments: list[Instrument]) -> bytes:
    """Return instruments as `Trades` carries them."""
    return zlib.compress(encode(instruments), COMPRESSION_LEVEL)


def instruments_of(trades: Trades) -> list[Instrument]:
    """Return the instruments of a batch. Raises WireError."""
    try:
        packed = zlib.decompress(trades.instruments)
    except zlib.error as error:
        raise WireError(f"instruments that are not packed: {error}") from error
    return decode(_instruments_decoder, packed)


def decode_event(data: bytes) -> AppEvent:
    """Decode an `AppEvent`. Raises WireError."""
    return decode(_event_decoder, data)


def decode_command(data: bytes) -> Command:
    """Decode a `Command`. Raises WireError."""
    return decode(_command_decoder, data)


def decode_store_request(data: bytes) -> StoreRequest:
    """Decode a `StoreRequest`. Raises WireError."""
    return decode(_store_decoder, data)


def trade_rows(rows: bytes) -> Rows:
    """Read TRADE[n]. Raises WireError. The array is read-only."""
    return _read(rows, TRADE)


def kline_rows(rows: bytes) -> Rows:
    """Read KLINE[n]. Raises WireError. The array is read-only."""
    return _read(rows, KLINE)


def placed_rows(rows: bytes) -> Rows:
    """Read PLACED_KLINE[n]. Raises WireError. The array is read-only."""
    return _read(rows, PLACED_KLINE)


def _read(rows: bytes, dtype: np.dtype[np.void]) -> Rows:
    if len(rows) % dtype.itemsize:
        raise WireError(f"{len(rows)} bytes are no whole number of rows of {dtype.itemsize}")
    return np.frombuffer(rows, dtype)
