"""Kline events of a generated market: every 250 ms for a kline that changed, and one that it is closed (protocol §2.6).

Decides when an event is due and of what. A kline in which nobody traded has none, neither while it forms nor when it
ends: what the exchange does there is not known, so nobody may count on it.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from services.simulator.frames import Chunk, kline_message
from services.simulator.grid import INTERVALS, end_time, open_time
from services.simulator.rows import Instrument, Rows

EVERY_MS = 250


class KlineSource(Protocol):
    def find_stream(self, stream_base: str) -> Instrument | None: ...

    def klines(self, instrument: Instrument, interval: str, start: int, until: int) -> Rows: ...

    def trade_span(self, instrument: Instrument, start: int, end: int) -> tuple[int, int]:
        """Return the first and the last id of single trades in [start, end)."""


class KlineFeed:
    def __init__(self, source: KlineSource) -> None:
        self._source = source
        self._due = 0
        self._streams: dict[str, tuple[Instrument, str]] = {}
        self._said: dict[str, tuple[int, int]] = {}
        """Stream to (open time, trade count) of the kline that was said last."""

    def follow(self, wanted: Iterable[str]) -> None:
        """Follow those of the wanted streams that are klines of a symbol there is."""
        self._streams = {}
        for stream in wanted:
            base, _, kind = stream.partition("@")
            interval = kind.removeprefix("kline_")
            instrument = self._source.find_stream(base) if interval != kind and interval in INTERVALS else None
            if instrument is not None:
                self._streams[stream] = (instrument, interval)
        self._said = {stream: said for stream, said in self._said.items() if stream in self._streams}

    def advance(self, now: int) -> list[Chunk]:
        """Return the events that are due at `now`."""
        if not self._streams or now < self._due:
            return []
        self._due = now + EVERY_MS
        chunks = []
        for stream, (instrument, interval) in self._streams.items():
            messages = list(self._events(stream, instrument, interval, now))
            if messages:
                chunks.append(Chunk(stream, messages))
        return chunks

    def _events(self, stream: str, instrument: Instrument, interval: str, now: int) -> Iterator[bytes]:
        opened = open_time(interval, now, instrument.grid_3d)
        before, count = self._said.get(stream, (opened, 0))
        # One that ended since the last event is said once more, closed.
        for start in [before, opened] if before < opened else [opened]:
            rows = self._source.klines(instrument, interval, start, start)
            rows = rows[rows["open_time"] == start]
            if not len(rows) or not rows["count"][0] or (start == opened == before and int(rows["count"][0]) == count):
                continue
            end = end_time(interval, start)
            first, last = self._source.trade_span(instrument, start, min(end, now + 1))
            self._said[stream] = (start, int(rows["count"][0]))
            yield kline_message(instrument, interval, now, rows[0], (first, last, end - 1))
        if before < opened and self._said.get(stream, (0, 0))[0] < opened:
            self._said[stream] = (opened, 0)
