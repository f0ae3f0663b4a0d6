"""Trades and klines in their plain form, straight from bytes to numbers: the exchange's border, compiled.

A frame is plain if it is `{"stream":"...","data":{...}}` without a space, `data` holds strings without escapes, whole
numbers, true and false, no key that we read comes twice, and everything that a row needs is there and fits. Keys may
come in any order, and those that we do not read are skipped. Every other frame is *left*: binance.py decodes it, and
decides what is refused of it and why. So nothing is refused here, and what is taken must be what would be read there.

An answer to /klines is plain if it holds nothing but rows as they are documented, without a space. One that is not is
decoded as a whole.

The keys and spellings stand in binance.py; here is only the grammar around them.
"""

import numpy as np
from numpy.typing import NDArray

from services.ingest.binance import (
    AFTER_STREAM,
    BEFORE_STREAM,
    COUNT_MAX,
    MARKET_TRADE,
    OUR_MARKET,
    TIME_MAX,
    TRADE_FIELDS,
)
from services.ingest.exact import fitted, next_number
from services.ingest.instruments import find
from services.ingest.klines import NUMBERS, Columns
from shared.compiled import compiled, inlined

LEFT, TAKEN, FOREIGN = 0, 1, 2
"""What became of a frame: left to be decoded, a row, or one of the other market."""

KEYS = 1 << 16
"""Keys of one or two letters, as numbers; all others are not ours."""
DIGITS_MAX = 18
"""A whole number of so many digits fits an int64, and is an id, whatever they are."""


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
"""Bytes of a string that is not read as text, only compared or skipped, by their number: no escapes, ..."""
_ASCII = _NAME & (np.arange(256) < _DELETE)
"""... and of one that must be text."""


@compiled
def scan(frames, keys, needed, spelled, slots, decimals, values, rows, outcomes):  # type: ignore[no-untyped-def]
    """Read `Frames`. Return (how many were not taken, the newest event time of those that were).

    `keys`, `needed`: what a frame may hold and what it must (`key_table`, `set_of`). `spelled`, `slots`, `decimals`:
    of `Instruments`. `values`: int64[VALUES] to work with. Frame n becomes rows[n]: TRADE, if outcomes[n]: uint8 says
    so.
    """
    text = frames.text
    others = 0
    newest = 0
    for n in range(len(frames.spans)):
        end = frames.spans[n, 1]
        behind = text[end]
        text[end] = _NEWLINE
        outcome = LEFT
        if _read(text, frames.spans[n, 0], keys, needed, values) == end:
            number = find(text, values[_SYMBOL], values[_SYMBOL_END], spelled, slots)
            if number >= 0 and values[_MARKET] != OUR_MARKET:
                outcome = FOREIGN
            elif number >= 0 and _fill(values, number, decimals, rows[n]):
                outcome = TAKEN
                newest = max(newest, values[_EVENT_TIME])
        text[end] = behind
        if outcome != TAKEN:
            others += 1
        outcomes[n] = outcome
    return others, newest


@compiled
def _read(text, at, keys, needed, values):  # type: ignore[no-untyped-def]
    """Read a frame into `values`, by field. Return the place of its end, or -1 if it is not plain."""
    # A newline stands behind the frame, and is part of nothing plain, so reading never goes beyond it.
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
def _value(text, at, field, values):  # type: ignore[no-untyped-def]
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
            # What is no number may be a price all the same: a void id's.
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
def _fill(values, number, decimals, row):  # type: ignore[no-untyped-def]
    """Make a row of a frame's values; False if they do not fit."""
    trade_count = values[_LAST_FILL] - values[_FIRST_FILL] + 1
    if trade_count < 1:
        return False
    row.symbol = number
    row.id = values[_ID]
    row.time = values[_TIME]
    row.price = 0
    row.quantity = 0
    row.trade_count = 0
    row.buyer_is_maker = values[_BUYER_IS_MAKER]
    if values[_KIND]:
        row.trade_count = trade_count
        row.price, row.quantity = fitted(
            values[_PRICE], values[_PRICE_DECIMALS], values[_QUANTITY], values[_QUANTITY_DECIMALS], decimals[number]
        )
        return row.price > 0
    return True


def plain_klines(body: bytes) -> Columns | None:
    """Read an answer to /klines, or return None if it is not plain."""
    rows = max(0, body.count(b"[") - 1)
    numbers = (rows, len(NUMBERS))
    columns = Columns(*(np.zeros(size, np.int64) for size in (rows, rows, rows, numbers, numbers, numbers)))
    return columns if scan_klines(np.frombuffer(body + b"\n", np.uint8), *columns[:-1]) else None


@compiled
def scan_klines(text, open_times, close_times, trade_counts, mantissas, decimals):  # type: ignore[no-untyped-def]
    """Read an answer, behind which a newline stands, into `Columns`. Return whether it is plain and fills them.

    A number beyond 64 bits is not plain: there are no high fields here.
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
        number = 0
        for place in range(11):
            at += 1
            if _ZERO <= text[at] <= _NINE:
                if place == 0:
                    at = _whole(text, at, row, open_times)
                elif place == 6:
                    at = _whole(text, at, row, close_times)
                elif place == 8:
                    at = _whole(text, at, row, trade_counts)
                else:
                    return False
            elif text[at] == _QUOTE and place not in (0, 6, 8):
                mantissas[row, number], decimals[row, number], at = next_number(text, at + 1, _QUOTE)
                if decimals[row, number] < 0:
                    return False
                number += 1
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
def _whole(text, at, field, values):  # type: ignore[no-untyped-def]
    """Read a whole number. Return where it ends, or -1 if it is longer than what surely fits, or spelled oddly."""
    begin = at
    value = np.int64(0)
    while _ZERO <= text[at] <= _NINE:
        value = value * 10 + (text[at] - _ZERO)
        at += 1
    values[field] = value
    return -1 if at - begin > DIGITS_MAX or (text[begin] == _ZERO and at - begin > 1) else at


@inlined
def _string_end(text, at, plain):  # type: ignore[no-untyped-def]
    """Return where a string ends that began before `at`, behind its quote; -1 if a byte is not plain."""
    while plain[text[at]]:
        at += 1
    return at + 1 if text[at] == _QUOTE else -1


@compiled
def _word(text, at, word):  # type: ignore[no-untyped-def]
    """Return where a word ends that stands at `at`; -1 if it does not."""
    for character in word:
        if text[at] != character:
            return -1
        at += 1
    return at


def warm_up() -> None:
    """Compile what the first klines would wait for, or load what was compiled."""
    plain_klines(b"[]")
