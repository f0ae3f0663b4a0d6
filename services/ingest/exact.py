"""Decimal text into int64, exactly: the columns of a batch become rows of `TRADE`.

Decides which numbers are taken and which are refused, and in units of which decimals. Knows nothing of how the
exchange spells its messages.

The kernel takes what is plain: digits with at most one point, no more decimals than the symbol has, inside int64.
It is integer arithmetic from beginning to end, so there is nothing to round. A batch in which anything is not plain
goes row by row through `shared.decimals`, which is where the rules for refusing and for growing decimals stand.
"""

import re
from array import array

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled
from shared.decimals import INT64_MAX, decimals_of, scaled
from shared.kline import QUOTE_BASE, QUOTE_MAX, TRADE

Rows = NDArray[np.void]
Integers = NDArray[np.int64]

DECIMALS_MAX = 10
"""Two more than the exchange has ever printed: decimals never shrink, so one odd number must not inflate them."""
TEXT_MAX = 28
"""Characters of a number: an int64 has 19 digits, and from 29 on `decimal` rounds."""

_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)
POWERS = np.array([10**power for power in range(19)], np.int64)
_CUTOFF = (INT64_MAX - 9) // 10
_NEWLINE, _POINT, _ZERO, _NINE = 10, 46, 48, 57


class NotExact(ValueError):
    """A number that cannot be taken, with the kind of the reason."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text[:TEXT_MAX]!r}")
        self.kind = kind


def number(text: str, largest: int = INT64_MAX) -> tuple[int, int]:
    """Return (mantissa, decimals) of a number, with as few decimals as it needs; the mantissa up to `largest`.

    Raises NotExact: `not a number`, `negative`, `too many decimals`, `too large`.
    """
    if len(text) > TEXT_MAX or not _PLAIN.fullmatch(text):
        raise NotExact("not a number", text)
    decimals = decimals_of(text)
    if decimals > DECIMALS_MAX:
        raise NotExact("too many decimals", text)
    try:
        mantissa = scaled(text, decimals, largest)
    except ValueError as error:
        raise NotExact("too large", text) from error
    if mantissa < 0:
        raise NotExact("negative", text)
    return mantissa, decimals


def numbers(texts: list[str]) -> tuple[Integers, Integers, Integers]:
    """Return (mantissas, decimals, highs) of a column; decimals are -1 where the number cannot be taken.

    A mantissa beyond 64 bits is what stands there and `high * QUOTE_BASE`, as quote volumes are.
    """
    mantissas, decimals, highs = (np.zeros(len(texts), np.int64) for _ in range(3))
    if not _parse(_buffer(texts), mantissas, decimals):
        for place, text in enumerate(texts):
            try:
                mantissa, decimals[place] = number(text, QUOTE_MAX)
            except NotExact:
                mantissa, decimals[place] = 0, -1
            if mantissa > INT64_MAX:
                highs[place], mantissa = divmod(mantissa, QUOTE_BASE)
            mantissas[place] = mantissa
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
    numbers(["1"])
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
                price = _part("price", prices[position])
                quantity = _part("quantity", quantities[position])
                if price[0] == 0:
                    raise NotExact("price zero", prices[position])
            except NotExact as error:
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
        exact_price = price[0] * 10 ** (price_decimals - price[1])
        exact_quantity = quantity[0] * 10 ** (quantity_decimals - quantity[1])
        if max(exact_price, exact_quantity, exact_price * exact_quantity) > INT64_MAX:
            refused.append((position, "too large"))
            continue
        rows[kept] = (*column[:3], exact_price, exact_quantity, *column[3:])
        kept += 1
    return rows[:kept], refused


def _part(name: str, text: str) -> tuple[int, int]:
    try:
        return number(text)
    except NotExact as error:
        raise NotExact(f"{name} {error.kind}", text) from error


def _buffer(texts: list[str]) -> NDArray[np.uint8]:
    # What is not ASCII becomes "?", which is no digit, so the kernel leaves it to the slow path.
    return np.frombuffer("\n".join(texts).encode("ascii", "replace"), np.uint8)


@compiled
def next_number(text, at, mark):  # type: ignore[no-untyped-def]
    """Read a plain number that ends with `mark`, or with the text.

    Return (mantissa, decimals, the place behind the mark); decimals -1 for what is not plain.
    """
    end = min(len(text), at + TEXT_MAX)
    mantissa = 0
    decimals = -1
    zeros = 0
    digits = 0
    while at < end and text[at] != mark:
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
            # Zeros at the end are no decimals; only a digit after them makes them count.
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
    too_long = at < len(text) and text[at] != mark
    if digits == 0 or decimals > DECIMALS_MAX or too_long:
        return 0, -1, at
    return mantissa, max(decimals, 0), at + 1


@compiled
def fitted(price, price_decimals, quantity, quantity_decimals, decimals):  # type: ignore[no-untyped-def]
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
def _parse(text, mantissas, decimals):  # type: ignore[no-untyped-def]
    at = 0
    for place in range(len(mantissas)):
        mantissas[place], decimals[place], at = next_number(text, at, _NEWLINE)
        if decimals[place] < 0:
            return False
    return len(mantissas) == 0 or at == len(text) + 1


@compiled
def _fill(prices, quantities, columns, decimals, rows):  # type: ignore[no-untyped-def]
    price_at = 0
    quantity_at = 0
    for place in range(len(rows)):
        price, price_decimals, price_at = next_number(prices, price_at, _NEWLINE)
        quantity, quantity_decimals, quantity_at = next_number(quantities, quantity_at, _NEWLINE)
        count = columns[place, 3]
        if price_decimals < 0 or quantity_decimals < 0 or count < 0:
            return False
        if count == 0:
            price = 0
            quantity = 0
        else:
            price, quantity = fitted(price, price_decimals, quantity, quantity_decimals, decimals[columns[place, 0]])
            if price == 0:
                return False
        row = rows[place]
        row.symbol = columns[place, 0]
        row.id = columns[place, 1]
        row.time = columns[place, 2]
        row.price = price
        row.quantity = quantity
        row.trade_count = count
        row.buyer_is_maker = columns[place, 4]
    return len(rows) == 0 or (price_at == len(prices) + 1 and quantity_at == len(quantities) + 1)
