"""The instruments that frames speak of: found by the bytes of a name, and packed once for all batches.

Decides the numbers that rows speak by: a symbol gets the next one when it is expected, or with its first trade, and
keeps it. Packed again only when a symbol was added or its decimals grew. Knows no frame and no key of the exchange.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from services.ingest.symbols import Decimals
from shared.compiled import compiled, inlined
from shared.wire import Instrument, pack_instruments

NAME_MAX = 63
"""Bytes of a name that can be found; the longest of the exchange has some 20."""
_MULTIPLIER = 31


class Instruments:
    def __init__(self, decimals: Decimals) -> None:
        self._known = decimals
        self._version = decimals.version
        self._numbers: dict[str, int] = {}
        self._table: list[Instrument] = []
        self._build()

    def renew(self) -> None:
        """Follow the decimals of symbols, which others grow too. To be called before every read."""
        if self._version == self._known.version:
            return
        self._version = self._known.version
        table = [Instrument(name, *self._known[name]) for name in self._numbers]
        if table != self._table:
            self._table = table
            self._build()

    def numbers(self, symbols: Iterable[str]) -> list[int]:
        """Return the symbols' numbers; who has none gets one."""
        numbers = [self._numbers.setdefault(symbol, len(self._numbers)) for symbol in symbols]
        if len(self._numbers) > len(self._table):
            self._table += [Instrument(name, *self._known[name]) for name in list(self._numbers)[len(self._table) :]]
            self._build()
        return numbers

    def grow(self, decimals: NDArray[np.int64]) -> None:
        """Raise the decimals of symbols: int64[n, 2] by number, as `self.decimals`."""
        for number in np.flatnonzero((decimals > self.decimals).any(axis=1)).tolist():
            self._known.grow(self._table[number].symbol, *decimals[number].tolist())
        self.renew()

    def _build(self) -> None:
        count = len(self._table)
        self.packed = pack_instruments(self._table)
        """As every batch carries them."""
        decimals = [(instrument.price_decimals, instrument.quantity_decimals) for instrument in self._table]
        self.decimals = np.array(decimals, np.int64).reshape(count, 2)
        """Of price and quantity, by number."""
        self.spelled = np.array([_spelled(name) for name in self._numbers], f"S{1 + NAME_MAX}").view(np.uint8)
        self.spelled = self.spelled.reshape(count, 1 + NAME_MAX)
        """By number: how long the name is, and its bytes. A longer one has no bytes and is not found."""
        self.slots = np.zeros(1 << (4 * count + 1).bit_length(), np.int64)
        """Open addressing, at most a quarter full: a number plus 1, or 0."""
        _place(self.spelled, self.slots)


def _spelled(name: str) -> bytes:
    spelled = name.encode()
    return bytes([len(spelled)]) + spelled if len(spelled) <= NAME_MAX else b""


@inlined
def find(text, begin, end, spelled, slots):  # type: ignore[no-untyped-def]
    """Return the number of the name that stands at [begin, end) of a text; -1 if it is none of ours."""
    slot = _slot(text, begin, end, slots)
    while slots[slot] > 0:
        number = slots[slot] - 1
        if spelled[number, 0] == end - begin:
            place = 0
            while place < end - begin and text[begin + place] == spelled[number, 1 + place]:
                place += 1
            if place == end - begin:
                return number
        slot = (slot + 1) & (len(slots) - 1)
    return -1


@inlined
def _slot(text, begin, end, slots):  # type: ignore[no-untyped-def]
    mixed = 0
    for place in range(begin, end):
        mixed = mixed * _MULTIPLIER + text[place]
    return (mixed ^ (mixed >> 15)) & (len(slots) - 1)


@compiled
def _place(spelled, slots):  # type: ignore[no-untyped-def]
    for number in range(len(spelled)):
        if spelled[number, 0] > 0:
            slot = _slot(spelled[number], 1, 1 + spelled[number, 0], slots)
            while slots[slot] > 0:
                slot = (slot + 1) & (len(slots) - 1)
            slots[slot] = number + 1
