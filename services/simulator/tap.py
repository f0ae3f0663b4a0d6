"""When trades were written: what a measurement of latency begins with. Costs nothing until somebody asks.

Decides what is noted: of every block of aggregate trades of a stream that is watched, its last id. Reads no clock: what
leaves is noted first, and when it left is said right before it does, because to note it takes a moment, too.
"""

from collections import deque
from collections.abc import Sequence

from services.simulator.venue import Leaving
from services.simulator.writing import AggChunk

NOTES_MAX = 200_000
"""Blocks that are remembered, half an hour of five busy streams; older ones are forgotten."""

Note = tuple[str, int, int]
"""Stream, id, and when it was written, ns of the machine's monotonic clock."""


class Tap:
    def __init__(self) -> None:
        self._streams: set[str] = set()
        self._notes: deque[Note] = deque(maxlen=NOTES_MAX)
        self._leaving: list[tuple[str, int]] = []

    def take(self, streams: set[str]) -> list[Note]:
        """Watch these streams from here on; return what was noted before and forget it."""
        notes = list(self._notes)
        self._notes.clear()
        self._streams = streams
        return notes

    def note(self, chunks: Sequence[Leaving], delivered: set[str]) -> None:
        """Take note of what is about to be written: of these streams, nobody has the others."""
        streams = self._streams & delivered if self._streams else None
        if streams:
            aggregates = (chunk for chunk in chunks if isinstance(chunk, AggChunk))
            self._leaving = [(name, last) for chunk in aggregates for name, last in chunk.last_ids() if name in streams]

    def leaves(self, now_ns: int) -> None:
        """What was noted is written now."""
        if self._leaving:
            self._notes += [(name, last, now_ns) for name, last in self._leaving]
            self._leaving = []
