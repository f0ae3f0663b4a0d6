"""The table of instruments that trades refer to: searched by the bytes of a name, and packed once for all batches.

Decides a symbol's index in the table: the next free one when the symbol is expected, or with its first trade, and it
stays the same. The table is packed again only when a symbol was added or its decimals grew. Knows no frame and no key
of the exchange.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from services.ingest.decimals import Decimals
from shared.arrays import Bytes, Integers
from shared.compiled import compiled, inlined
from shared.wire import Instrument, pack_instruments

NAME_MAX = 63
"""Bytes of a name that can be found; the longest of the exchange has some 20."""
_MULTIPLIER = 31


class Instruments:
    def __init__(self, decimals: Decimals) -> None:
        self._all_decimals = decimals
        self._version = decimals.version
        self._indexes: dict[str, int] = {}
        self._table: list[Instrument] = []
        self._build()

    def refresh(self) -> None:
        """Take over decimals that have grown elsewhere. To be called before every read."""
        if self._version == self._all_decimals.version:
            return
        self._version = self._all_decimals.version
        table = [Instrument(name, *self._all_decimals[name]) for name in self._indexes]
        if table != self._table:
            self._table = table
            self._build()

    def indexes(self, symbols: Iterable[str]) -> list[int]:
        """Return the symbols' indexes; a symbol that has none gets one."""
        indexes = [self._indexes.setdefault(symbol, len(self._indexes)) for symbol in symbols]
        if len(self._indexes) > len(self._table):
            added = list(self._indexes)[len(self._table) :]
            self._table += [Instrument(name, *self._all_decimals[name]) for name in added]
            self._build()
        return indexes

    def grow(self, decimals: NDArray[np.int64]) -> None:
        """Let symbols have more decimals: int64[n, 2] by index, as `self.decimals`."""
        for index in np.flatnonzero((decimals > self.decimals).any(axis=1)).tolist():
            self._all_decimals.grow(self._table[index].symbol, *decimals[index].tolist())
        self.refresh()

    def _build(self) -> None:
        count = len(self._table)
        self.packed = pack_instruments(self._table)
        """As every batch carries them."""
        decimals = [(instrument.price_decimals, instrument.quantity_decimals) for instrument in self._table]
        self.decimals = np.array(decimals, np.int64).reshape(count, 2)
        """Of price and quantity, by index."""
        self.names = np.array([_sized(name) for name in self._indexes], f"S{1 + NAME_MAX}").view(np.uint8)
        self.names = self.names.reshape(count, 1 + NAME_MAX)
        """By index: the length of the name, and its bytes. A name that is too long has neither and is not found."""
        self.slots = np.zeros(1 << (4 * count + 1).bit_length(), np.int64)
        """A hash table with open addressing, at most a quarter full: an index plus 1, or 0."""
        _fill_slots(self.names, self.slots)


def _sized(name: str) -> bytes:
    text = name.encode()
    return bytes([len(text)]) + text if len(text) <= NAME_MAX else b""


@inlined
def find(text: Bytes, begin: int, end: int, names: Bytes, slots: Integers) -> int:
    """Return the index of the name that a text has at [begin, end); -1 if it is not in the table."""
    slot = _slot(text, begin, end, slots)
    while slots[slot] > 0:
        index: int = slots[slot] - 1
        if names[index, 0] == end - begin:
            offset = 0
            while offset < end - begin and text[begin + offset] == names[index, 1 + offset]:
                offset += 1
            if offset == end - begin:
                return index
        slot = (slot + 1) & (len(slots) - 1)
    return -1


@inlined
def _slot(text: Bytes, begin: int, end: int, slots: Integers) -> int:
    """Return the slot in which to begin: a hash of the name."""
    hashed = 0
    for at in range(begin, end):
        hashed = hashed * _MULTIPLIER + text[at]
    return (hashed ^ (hashed >> 15)) & (len(slots) - 1)


@compiled
def _fill_slots(names: Bytes, slots: Integers) -> None:
    for index in range(len(names)):
        if names[index, 0] > 0:
            slot = _slot(names[index], 1, 1 + names[index, 0], slots)
            while slots[slot] > 0:
                slot = (slot + 1) & (len(slots) - 1)
            slots[slot] = index + 1
