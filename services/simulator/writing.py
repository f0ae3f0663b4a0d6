"""Aggregate trades and REST's klines as bytes, compiled: a message a trade, with a websocket's header or without.

Decides the order of their fields and the formats of their numbers (protocol §2.1, §3.3). Whatever of a step of the
market somebody subscribed to is written into one block of memory, and no Python object a trade or a row comes about.
"""

from collections.abc import Container, Iterator
from itertools import pairwise

import numpy as np

from services.simulator.frames import Chunk, Frames
from services.simulator.grid import end_times
from services.simulator.market.tape import Integers
from services.simulator.rows import AGG_ROW, TRADE_ROW, Instrument, Rows, kline_of_trades, merge
from shared.arrays import Booleans, Bytes, Int
from shared.compiled import compiled

_NUMBER_MAX = 20
_NUMBERS = 8
_POWERS = np.array([10**digits for digits in range(20)], np.uint64)
_FOURS = np.frombuffer("".join(f"{number:04d}" for number in range(10_000)).encode(), np.uint8)
"""Numbers of four digits, written."""


def _constant(text: str) -> Integers:
    return np.frombuffer(text.encode(), np.uint8)


_EVENT = _constant('{"e":"aggTrade","E":')
_ID = _constant(',"a":')
_SYMBOL = _constant(',"s":"')
_PRICE = _constant('","p":"')
_QUANTITY = _constant('","q":"')
_PLAIN = _constant('","nq":"')
_FIRST = _constant('","f":')
_LAST = _constant(',"l":')
_TIME = _constant(',"T":')
_MAKER = _constant(',"m":true,"st":1}')
_TAKER = _constant(',"m":false,"st":1}')
_STREAM = _constant('{"stream":"')
_DATA = _constant('","data":')
_CONSTANTS_MAX = 160
"""Bytes of a header and of all constants of a message."""
_TEXT_TO_TEXT = _constant('","')
_TEXT_TO_NUMBER = _constant('",')
_NUMBER_TO_TEXT = _constant(',"')
_KLINE_END = _constant(',"0"]')
_KLINE_MAX = 14 * (_NUMBER_MAX + 4)
"""Bytes of a kline, of which two numbers are those of two columns."""


class AggWriter:
    """Writes the aggregate trades of some symbols."""

    def __init__(self, instruments: list[Instrument]) -> None:
        self.streams = [f"{instrument.stream_base}@aggTrade" for instrument in instruments]
        self._symbols = _Texts([instrument.symbol for instrument in instruments])
        self._streams = _Texts(self.streams)
        self._decimals = np.array(
            [(instrument.price_decimals, instrument.quantity_decimals) for instrument in instruments], np.int64
        ).reshape(-1, 2)
        self._message_max = (
            _CONSTANTS_MAX + _NUMBERS * (_NUMBER_MAX + 1) + self._symbols.longest + self._streams.longest
        )

    def write(self, rows: Rows, owners: Integers, chosen: Integers, combined: bool, framed: bool) -> Frames:
        """Write AGG_ROW[n] of the symbols at `owners`; of those, the ones that are `chosen`: bool[symbols].

        `combined`: wrapped in the stream's name (protocol §1.2); `framed`: with websocket headers.
        """
        return self._write(rows, owners, chosen, combined, framed)[0]

    def messages(self, rows: Rows, owners: Integers) -> list[bytes]:
        """Write AGG_ROW[n], one by one."""
        block, ends = self._write(rows, owners, np.ones(len(self.streams), np.bool_), False, False)
        starts = [0, *ends.tolist()]
        return [bytes(block[start:end]) for start, end in pairwise(starts)]

    def _write(
        self, rows: Rows, owners: Integers, chosen: Integers, combined: bool, framed: bool
    ) -> tuple[Frames, Integers]:
        block = np.empty(len(rows) * self._message_max, np.uint8)
        ends = np.empty(len(rows), np.int64)
        symbols, streams = self._symbols, self._streams
        end = write_aggregates(
            block, ends, rows, owners, chosen, combined, framed, self._decimals,
            symbols.text, symbols.starts, streams.text, streams.starts,
        )  # fmt: skip
        return block.data[:end], ends


class _Texts:
    """Texts one after the other."""

    def __init__(self, texts: list[str]) -> None:
        parts = [text.encode() for text in texts]
        self.text = np.array(bytearray(b"".join(parts)), np.uint8)
        self.starts = np.cumsum([0, *map(len, parts)])
        self.longest = max(map(len, parts), default=0)


class AggChunk:
    """Aggregate trades of many streams that left together, each stream's in order."""

    def __init__(self, writer: AggWriter, rows: Rows, owners: Integers) -> None:
        """`rows`: AGG_ROW[n]; `owners`: int64[n], ascending: their indices into the writer's symbols."""
        self._writer = writer
        self._rows = rows
        self._owners = owners
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        self._indices: list[int] = owners[starts].tolist()
        self._spans = list(zip(starts.tolist(), [*starts[1:].tolist(), len(owners)], strict=True))
        self._blocks: dict[tuple[bytes, bool], Frames] = {}

    def frames(self, wanted: Container[str], combined: bool) -> Frames:
        """Return what is wanted as websocket frames, wrapped in the stream's name or not (protocol §1.2)."""
        streams = self._writer.streams
        indices = [index for index in self._indices if streams[index] in wanted]
        if not indices:
            return b""
        chosen = np.zeros(len(streams), np.bool_)
        chosen[indices] = True
        key = chosen.tobytes(), combined
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = self._writer.write(self._rows, self._owners, chosen, combined, True)
        return block

    def apart(self) -> Iterator[Chunk]:
        """Yield each stream's messages for themselves."""
        for index, (start, end) in zip(self._indices, self._spans, strict=True):
            messages = self._writer.messages(self._rows[start:end], self._owners[start:end])
            yield Chunk(self._writer.streams[index], messages)

    def last_ids(self) -> Iterator[tuple[str, int]]:
        """Yield each stream and the last id on it."""
        for index, (_, end) in zip(self._indices, self._spans, strict=True):
            yield self._writer.streams[index], int(self._rows["id"][end - 1])


def kline_page(rows: Rows, end_times: Integers, price_decimals: int, quantity_decimals: int) -> bytes:
    """Write KLINE_ROW[n], which end right before `end_times`: int64[n], ms, as an answer to /klines."""
    block = np.empty(len(rows) * _KLINE_MAX + 2, np.uint8)
    return bytes(block.data[: write_klines(block, rows, end_times, price_decimals, quantity_decimals)])


@compiled
def write_klines(block: Bytes, rows: Rows, end_times: Integers, price_decimals: int, quantity_decimals: int) -> int:
    """Write into uint8[]; return where it ends."""
    quote_decimals = price_decimals + quantity_decimals
    block[0] = 91
    at = 1
    for index in range(len(rows)):
        row = rows[index]
        if index:
            block[at] = 44
            at += 1
        block[at] = 91
        at = _put_integer(block, at + 1, row.open_time)
        at = _put(block, at, _NUMBER_TO_TEXT, 0, len(_NUMBER_TO_TEXT))
        for price in (row.open, row.high, row.low, row.close):
            at = _put_number(block, at, price, price_decimals)
            at = _put(block, at, _TEXT_TO_TEXT, 0, len(_TEXT_TO_TEXT))
        at = _put_number(block, at, row.volume, quantity_decimals)
        at = _put(block, at, _TEXT_TO_NUMBER, 0, len(_TEXT_TO_NUMBER))
        at = _put_integer(block, at, end_times[index] - 1)
        at = _put(block, at, _NUMBER_TO_TEXT, 0, len(_NUMBER_TO_TEXT))
        at = _put_sum(block, at, row.quote_volume, row.more_quote_volume, quote_decimals)
        at = _put(block, at, _TEXT_TO_NUMBER, 0, len(_TEXT_TO_NUMBER))
        at = _put_integer(block, at, row.count)
        at = _put(block, at, _NUMBER_TO_TEXT, 0, len(_NUMBER_TO_TEXT))
        at = _put_number(block, at, row.taker_buy_volume, quantity_decimals)
        at = _put(block, at, _TEXT_TO_TEXT, 0, len(_TEXT_TO_TEXT))
        at = _put_sum(block, at, row.taker_buy_quote_volume, row.more_taker_buy_quote_volume, quote_decimals)
        block[at] = 34
        at = _put(block, at + 1, _KLINE_END, 0, len(_KLINE_END))
    block[at] = 93
    return at + 1


@compiled
def write_aggregates(
    block: Bytes,
    ends: Integers,
    rows: Rows,
    owners: Integers,
    chosen: Booleans,
    combined: bool,
    framed: bool,
    decimals: Integers,
    symbols: Bytes,
    symbol_starts: Integers,
    streams: Bytes,
    stream_starts: Integers,
) -> int:
    """Write AGG_ROW[n] into uint8[] and where each message ends into int64[n]; return where the last one does."""
    at = 0
    for index in range(len(rows)):
        row, owner = rows[index], owners[index]
        if not chosen[owner]:
            ends[index] = at
            continue
        # Most messages have a header of 4 bytes; the others are moved.
        begin = at + 4 if framed else at
        at = begin
        if combined:
            at = _put(block, at, _STREAM, 0, len(_STREAM))
            at = _put(block, at, streams, stream_starts[owner], stream_starts[owner + 1])
            at = _put(block, at, _DATA, 0, len(_DATA))
        price_decimals, quantity_decimals = decimals[owner, 0], decimals[owner, 1]
        at = _put(block, at, _EVENT, 0, len(_EVENT))
        at = _put_integer(block, at, row.event_time)
        at = _put(block, at, _ID, 0, len(_ID))
        at = _put_integer(block, at, row.id)
        at = _put(block, at, _SYMBOL, 0, len(_SYMBOL))
        at = _put(block, at, symbols, symbol_starts[owner], symbol_starts[owner + 1])
        at = _put(block, at, _PRICE, 0, len(_PRICE))
        at = _put_number(block, at, row.price, price_decimals)
        at = _put(block, at, _QUANTITY, 0, len(_QUANTITY))
        at = _put_number(block, at, row.quantity, quantity_decimals)
        at = _put(block, at, _PLAIN, 0, len(_PLAIN))
        at = _put_number(block, at, row.plain_quantity, quantity_decimals)
        at = _put(block, at, _FIRST, 0, len(_FIRST))
        at = _put_integer(block, at, row.first)
        at = _put(block, at, _LAST, 0, len(_LAST))
        at = _put_integer(block, at, row.last)
        at = _put(block, at, _TIME, 0, len(_TIME))
        at = _put_integer(block, at, row.time)
        maker = _MAKER if row.maker else _TAKER
        at = _put(block, at, maker, 0, len(maker))
        if combined:
            block[at] = 125
            at += 1
        if framed:
            at = _put_header(block, begin, at)
        ends[index] = at
    return at


@compiled
def _put(block: Bytes, at: int, text: Bytes, start: int, end: int) -> int:
    # Indices that cannot be negative need no look whether they are: that is most of the time this takes.
    to, source = np.uint64(at), np.uint64(start)
    for offset in range(np.uint64(end - start)):
        block[to + offset] = text[source + offset]
    return at + end - start


@compiled
def _put_header(block: Bytes, begin: int, end: int) -> int:
    """Write the header of a text message that begins 4 bytes in, moving it if it needs less or more."""
    length, start = end - begin, begin - 4
    block[start] = 0x81
    if length <= 125:
        for offset in range(length):
            block[start + 2 + offset] = block[begin + offset]
        block[start + 1] = length
        return start + 2 + length
    if length <= 65_535:
        block[start + 1] = 126
        block[start + 2] = length >> 8
        block[start + 3] = length & 255
        return end
    for offset in range(length - 1, -1, -1):
        block[start + 10 + offset] = block[begin + offset]
    block[start + 1] = 127
    for offset in range(8):
        block[start + 2 + offset] = length >> (56 - 8 * offset) & 255
    return start + 10 + length


@compiled
def _put_number(block: Bytes, at: int, value: int, decimals: int) -> int:
    """Write a value in units of 10**-decimals: two integers, or one without decimals."""
    if decimals == 0:
        return _put_integer(block, at, value)
    power = np.int64(_POWERS[decimals])
    whole = value // power
    at = _put_integer(block, at, whole)
    block[at] = 46
    return _put_digits(block, at + 1, np.uint64(value - whole * power), decimals)


@compiled
def _put_sum(block: Bytes, at: int, value: int, more: int, decimals: int) -> int:
    """Write a value of two columns (rows.py) as `_put_number` does."""
    if more == 0:
        return _put_number(block, at, value, decimals)
    at = _put_digits(block, _put_integer(block, at, more), np.uint64(value), 18)
    if decimals == 0:
        return at
    for offset in range(at, at - decimals, -1):
        block[offset] = block[offset - 1]
    block[at - decimals] = 46
    return at + 1


@compiled
def _put_integer(block: Bytes, at: int, value: Int) -> int:
    if value < 0:
        block[at] = 45
        at += 1
    left = np.uint64(abs(value))
    digits = 1
    while digits < 20 and left >= _POWERS[digits]:
        digits += 1
    return _put_digits(block, at, left, digits)


@compiled
def _put_digits(block: Bytes, at: int, left: Int, digits: int) -> int:
    """Write exactly so many digits of an uint64."""
    end = at + digits
    offset = np.uint64(end)
    while digits >= 4:
        four = left % np.uint64(10_000) * np.uint64(4)
        left = left // np.uint64(10_000)
        offset -= np.uint64(4)
        digits -= 4
        for letter in range(np.uint64(4)):
            block[offset + letter] = _FOURS[four + letter]
    four = left * np.uint64(4) + np.uint64(4)
    for back in range(np.uint64(1), np.uint64(digits + 1)):
        block[offset - back] = _FOURS[four - back]
    return end


def warm_up() -> None:
    """Compile, or load what was compiled: the market's clock must not wait for it."""
    writer = AggWriter([Instrument(symbol="X", price_decimals=1, quantity_decimals=0)])
    chunk = AggChunk(writer, np.zeros(1, AGG_ROW), np.zeros(1, np.int64))
    chunk.frames({"x@aggTrade"}, True)
    rows = merge(kline_of_trades(0, np.zeros(1, TRADE_ROW)), "1m", 0)
    kline_page(rows, end_times("1m", rows["open_time"]), 1, 0)
