"""Decimal text into int64, exactly, and how many decimals each symbol has, which only ever grow.

Decides which numbers are taken and which are refused, and in units of which decimals. Knows nothing of how the exchange
spells its messages.

Compiled code takes what is plain: digits with at most one point, no more decimals than the symbol has, inside int64. It
is integer arithmetic from beginning to end, so there is nothing to round. A batch in which anything is not plain goes
row by row through `parse_number`, which has the rules for refusing. A number that needs more decimals makes those of
its symbol grow, by `Decimals.grow` alone. Rows name their own decimals, so that older rows stay right.
"""

import re
from array import array
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Bytes, Integers, Rows
from shared.compiled import compiled
from shared.decimals import INT64_MAX, decimals_of, scaled
from shared.kline import QUOTE_BASE, QUOTE_MAX, TRADE

DECIMALS_MAX = 10
"""Two more than the exchange has ever printed: decimals never shrink, so one odd number must not inflate them."""
TEXT_MAX = 28
"""Characters of a number: an int64 has 19 digits, and from 29 on `decimal` rounds."""

_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)
POWERS = np.array([10**power for power in range(19)], np.int64)
_CUTOFF = (INT64_MAX - 9) // 10
_NEWLINE, _POINT, _ZERO, _NINE = 10, 46, 48, 57


class Decimals:
    """Price and quantity decimals of every symbol there was. They only grow."""

    def __init__(self, known: Mapping[str, tuple[int, int]] = MappingProxyType({})) -> None:
        self._known = dict(known)
        self.version = 0
        """Another number after every change."""

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._known

    def __getitem__(self, symbol: str) -> tuple[int, int]:
        return self._known[symbol]

    def of(self, symbol: str) -> tuple[int, int]:
        """Return a symbol's decimals; (0, 0) if it is not known."""
        return self._known.get(symbol, (0, 0))

    def grow(self, symbol: str, price_decimals: int, quantity_decimals: int) -> tuple[int, int]:
        """Let a symbol have at least these decimals; return what it has."""
        price, quantity = self.of(symbol)
        grown = (max(price, price_decimals), max(quantity, quantity_decimals))
        if self._known.get(symbol) != grown:
            self._known[symbol] = grown
            self.version += 1
        return grown


class RefusedNumber(ValueError):
    """A number that is not taken, with the kind of the reason."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text[:TEXT_MAX]!r}")
        self.kind = kind


def parse_number(text: str, largest: int = INT64_MAX) -> tuple[int, int]:
    """Return (mantissa, decimals) of a number, with as few decimals as it needs; the mantissa up to `largest`.

    Raises RefusedNumber: `not a number`, `negative`, `too many decimals`, `too large`.
    """
    if len(text) > TEXT_MAX or not _PLAIN.fullmatch(text):
        raise RefusedNumber("not a number", text)
    decimals = decimals_of(text)
    if decimals > DECIMALS_MAX:
        raise RefusedNumber("too many decimals", text)
    try:
        mantissa = scaled(text, decimals, largest)
    except ValueError as error:
        raise RefusedNumber("too large", text) from error
    if mantissa < 0:
        raise RefusedNumber("negative", text)
    return mantissa, decimals


def parse_numbers(texts: list[str]) -> tuple[Integers, Integers, Integers]:
    """Return (mantissas, decimals, highs) of a column; decimals are -1 where the number cannot be taken.

    A mantissa beyond 64 bits is `high * QUOTE_BASE + mantissa`, as with quote volumes.
    """
    mantissas, decimals, highs = (np.zeros(len(texts), np.int64) for _ in range(3))
    if not _parse(_buffer(texts), mantissas, decimals):
        for n, text in enumerate(texts):
            try:
                mantissa, decimals[n] = parse_number(text, QUOTE_MAX)
            except RefusedNumber:
                mantissa, decimals[n] = 0, -1
            if mantissa > INT64_MAX:
                highs[n], mantissa = divmod(mantissa, QUOTE_BASE)
            mantissas[n] = mantissa
    return mantissas, decimals, highs


def trade_rows(
    prices: list[str], quantities: list[str], fields: "array[int]", decimals: Integers
) -> tuple[Rows, list[tuple[int, str]]]:
    """Return (rows: TRADE[n], refused): refused rows are left out and named as (position, kind).

    `fields` holds five integers a row: symbol (an index into `decimals`), id, time, trade count, buyer is maker. A
    row with trade count 0 is a void id: its price and quantity mean nothing. `decimals`: int64[symbols, 2] of price
    and quantity; it is raised in place where a number needs more.
    """
    rows = np.empty(len(prices), TRADE)
    columns = np.frombuffer(fields, np.int64).reshape(len(prices), 5) if prices else np.empty((0, 5), np.int64)
    if _fill(_buffer(prices), _buffer(quantities), columns, decimals, rows):
        return rows, []
    return _row_by_row(prices, quantities, columns, decimals)


def warm_up() -> None:
    """Compile, or load what was compiled: the first trades must not wait for it."""
    parse_numbers(["1"])
    trade_rows(["1"], ["1"], array("q", [0, 0, 0, 1, 0]), np.zeros((1, 2), np.int64))


def _row_by_row(
    prices: list[str], quantities: list[str], columns: Integers, decimals: Integers
) -> tuple[Rows, list[tuple[int, str]]]:
    refused: list[tuple[int, str]] = []
    taken: list[tuple[list[int], tuple[int, int], tuple[int, int]]] = []
    positions: list[int] = []
    for position, column in enumerate(columns.tolist()):
        price = quantity = (0, 0)
        if column[3] < 0:
            refused.append((position, "ids"))
            continue
        if column[3] > 0:
            try:
                price = _named_number("price", prices[position])
                quantity = _named_number("quantity", quantities[position])
                if price[0] == 0:
                    raise RefusedNumber("price zero", prices[position])
            except RefusedNumber as error:
                refused.append((position, error.kind))
                continue
            symbol = column[0]
            decimals[symbol, 0] = max(int(decimals[symbol, 0]), price[1])
            decimals[symbol, 1] = max(int(decimals[symbol, 1]), quantity[1])
        taken.append((column, price, quantity))
        positions.append(position)
    rows = np.zeros(len(taken), TRADE)
    kept = 0
    for (column, price, quantity), position in zip(taken, positions, strict=True):
        price_decimals, quantity_decimals = decimals[column[0]].tolist()
        scaled_price = price[0] * 10 ** (price_decimals - price[1])
        scaled_quantity = quantity[0] * 10 ** (quantity_decimals - quantity[1])
        if max(scaled_price, scaled_quantity, scaled_price * scaled_quantity) > INT64_MAX:
            refused.append((position, "too large"))
            continue
        rows[kept] = (*column[:3], scaled_price, scaled_quantity, *column[3:])
        kept += 1
    return rows[:kept], refused


def _named_number(name: str, text: str) -> tuple[int, int]:
    try:
        return parse_number(text)
    except RefusedNumber as error:
        raise RefusedNumber(f"{name} {error.kind}", text) from error


def _buffer(texts: list[str]) -> NDArray[np.uint8]:
    # What is not ASCII becomes "?", which is no digit, so the kernel leaves it to the slow path.
    return np.frombuffer("\n".join(texts).encode("ascii", "replace"), np.uint8)


@compiled
def next_number(text: Bytes, at: int, terminator: int) -> tuple[int, int, int]:
    """Read a plain number that begins at `at` and ends with the byte `terminator`, or with the text.

    Return (mantissa, decimals, offset behind the terminator); decimals are -1 if the number is not plain.
    """
    end = min(len(text), at + TEXT_MAX)
    mantissa = 0
    decimals = -1
    zeros = 0
    digits = 0
    while at < end and text[at] != terminator:
        character = text[at]
        at += 1
        if character == _POINT:
            if decimals >= 0 or digits == 0:
                return 0, -1, at
            decimals = 0
            digits = 0
            continue
        if character < _ZERO or character > _NINE:
            return 0, -1, at
        digits += 1
        if decimals >= 0 and character == _ZERO:
            # Zeros at the end are no decimals; they count when another digit follows.
            zeros += 1
            continue
        for _ in range(zeros + 1):
            if mantissa > _CUTOFF:
                return 0, -1, at
            mantissa *= 10
        mantissa += character - _ZERO
        if decimals >= 0:
            decimals += zeros + 1
            zeros = 0
    too_long = at < len(text) and text[at] != terminator
    if digits == 0 or decimals > DECIMALS_MAX or too_long:
        return 0, -1, at
    return mantissa, max(decimals, 0), at + 1


@compiled
def scaled_trade(
    price: int, price_decimals: int, quantity: int, quantity_decimals: int, decimals: Integers
) -> tuple[int, int]:
    """Return (price, quantity) in units of a symbol's decimals; (0, 0) if they do not fit, or the price is zero."""
    price_shift = decimals[0] - price_decimals
    quantity_shift = decimals[1] - quantity_decimals
    if price_decimals < 0 or quantity_decimals < 0 or price == 0 or price_shift < 0 or quantity_shift < 0:
        return 0, 0
    if price > INT64_MAX // POWERS[price_shift] or quantity > INT64_MAX // POWERS[quantity_shift]:
        return 0, 0
    price *= POWERS[price_shift]
    quantity *= POWERS[quantity_shift]
    return (0, 0) if quantity > INT64_MAX // price else (price, quantity)


@compiled
def _parse(text: Bytes, mantissas: Integers, decimals: Integers) -> bool:
    at = 0
    for n in range(len(mantissas)):
        mantissas[n], decimals[n], at = next_number(text, at, _NEWLINE)
        if decimals[n] < 0:
            return False
    return len(mantissas) == 0 or at == len(text) + 1


@compiled
def _fill(prices: Bytes, quantities: Bytes, columns: Integers, decimals: Integers, rows: Rows) -> bool:
    price_at = 0
    quantity_at = 0
    for n in range(len(rows)):
        price, price_decimals, price_at = next_number(prices, price_at, _NEWLINE)
        quantity, quantity_decimals, quantity_at = next_number(quantities, quantity_at, _NEWLINE)
        count = columns[n, 3]
        if price_decimals < 0 or quantity_decimals < 0 or count < 0:
            return False
        if count == 0:
            price = 0
            quantity = 0
        else:
            price, quantity = scaled_trade(price, price_decimals, quantity, quantity_decimals, decimals[columns[n, 0]])
            if price == 0:
                return False
        row = rows[n]
        row.symbol = columns[n, 0]
        row.id = columns[n, 1]
        row.time = columns[n, 2]
        row.price = price
        row.quantity = quantity
        row.trade_count = count
        row.buyer_is_maker = columns[n, 4]
    return len(rows) == 0 or (price_at == len(prices) + 1 and quantity_at == len(quantities) + 1)
