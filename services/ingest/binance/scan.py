"""Trades and klines in their plain form, straight from bytes to numbers, compiled.

A frame is plain if it is `{"stream":"...","data":{...}}` without a space, `data` holds strings without escapes, whole
numbers, true and false, no key that we read comes twice, and everything that a row needs is there and fits. Keys may
come in any order, and those that we do not read are skipped. Every other frame is *left*: messages.py decodes it, and
decides what is refused of it and why. So nothing is refused here, and a row must be what messages.py would have read.

An answer to /klines is plain if it holds nothing but rows as they are documented, without a space. One that is not is
decoded as a whole.

The keys and spellings are in messages.py; here is only the grammar around them.
"""

import numpy as np
from numpy.typing import NDArray

from services.ingest.binance.messages import (
    AFTER_STREAM,
    BEFORE_STREAM,
    COUNT_MAX,
    MARKET_TRADE,
    OUR_MARKET,
    TIME_MAX,
    TRADE_FIELDS,
)
from services.ingest.decimals import next_number, scaled_trade
from services.ingest.instruments import find
from services.ingest.klines import DECIMAL_FIELDS, KlineColumns
from services.ingest.websocket import Frames
from shared.arrays import Bytes, Integers, Record, Rows
from shared.compiled import compiled, inlined

LEFT, TAKEN, OTHER_MARKET = 0, 1, 2
"""What became of a frame: left to be decoded, a row, or a trade of the exchange's other market."""

KEYS = 1 << 16
"""Keys of one or two letters, as numbers; no longer key is read."""
DIGITS_MAX = 18
"""A whole number of so many digits fits an int64, and is within the bounds of an id."""


def key_table(keys: dict[str, str]) -> NDArray[np.uint8]:
    """Return uint8[KEYS]: by key, the field that it holds, or 0 if it is not read."""
    table = np.zeros(KEYS, np.uint8)
    for name, key in keys.items():
        table[int.from_bytes(key.encode(), "big")] = 1 + TRADE_FIELDS.index(name)
    return table


def set_of(names: tuple[str, ...]) -> int:
    """Return fields as a set of bits."""
    return sum(1 << (1 + TRADE_FIELDS.index(name)) for name in names)


_UNREAD = 0
_SYMBOL, _ID, _PRICE, _QUANTITY, _TIME, _EVENT_TIME, _BUYER_IS_MAKER, _KIND, _MARKET, _FIRST_FILL, _LAST_FILL = (
    1 + TRADE_FIELDS.index(name)
    for name in (
        "symbol",
        "id",
        "price",
        "quantity",
        "time",
        "event_time",
        "buyer_is_maker",
        "kind",
        "market",
        "first_fill",
        "last_fill",
    )
)
_SYMBOL_END, _PRICE_DECIMALS, _QUANTITY_DECIMALS, VALUES = range(1 + len(TRADE_FIELDS), 5 + len(TRADE_FIELDS))

_WHOLE = set_of(("id", "time", "event_time", "market", "first_fill", "last_fill"))

_BEFORE = np.frombuffer(BEFORE_STREAM, np.uint8)
_AFTER = np.frombuffer(AFTER_STREAM, np.uint8)
_MARKET_TRADE = np.frombuffer(MARKET_TRADE.encode(), np.uint8)
_TRUE, _FALSE = np.frombuffer(b"true", np.uint8), np.frombuffer(b"false", np.uint8)
_NEWLINE, _SPACE, _QUOTE, _COMMA, _COLON, _BACKSLASH, _CLOSE, _DELETE = (ord(sign) for sign in '\n ",:\\}\x7f')
_BEGIN_LIST, _END_LIST = ord("["), ord("]")
_ZERO, _NINE = ord("0"), ord("9")
_NAME = np.array([byte >= _SPACE and byte not in (_QUOTE, _BACKSLASH) for byte in range(256)])
"""By byte: whether it may stand in a string that is only compared or skipped, which excludes escapes, ..."""
_ASCII = _NAME & (np.arange(256) < _DELETE)
"""... and in one that is read as text."""


@compiled
def scan(
    frames: Frames,
    keys: Bytes,
    needed: int,
    names: Bytes,
    slots: Integers,
    decimals: Integers,
    values: Integers,
    rows: Rows,
    outcomes: Bytes,
) -> tuple[int, int]:
    """Read `Frames`. Return (how many did not become rows, the newest event time of those that did).

    `keys`, `needed`: what a frame may hold and what it must (`key_table`, `set_of`). `names`, `slots`, `decimals`: of
    `Instruments`. `values`: int64[VALUES] to work with. Frame n becomes rows[n]: TRADE, if outcomes[n]: uint8 is TAKEN.
    """
    text = frames.text
    others = 0
    newest = 0
    for n in range(len(frames.spans)):
        end = frames.spans[n, 1]
        replaced = text[end]
        text[end] = _NEWLINE
        outcome = LEFT
        if _read(text, frames.spans[n, 0], keys, needed, values) == end:
            index = find(text, values[_SYMBOL], values[_SYMBOL_END], names, slots)
            if index >= 0 and values[_MARKET] != OUR_MARKET:
                outcome = OTHER_MARKET
            elif index >= 0 and _fill(values, index, decimals, rows[n]):
                outcome = TAKEN
                newest = max(newest, values[_EVENT_TIME])
        text[end] = replaced
        if outcome != TAKEN:
            others += 1
        outcomes[n] = outcome
    return others, newest


@compiled
def _read(text: Bytes, at: int, keys: Bytes, needed: int, values: Integers) -> int:
    """Read a frame into `values`, by field. Return where it ends, or -1 if it is not plain."""
    # A newline follows the frame, and is part of nothing plain, so reading never goes beyond it.
    at = _word(text, at, _BEFORE)
    if at > 0:
        at = _string_end(text, at, _NAME)
    if at > 0:
        at = _word(text, at, _AFTER)
    if at < 0:
        return -1
    values[_KIND] = 1
    values[_MARKET] = OUR_MARKET
    values[_FIRST_FILL] = 0
    values[_LAST_FILL] = 0
    seen = 0
    while True:
        if text[at] != _QUOTE:
            return -1
        at += 1
        key = 0
        while _ASCII[text[at]]:
            key = min(key << 8 | text[at], KEYS)
            at += 1
        if text[at] != _QUOTE or text[at + 1] != _COLON:
            return -1
        field = keys[key] if key < KEYS else _UNREAD
        if field != _UNREAD and seen >> field & 1:
            return -1
        seen |= 1 << field
        at = _value(text, at + 2, field, values)
        if at < 0 or text[at] != _COMMA:
            break
        at += 1
    if at < 0 or text[at] != _CLOSE or text[at + 1] != _CLOSE or text[at + 2] != _NEWLINE:
        return -1
    if seen & needed != needed or values[_TIME] > TIME_MAX or values[_EVENT_TIME] > TIME_MAX:
        return -1
    return at + 2


@inlined
def _value(text: Bytes, at: int, field: int, values: Integers) -> int:
    """Read the value of a field. Return where it ends, or -1 if it is not plain or not what the field holds."""
    if text[at] == _QUOTE:
        begin = at + 1
        if field in (_UNREAD, _SYMBOL):
            end = _string_end(text, begin, _NAME)
            if field == _SYMBOL:
                values[_SYMBOL] = begin
                values[_SYMBOL_END] = end - 1
            return end
        if field in (_PRICE, _QUANTITY):
            decimals = _PRICE_DECIMALS if field == _PRICE else _QUANTITY_DECIMALS
            values[field], values[decimals], at = next_number(text, begin, _QUOTE)
            # A void id may have a price that is no number.
            return at if values[decimals] >= 0 else _string_end(text, begin, _ASCII)
        end = _string_end(text, begin, _ASCII) if field == _KIND else -1
        values[field] = end > 0 and _word(text, begin, _MARKET_TRADE) == end - 1
        return end
    if _ZERO <= text[at] <= _NINE:
        return _whole(text, at, field, values) if field == _UNREAD or _WHOLE >> field & 1 else -1
    if field != _UNREAD and field != _BUYER_IS_MAKER:
        return -1
    values[field] = text[at] == _TRUE[0]
    return _word(text, at, _TRUE) if values[field] else _word(text, at, _FALSE)


@compiled
def _fill(values: Integers, index: int, decimals: Integers, row: Record) -> bool:
    """Make a row of a frame's values; False if they do not fit."""
    trade_count = values[_LAST_FILL] - values[_FIRST_FILL] + 1
    if trade_count < 1:
        return False
    row.symbol = index
    row.id = values[_ID]
    row.time = values[_TIME]
    row.price = 0
    row.quantity = 0
    row.trade_count = 0
    row.buyer_is_maker = values[_BUYER_IS_MAKER]
    if values[_KIND]:
        row.trade_count = trade_count
        row.price, row.quantity = scaled_trade(
            values[_PRICE], values[_PRICE_DECIMALS], values[_QUANTITY], values[_QUANTITY_DECIMALS], decimals[index]
        )
        is_priced: bool = row.price > 0
        return is_priced
    return True


def plain_klines(body: bytes) -> KlineColumns | None:
    """Read an answer to /klines, or return None if it is not plain."""
    rows = max(0, body.count(b"[") - 1)
    decimal_fields = (rows, len(DECIMAL_FIELDS))
    sizes = (rows, rows, rows, decimal_fields, decimal_fields, decimal_fields)
    columns = KlineColumns(*(np.zeros(size, np.int64) for size in sizes))
    return columns if scan_klines(np.frombuffer(body + b"\n", np.uint8), *columns[:-1]) else None


@compiled
def scan_klines(
    text: Bytes,
    open_times: Integers,
    close_times: Integers,
    trade_counts: Integers,
    mantissas: Integers,
    decimals: Integers,
) -> bool:
    """Read an answer, which a newline follows, into `KlineColumns`. Return whether it is plain and fills them.

    A number beyond 64 bits is not plain: the high fields are not read here.
    """
    if text[0] != _BEGIN_LIST:
        return False
    at = 1
    for row in range(len(open_times)):
        if row > 0:
            if text[at] != _COMMA:
                return False
            at += 1
        if text[at] != _BEGIN_LIST:
            return False
        field = 0
        for position in range(11):
            at += 1
            if _ZERO <= text[at] <= _NINE:
                if position == 0:
                    at = _whole(text, at, row, open_times)
                elif position == 6:
                    at = _whole(text, at, row, close_times)
                elif position == 8:
                    at = _whole(text, at, row, trade_counts)
                else:
                    return False
            elif text[at] == _QUOTE and position not in (0, 6, 8):
                mantissas[row, field], decimals[row, field], at = next_number(text, at + 1, _QUOTE)
                if decimals[row, field] < 0:
                    return False
                field += 1
            else:
                return False
            if at < 0 or text[at] != _COMMA:
                return False
        # The last one is not read.
        at = _string_end(text, at + 2, _ASCII) if text[at + 1] == _QUOTE else -1
        if at < 0 or text[at] != _END_LIST or max(open_times[row], close_times[row]) > TIME_MAX:
            return False
        if trade_counts[row] > COUNT_MAX:
            return False
        at += 1
    return text[at] == _END_LIST and at + 2 == len(text)


@inlined
def _whole(text: Bytes, at: int, field: int, values: Integers) -> int:
    """Read a whole number. Return where it ends, or -1 if it is longer than what surely fits, or spelled oddly."""
    begin = at
    value = np.int64(0)
    while _ZERO <= text[at] <= _NINE:
        value = value * 10 + (text[at] - _ZERO)
        at += 1
    values[field] = value
    return -1 if at - begin > DIGITS_MAX or (text[begin] == _ZERO and at - begin > 1) else at


@inlined
def _string_end(text: Bytes, at: int, plain: NDArray[np.bool_]) -> int:
    """Return the offset behind the quote of a string that began before `at`; -1 if a byte is not plain."""
    while plain[text[at]]:
        at += 1
    return at + 1 if text[at] == _QUOTE else -1


@compiled
def _word(text: Bytes, at: int, word: Bytes) -> int:
    """Return where a word ends that begins at `at`; -1 if it is not there."""
    for character in word:
        if text[at] != character:
            return -1
        at += 1
    return at


def warm_up() -> None:
    """Compile, or load what was compiled: the first klines must not wait for it."""
    plain_klines(b"[]")
