"""Sequences that are too long for memory: in files without a name, read a block at a time.

Decides how parts that ascend become one that ascends (`merged`). Knows nothing of what it keeps. The files lie in the
machine's temporary folder (TMPDIR) and are gone with the process, however it ends.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 4_096
"""Entries of a part that are read at once, ..."""
MERGED_MAX = 2**19
"""... fewer of each where there are so many parts that they would be more than this together."""
BLOCK_MIN = 64


class NoSpace(RuntimeError):
    """The folder takes no more, in words."""


class Part:
    """Some entries of a spool, one after the other."""

    def __init__(self, spool: "Spool", begin: int, count: int) -> None:
        self._spool = spool
        self._begin = begin
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, begin: int, end: int) -> Any:
        """Return the entries [begin, end) of it, or those that there are."""
        return self._spool.read(self._begin + begin, self._begin + min(end, self._count))

    def between(self, begin: int, end: int) -> "Part":
        """Return the entries [begin, end) of it as a part."""
        return Part(self._spool, self._begin + begin, end - begin)

    def blocks(self) -> Iterator[Any]:
        """Yield all of it, a block at a time."""
        for begin in range(0, self._count, BLOCK):
            yield self.read(begin, begin + BLOCK)

    def find(self, name: str, value: int) -> int:
        """Return the index of the first entry whose field is not less than `value`; the field ascends."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if int(self.read(middle, middle + 1)[name][0]) < value:
                low = middle + 1
            else:
                high = middle
        return low


class Spool:
    """Entries of one kind in a file."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is gone with the process)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, entries: Any) -> None:
        """Write entries, or bytes of a spool of bytes. Raises NoSpace."""
        try:
            self._file.write(entries)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise NoSpace(f"{folder} does not take it: {error.strerror}; TMPDIR names another folder") from error
        self._count += len(entries)

    def since(self, begin: int) -> Part:
        """Return what was appended from an entry on."""
        return Part(self, begin, self._count - begin)

    def read(self, begin: int, end: int) -> Any:
        entries = np.empty(max(0, end - begin), self._dtype)
        if len(entries):
            os.preadv(self._file.fileno(), [entries.view(np.uint8).data], begin * self._dtype.itemsize)
        return entries


def merged(parts: Sequence[Part], name: str = "") -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yield (entries, the index of each one's part), ascending by a field, or as they are, a block at a time.

    The parts ascend. Of equals the one whose part stands first comes first, and all of its part that are in the block.
    """
    size = max(BLOCK_MIN, min(BLOCK, MERGED_MAX // max(1, len(parts))))
    blocks = [part.read(0, size) for part in parts]
    keys = [_keys(block, name) for block in blocks]
    read = [len(block) for block in blocks]
    while any(map(len, keys)):
        # What lies after the end of a block that is not its part's last may belong before what others hold.
        unfinished = [key[-1] for key, part, so_far in zip(keys, parts, read, strict=True) if so_far < len(part)]
        bound = min(unfinished, default=None)
        taken, owners = [], []
        for index, key in enumerate(keys):
            cut = len(key) if bound is None else int(np.searchsorted(key, bound, side="right"))
            if not cut:
                continue
            taken.append(blocks[index][:cut])
            owners.append(np.full(cut, index))
            blocks[index], keys[index] = blocks[index][cut:], key[cut:]
            if not len(keys[index]) and read[index] < len(parts[index]):
                blocks[index] = parts[index].read(read[index], read[index] + size)
                keys[index] = _keys(blocks[index], name)
                read[index] += len(blocks[index])
        entries = np.concatenate(taken)
        order = np.argsort(_keys(entries, name), kind="stable")
        yield entries[order], np.concatenate(owners)[order]


def _keys(entries: Any, name: str) -> Any:
    return np.ascontiguousarray(entries[name]) if name else entries
