"""Frames that arrived together become one batch of trades.

Decides which frames are taken. Plain trades are scanned, all in one call (scan.py). What is left is decoded one by one:
other kinds of messages, unexpected symbols, numbers that need more decimals than there are, and whatever is wrong.
Their bug is refused, counted and reported once a kind, and the rest of the same read is kept. Knows no key of the
exchange (binance.py), no socket and no clock.
"""

from array import array
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.ingest.binance import (
    OUR_MARKET,
    Malformed,
    Refuse,
    Reply,
    Ticker,
    message_type,
    read_control,
    trade_keys,
)
from services.ingest.exact import trade_rows
from services.ingest.framing import Frames, frames_of
from services.ingest.instruments import Instruments
from services.ingest.scan import FOREIGN, LEFT, TAKEN, VALUES, key_table, scan, set_of
from services.ingest.symbols import Decimals
from shared.compiled import fixed
from shared.kline import TRADE
from shared.wire import NOT_DECODED, Trades

ROWS = 1_024
"""Frames of one read that there is room for at first."""


class Read(msgspec.Struct):
    """What they said."""

    trades: Trades | None = None
    event_time: int = 0
    """The newest event of any kind, ms; 0 if there was none."""
    tickers: dict[str, str] = {}
    """Symbols that the ticker named, and their last prices."""
    ticker_time: int = 0
    replies: list[Reply] = []
    shutdown: bool = False


class FrameReader:
    def __init__(self, kind: str, decimals: Decimals, refuse: Refuse) -> None:
        """Read trades of the stream `kind`. `decimals` of every symbol there is; grown here when a frame needs more."""
        self._decimals = decimals
        self._instruments = Instruments(decimals)
        self._refuse = refuse
        message = message_type(kind)
        self._one: msgspec.json.Decoder[Any] = msgspec.json.Decoder(message)
        self._all: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[message])  # type: ignore[valid-type]
        keys, needed = trade_keys(kind)
        self._keys, self._needed = key_table(keys), set_of(needed)
        self._values = np.zeros(VALUES, np.int64)
        self._make_room(ROWS)
        known = self._instruments
        names, its = (known.spelled, known.slots, known.decimals), (self._values, self._rows, self._outcomes)
        self._scan = fixed(scan, frames_of([]), self._keys, self._needed, *names, *its)
        self.decoded = 0
        """Frames that were not plain: messages of other kinds, unexpected symbols, and whatever is odd."""
        self.foreign = 0
        """Rows of the other market: none of ours, and no error."""

    def expect(self, symbols: list[str]) -> None:
        """Be ready for the trades of known symbols; the first ones of any other cost a little more."""
        self._instruments.numbers(symbols)

    def read(self, frames: Frames) -> Read:
        said = Read()
        count = len(frames.spans)
        if count > len(self._rows):
            self._make_room(2 * count)
        known = self._instruments
        known.renew()
        others, said.event_time = self._scan(
            frames,
            self._keys,
            self._needed,
            known.spelled,
            known.slots,
            known.decimals,
            self._values,
            self._rows,
            self._outcomes,
        )
        rows = self._rows[:count]
        event_time = said.event_time
        if others:
            event_time = self._read_others(frames, said)
            rows = rows[self._outcomes[:count] == TAKEN]
        if len(rows):
            said.trades = Trades(known.packed, rows.tobytes(), event_time)
        return said

    @property
    def counts(self) -> dict[str, int]:
        return {"frames decoded one by one": self.decoded, "rows of another market": self.foreign}

    def _make_room(self, count: int) -> None:
        """Have room for the frames of one read; it is kept, because fresh memory costs more than what is put there."""
        self._rows = np.empty(count, TRADE)
        self._outcomes = np.empty(count, np.uint8)

    def _read_others(self, frames: Frames, said: Read) -> int:
        """Read the frames that are not plain; return the newest event time of all trades."""
        outcomes = self._outcomes[: len(frames.spans)]
        self.foreign += int(np.count_nonzero(outcomes == FOREIGN))
        left = np.flatnonzero(outcomes == LEFT).tolist()
        self.decoded += len(left)
        event_time = said.event_time
        messages = self._decode([frames.message(place) for place in left], said)
        trades: dict[int, Any] = {}
        for place, message in zip(left, messages, strict=True):
            if message is None:
                continue
            if type(message.data) is list:
                self._read_tickers(message.data, said)
            elif self._is_ours(message.data):
                trades[place] = message.data
                event_time = max(event_time, message.data.event_time)
        if trades:
            self._read_trades(frames, trades)
        said.event_time = max(said.event_time, event_time)
        return event_time

    def _decode(self, frames: list[bytes], said: Read) -> list[Any]:
        """Return what each frame says; None for what is no data."""
        try:
            messages: list[Any] = self._all.decode(b"[" + b",".join(frames) + b"]")
        except NOT_DECODED:
            messages = []
        if len(messages) == len(frames):
            return messages
        messages = []
        for frame in frames:
            try:
                messages.append(self._one.decode(frame))
            except NOT_DECODED:
                messages.append(None)
                self._read_other(frame, said)
        return messages

    def _read_other(self, frame: bytes, said: Read) -> None:
        try:
            control = read_control(frame)
        except Malformed:
            self._refuse("not JSON", frame)
            return
        if control is None:
            self._refuse("unexpected frame", frame)
        elif isinstance(control, Reply):
            said.replies.append(control)
        else:
            said.shutdown = True

    def _read_tickers(self, rows: list[Ticker], said: Read) -> None:
        said.tickers |= {row.symbol: row.price for row in rows if row.market == OUR_MARKET}
        said.ticker_time = max([row.event_time for row in rows], default=said.ticker_time)
        said.event_time = max(said.event_time, said.ticker_time)

    def _is_ours(self, trade: Any) -> bool:
        if trade.market != OUR_MARKET:
            self.foreign += 1
            return False
        if trade.symbol not in self._decimals:
            self._refuse("unknown symbol", msgspec.json.encode(trade))
            return False
        return True

    def _read_trades(self, frames: Frames, trades: dict[int, Any]) -> None:
        """Put trades into their frames' rows. `trades`: by the place of the frame."""
        numbers = self._instruments.numbers([trade.symbol for trade in trades.values()])
        rows, refused, decimals = self._exact(numbers, trades)
        if (decimals > self._instruments.decimals).any():
            # What was scanned is in units that are outgrown: the whole read again, in those that it needs.
            plain = np.flatnonzero(self._outcomes[: len(frames.spans)] == TAKEN).tolist()
            trades |= {place: self._one.decode(frames.message(place)).data for place in plain}
            numbers = self._instruments.numbers([trade.symbol for trade in trades.values()])
            rows, refused, decimals = self._exact(numbers, trades)
            if len(rows):
                self._instruments.grow(decimals)
        places = list(trades)
        for position, why in refused:
            self._refuse(why, msgspec.json.encode(trades[places[position]]))
        self._outcomes[places] = TAKEN
        self._outcomes[[places[position] for position, _ in refused]] = LEFT
        self._rows[[place for place in places if self._outcomes[place] == TAKEN]] = rows

    def _exact(
        self, numbers: list[int], trades: dict[int, Any]
    ) -> tuple[NDArray[np.void], list[tuple[int, str]], NDArray[np.int64]]:
        """Return (rows, refused, decimals): as `trade_rows` does, and the decimals that it needs."""
        decimals = self._instruments.decimals.copy()
        fields = [
            field
            for number, trade in zip(numbers, trades.values(), strict=True)
            for field in (number, trade.id, trade.time, trade.trade_count, trade.buyer_is_maker)
        ]
        rows, refused = trade_rows(
            [trade.price for trade in trades.values()],
            [trade.quantity for trade in trades.values()],
            array("q", fields),
            decimals,
        )
        return rows, refused, decimals


def warm_up(kind: str) -> None:
    """Compile, or load what was compiled: the first trades must not wait for it."""
    FrameReader(kind, Decimals(), lambda *_: None).read(frames_of([b""]))
