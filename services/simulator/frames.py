"""Market data as bytes: JSON as the exchange spells it, and websocket frames around it.

Decides the wire's keys, their order and their number formats (protocol §2). A server's frames are not masked, so a
chunk of them is a plain string of bytes that is made once and written to everyone who asked for it.
"""

import struct
from collections.abc import Container, Iterator
from typing import Any

import numpy as np

from services.simulator.rows import KINDS, DayStats, Instrument, Rows, number_of, text_of

_TEXT = 0x81
_SHORT_MAX, _MEDIUM_MAX = 125, 65_535
TICKER_STREAM = "!miniTicker@arr"


def text_header(length: int) -> bytes:
    """Return what goes before a text message of `length` bytes."""
    if length <= _SHORT_MAX:
        return bytes((_TEXT, length))
    if length <= _MEDIUM_MAX:
        return struct.pack(">BBH", _TEXT, 126, length)
    return struct.pack(">BBQ", _TEXT, 127, length)


Frames = bytes | memoryview
"""Websocket frames, one after the other."""


class Chunk:
    """Messages of one stream, in order."""

    def __init__(self, stream: str, messages: list[bytes]) -> None:
        self.stream = stream
        self.messages = messages
        self._blocks: dict[bool, bytes] = {}

    def frames(self, wanted: Container[str], combined: bool) -> Frames:
        """Return the messages as websocket frames if they are wanted, wrapped in the stream's name or not (§1.2)."""
        if self.stream not in wanted:
            return b""
        block = self._blocks.get(combined)
        if block is None:
            prefix = b'{"stream":"%b","data":' % self.stream.encode() if combined else b""
            suffix = b"}" if combined else b""
            more = len(prefix) + len(suffix)
            parts: list[bytes] = []
            for message in self.messages:
                parts += (text_header(len(message) + more), prefix, message, suffix)
            block = self._blocks[combined] = b"".join(parts)
        return block

    def apart(self) -> Iterator["Chunk"]:
        """Yield each stream's messages for themselves."""
        yield self


def _number(decimals: int) -> str:
    # A number is written as two integers; without decimals the second one is written in no characters at all.
    return f"%d.%0{decimals}d" if decimals else "%d%.0b"


def _parts(values: Any, powers: Any) -> tuple[list[int], list[Any]]:
    """Return a number's integer and fractional digits; b"" where there are none (powers of 1)."""
    whole, part = np.divmod(values, powers)
    return whole.tolist(), part.tolist()


class TradeTemplate:
    """How one symbol's single trades are written."""

    def __init__(self, instrument: Instrument) -> None:
        self.stream = f"{instrument.stream_base}@trade"
        self._powers = (10**instrument.price_decimals, 10**instrument.quantity_decimals)
        price, quantity = _number(instrument.price_decimals), _number(instrument.quantity_decimals)
        head = f'{{"e":"trade","E":%d,"T":%d,"s":"{instrument.symbol}","t":%d,'
        self._text = f'{head}"p":"{price}","q":"{quantity}","X":"%b","m":%b,"st":1}}'.encode()
        self._none = f'{head}"p":"0","q":"0","X":"%b","m":%b,"st":1}}'.encode()

    def messages(self, rows: Rows) -> list[bytes]:
        """Write TRADE_ROW[n]."""
        price, quantity = self._powers
        columns = (
            rows["event_time"].tolist(),
            rows["time"].tolist(),
            rows["id"].tolist(),
            *_digits(rows["price"], price),
            *_digits(rows["quantity"], quantity),
            [_KINDS[kind] for kind in rows["kind"].tolist()],
            [b"true" if maker else b"false" for maker in rows["maker"].tolist()],
        )
        text, none = self._text, self._none
        return [none % (*row[:3], *row[7:]) if row[7] == b"NA" else text % row for row in zip(*columns, strict=True)]


_KINDS = [kind.encode() for kind in KINDS]


def _digits(values: Any, power: int) -> tuple[list[int], list[Any]]:
    if power == 1:
        return values.tolist(), [b""] * len(values)
    return _parts(values, power)


def kline_message(instrument: Instrument, interval: str, event_time: int, row: Any, ids: tuple[int, int, int]) -> bytes:
    """Write a kline event (protocol §2.6). `ids`: (first trade, last trade, close time); `row`: a KLINE_ROW."""
    price, quantity = instrument.price_decimals, instrument.quantity_decimals
    first, last, close_time = ids
    amounts = tuple(
        text_of(number_of(row, name), decimals)
        for name, decimals in (
            ("open", price),
            ("close", price),
            ("high", price),
            ("low", price),
            ("volume", quantity),
            ("quote_volume", price + quantity),
            ("taker_buy_volume", quantity),
            ("taker_buy_quote_volume", price + quantity),
        )
    )
    o, c, h, low, v, q, taker, taker_quote = amounts
    return (
        f'{{"e":"kline","E":{event_time},"s":"{instrument.symbol}","k":{{"t":{int(row["open_time"])},"T":{close_time},'
        f'"s":"{instrument.symbol}","i":"{interval}","f":{first},"L":{last},"o":"{o}","c":"{c}","h":"{h}","l":"{low}",'
        f'"v":"{v}","n":{int(row["count"])},"x":{"true" if event_time > close_time else "false"},"q":"{q}",'
        f'"V":"{taker}","Q":"{taker_quote}","B":"0"}}}}'
    ).encode()


def ticker_row(stats: DayStats, event_time: int) -> str:
    """Write one row of the mini ticker (protocol §2.5)."""
    instrument = stats.instrument
    price, quantity = instrument.price_decimals, instrument.quantity_decimals
    symbol = instrument.symbol
    return (
        f'{{"e":"24hrMiniTicker","E":{event_time},"s":"{symbol}","c":"{text_of(stats.last, price)}",'
        f'"o":"{text_of(stats.open, price)}","h":"{text_of(stats.high, price)}","l":"{text_of(stats.low, price)}",'
        f'"v":"{text_of(stats.volume, quantity)}","q":"{text_of(stats.quote_volume, price + quantity)}",'
        f'"ps":"{symbol}","st":1}}'
    )
