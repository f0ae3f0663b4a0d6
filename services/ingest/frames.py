"""The frames of one TCP read become one batch of trades.

Decides which frames are taken. Their bug is refused, counted and reported once a kind, and the rest of the same read
is kept. Knows no key of the exchange (binance.py), no socket and no clock.
"""

from array import array
from typing import Any

import msgspec
import numpy as np

from services.ingest.binance import Malformed, Refuse, Reply, Ticker, message_type, read_control
from services.ingest.exact import trade_rows
from shared.wire import NOT_DECODED, Instrument, Trades, pack_instruments

OUR_MARKET = 1
"""The other market's rows share the ticker, and a client that can trade both gets both."""


class Read(msgspec.Struct):
    """What one TCP read said."""

    trades: Trades | None = None
    event_time: int = 0
    """The newest event of any kind, ms; 0 if there was none."""
    tickers: dict[str, str] = {}
    """Symbols that the ticker named, and their last prices."""
    ticker_time: int = 0
    replies: list[Reply] = []
    shutdown: bool = False


class FrameReader:
    def __init__(self, kind: str, decimals: dict[str, tuple[int, int]], refuse: Refuse) -> None:
        """Read trades of the stream `kind`. `decimals` of every symbol there is; grown here when a frame needs more."""
        self._decimals = decimals
        self._refuse = refuse
        message = message_type(kind)
        self._one: msgspec.json.Decoder[Any] = msgspec.json.Decoder(message)
        self._all: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[message])  # type: ignore[valid-type]
        self.foreign = 0
        """Rows of the other market: none of ours, and no error."""

    def read(self, frames: list[bytes]) -> Read:
        said = Read()
        try:
            messages = self._all.decode(b"[" + b",".join(frames) + b"]")
        except NOT_DECODED:
            messages = []
        if len(messages) != len(frames):
            messages = self._one_by_one(frames, said)
        trades: list[Any] = []
        for message in messages:
            if type(message.data) is list:
                self._read_tickers(message.data, said)
            else:
                trades.append(message.data)
        trades = self._ours(trades)
        if trades:
            self._read_trades(trades, said)
        return said

    def _one_by_one(self, frames: list[bytes], said: Read) -> list[Any]:
        messages = []
        for frame in frames:
            try:
                messages.append(self._one.decode(frame))
            except NOT_DECODED:
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

    def _ours(self, trades: list[Any]) -> list[Any]:
        known = self._decimals.keys()
        if {trade.market for trade in trades} <= {OUR_MARKET} and {trade.symbol for trade in trades} <= known:
            return trades
        ours = []
        for trade in trades:
            if trade.market != OUR_MARKET:
                self.foreign += 1
            elif trade.symbol not in known:
                self._refuse("unknown symbol", msgspec.json.encode(trade))
            else:
                ours.append(trade)
        return ours

    def _read_trades(self, trades: list[Any], said: Read) -> None:
        place: dict[str, int] = {}
        symbols = [place.setdefault(trade.symbol, len(place)) for trade in trades]
        fields = [
            field
            for symbol, trade in zip(symbols, trades, strict=True)
            for field in (symbol, trade.id, trade.time, trade.trade_count, trade.buyer_is_maker)
        ]
        decimals = np.array([self._decimals[symbol] for symbol in place], np.int64)
        rows, refused = trade_rows(
            [trade.price for trade in trades], [trade.quantity for trade in trades], array("q", fields), decimals
        )
        for position, why in refused:
            self._refuse(why, msgspec.json.encode(trades[position]))
        event_time = max([trade.event_time for trade in trades])
        said.event_time = max(said.event_time, event_time)
        if not len(rows):
            return
        instruments = []
        for symbol, (price_decimals, quantity_decimals) in zip(place, decimals.tolist(), strict=True):
            self._decimals[symbol] = (price_decimals, quantity_decimals)
            instruments.append(Instrument(symbol, price_decimals, quantity_decimals))
        said.trades = Trades(pack_instruments(instruments), rows.tobytes(), event_time)
