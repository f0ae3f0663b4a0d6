"""Messages as they lie in the bytes of a websocket: found and handed over without being copied.

Decides which frames are *plain*: text, whole, unmasked, and no longer than a message may be (RFC 6455, 5.2). All others
are read by websockets' own protocol (websocket.py). Knows no socket, and nothing of what a message says.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.compiled import compiled

HEADER_MAX = 10
"""Bytes of the longest header of a frame that is not masked."""
_FINAL_TEXT, _MASKED = 0x81, 0x80
_IN_TWO_BYTES, _IN_EIGHT_BYTES = 126, 127
"""Lengths that stand behind the header's second byte, which has these instead."""
_SIZE_MAX = 1 << 62
"""Whatever says that it is longer is long enough."""


class Frames(NamedTuple):
    """Messages that arrived together. They are there until more is read."""

    text: NDArray[np.uint8]
    """The messages, among other bytes. Whoever reads them may write behind each, and brings back what was there."""
    spans: NDArray[np.int64]
    """int64[n, 2]: where each begins and ends in the text."""

    def message(self, number: int) -> bytes:
        begin, end = self.spans[number].tolist()
        return self.text[begin:end].tobytes()

    def messages(self) -> list[bytes]:
        return [self.message(number) for number in range(len(self.spans))]


def frames_of(messages: list[bytes]) -> Frames:
    """Return messages that lie elsewhere, side by side."""
    sizes = np.array([len(message) for message in messages], np.int64)
    spans = np.empty((len(messages), 2), np.int64)
    spans[:, 1] = np.cumsum(sizes + 1) - 1
    spans[:, 0] = spans[:, 1] - sizes
    return Frames(np.frombuffer(bytearray(b"\n".join([*messages, b""])), np.uint8), spans)


def warm_up() -> None:
    """Compile, or load what was compiled: the first frames must not wait for it."""
    find_plain(np.zeros(1, np.uint8), 0, 0, np.zeros((1, 2), np.int64), 0)


@compiled
def find_plain(text, begin, end, spans, size_max):  # type: ignore[no-untyped-def]
    """Find the messages of the plain frames that stand whole in [begin, end), up to the first frame that does not.

    Return (how many there are, where that frame begins, how many bytes it has if it is not plain, or 0). text: uint8[];
    spans: int64[n, 2], for up to n messages; size_max: bytes of the largest message that is plain.
    """
    count = 0
    while count < len(spans):
        header, size = _measure(text, begin, end)
        if header == 0:
            break
        if text[begin] != _FINAL_TEXT or text[begin + 1] >= _MASKED or size > size_max:
            return count, begin, header + size
        if begin + header + size > end:
            break
        spans[count, 0] = begin + header
        begin += header + size
        spans[count, 1] = begin
        count += 1
    return count, begin, 0


@compiled
def _measure(text, begin, end):  # type: ignore[no-untyped-def]
    """Return how many bytes a frame's header has and how many come behind it; (0, 0) while the header is not whole."""
    if end - begin < 2:
        return 0, 0
    size = text[begin + 1] & 0x7F
    header = 2 if size < _IN_TWO_BYTES else 4 if size < _IN_EIGHT_BYTES else HEADER_MAX
    if end - begin < header:
        return 0, 0
    if header > 2:
        size = 0
        for place in range(begin + 2, begin + header):
            size = size << 8 | text[place]
    return header, size if 0 <= size < _SIZE_MAX else _SIZE_MAX
