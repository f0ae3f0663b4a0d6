"""Frames that arrived together become one batch of trades.

Decides which frames are taken. Plain trades are scanned, all in one call (binance/scan.py). The other frames are
decoded one by one: other kinds of messages, symbols without an index yet, numbers that need more decimals than their
symbol has, and whatever is wrong. What is wrong is refused and counted, one of a kind is logged, and the rest of the
read is kept. Knows no key of the exchange (binance/messages.py), no socket and no clock.
"""

from array import array
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.ingest.binance.messages import (
    OUR_MARKET,
    Malformed,
    Refuse,
    Reply,
    Ticker,
    message_type,
    read_control,
    trade_keys,
)
from services.ingest.binance.scan import LEFT, OTHER_MARKET, TAKEN, VALUES, key_table, scan, set_of
from services.ingest.decimals import Decimals, trade_rows
from services.ingest.instruments import Instruments
from services.ingest.websocket import Frames, frames_of
from shared.compiled import fixed
from shared.kline import TRADE
from shared.wire import NOT_DECODED, Trades

ROWS = 1_024
"""Frames of one read that memory is allocated for at first."""


class Decoded(msgspec.Struct):
    """What the frames of one read hold."""

    trades: Trades | None = None
    event_time: int = 0
    """Of the newest event of any kind, ms; 0 if there was none."""
    tickers: dict[str, str] = {}
    """Symbols of the ticker, and their last prices."""
    ticker_time: int = 0
    replies: list[Reply] = []
    shutdown: bool = False


class FrameDecoder:
    def __init__(self, kind: str, decimals: Decimals, refuse: Refuse) -> None:
        """Decode trades of the stream `kind`. `decimals` of all symbols; a trade that needs more makes them grow."""
        self._decimals = decimals
        self._instruments = Instruments(decimals)
        self._refuse = refuse
        message = message_type(kind)
        self._one: msgspec.json.Decoder[Any] = msgspec.json.Decoder(message)
        self._all: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[message])  # type: ignore[valid-type]
        keys, needed = trade_keys(kind)
        self._keys, self._needed = key_table(keys), set_of(needed)
        self._values = np.zeros(VALUES, np.int64)
        self._allocate(ROWS)
        known = self._instruments
        table, output = (known.names, known.slots, known.decimals), (self._values, self._rows, self._outcomes)
        self._scan = fixed(scan, frames_of([]), self._keys, self._needed, *table, *output)
        self.not_plain = 0
        """Frames that were decoded one by one."""
        self.other_market = 0
        """Rows of the exchange's other market, which are no error."""

    def expect(self, symbols: list[str]) -> None:
        """Give symbols an index before their first trades, which take longer to decode otherwise."""
        self._instruments.indexes(symbols)

    def decode(self, frames: Frames) -> Decoded:
        """Return what frames hold."""
        decoded = Decoded()
        count = len(frames.spans)
        if count > len(self._rows):
            self._allocate(2 * count)
        known = self._instruments
        known.refresh()
        others, decoded.event_time = self._scan(
            frames,
            self._keys,
            self._needed,
            known.names,
            known.slots,
            known.decimals,
            self._values,
            self._rows,
            self._outcomes,
        )
        rows = self._rows[:count]
        event_time = decoded.event_time
        if others:
            event_time = self._decode_others(frames, decoded)
            rows = rows[self._outcomes[:count] == TAKEN]
        if len(rows):
            decoded.trades = Trades(known.packed, rows.tobytes(), event_time)
        return decoded

    @property
    def counts(self) -> dict[str, int]:
        return {"frames decoded one by one": self.not_plain, "rows of another market": self.other_market}

    def _allocate(self, count: int) -> None:
        """Allocate memory for so many frames. It is used again: fresh memory costs more than to fill it."""
        self._rows = np.empty(count, TRADE)
        self._outcomes = np.empty(count, np.uint8)

    def _decode_others(self, frames: Frames, decoded: Decoded) -> int:
        """Decode the frames that are not plain; return the newest event time of all trades."""
        outcomes = self._outcomes[: len(frames.spans)]
        self.other_market += int(np.count_nonzero(outcomes == OTHER_MARKET))
        left = np.flatnonzero(outcomes == LEFT).tolist()
        self.not_plain += len(left)
        event_time = decoded.event_time
        messages = self._decode([frames.message(n) for n in left], decoded)
        trades: dict[int, Any] = {}
        for n, message in zip(left, messages, strict=True):
            if message is None:
                continue
            if type(message.data) is list:
                self._take_tickers(message.data, decoded)
            elif self._is_ours(message.data):
                trades[n] = message.data
                event_time = max(event_time, message.data.event_time)
        if trades:
            self._take_trades(frames, trades)
        decoded.event_time = max(decoded.event_time, event_time)
        return event_time

    def _decode(self, frames: list[bytes], decoded: Decoded) -> list[Any]:
        """Return the message of each frame; None for one that is no data."""
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
                self._take_control(frame, decoded)
        return messages

    def _take_control(self, frame: bytes, decoded: Decoded) -> None:
        try:
            control = read_control(frame)
        except Malformed:
            self._refuse("not JSON", frame)
            return
        if control is None:
            self._refuse("unexpected frame", frame)
        elif isinstance(control, Reply):
            decoded.replies.append(control)
        else:
            decoded.shutdown = True

    def _take_tickers(self, rows: list[Ticker], decoded: Decoded) -> None:
        decoded.tickers |= {row.symbol: row.price for row in rows if row.market == OUR_MARKET}
        decoded.ticker_time = max([row.event_time for row in rows], default=decoded.ticker_time)
        decoded.event_time = max(decoded.event_time, decoded.ticker_time)

    def _is_ours(self, trade: Any) -> bool:
        if trade.market != OUR_MARKET:
            self.other_market += 1
            return False
        if trade.symbol not in self._decimals:
            self._refuse("unknown symbol", msgspec.json.encode(trade))
            return False
        return True

    def _take_trades(self, frames: Frames, trades: dict[int, Any]) -> None:
        """Put trades into their frames' rows. `trades`: by the frame's index."""
        indexes = self._instruments.indexes([trade.symbol for trade in trades.values()])
        rows, refused, decimals = self._exact_rows(indexes, trades)
        if (decimals > self._instruments.decimals).any():
            # The units of the rows that were scanned are too coarse by now: decode the whole read again, in finer ones.
            scanned = np.flatnonzero(self._outcomes[: len(frames.spans)] == TAKEN).tolist()
            trades |= {n: self._one.decode(frames.message(n)).data for n in scanned}
            indexes = self._instruments.indexes([trade.symbol for trade in trades.values()])
            rows, refused, decimals = self._exact_rows(indexes, trades)
            if len(rows):
                self._instruments.grow(decimals)
        of_trades = list(trades)
        for position, why in refused:
            self._refuse(why, msgspec.json.encode(trades[of_trades[position]]))
        self._outcomes[of_trades] = TAKEN
        self._outcomes[[of_trades[position] for position, _ in refused]] = LEFT
        self._rows[[n for n in of_trades if self._outcomes[n] == TAKEN]] = rows

    def _exact_rows(
        self, indexes: list[int], trades: dict[int, Any]
    ) -> tuple[NDArray[np.void], list[tuple[int, str]], NDArray[np.int64]]:
        """Return (rows, refused) of `trade_rows`, and the decimals that they need."""
        decimals = self._instruments.decimals.copy()
        fields = [
            field
            for index, trade in zip(indexes, trades.values(), strict=True)
            for field in (index, trade.id, trade.time, trade.trade_count, trade.buyer_is_maker)
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
    FrameDecoder(kind, Decimals(), lambda *_: None).decode(frames_of([b""]))
