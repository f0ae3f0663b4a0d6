"""Recordings as they lie on disk: frames as received (`.jsonl`, `.jsonl.gz`) and the archive's files (CSV, zipped).

Decides which decimals a symbol has, and in which order events happened: those of a stream of trades in the order of
their ids, whichever file and line they stand in, and streams among each other by time. Where nothing was recorded for
longer than any kline lasts, one stretch ends and another one begins. What is left out of the files is logged, line by
line. How a line is read is reading.py's, which of a stream's events count stream.py's. A recording may be
longer than memory: it is read once, and kept on disk. Knows nothing of who asks for it.
"""

import logging
import time
import zipfile
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from services.simulator.grid import DAY_MS, MONTH_MAX_MS
from services.simulator.replay.reading import Event, NotUnderstood, RecordingError, lines_of, opened, reader_of
from services.simulator.replay.spool import NoSpace, merged
from services.simulator.replay.stream import LeftOut, Report, Spools, Stream
from services.simulator.rows import Instrument

__all__ = ["Recording", "RecordingError"]

PROGRESS_S = 2.0
PAUSE_MAX_MS = MONTH_MAX_MS
"""Each minute of a pause becomes a kline of each symbol. After a longer one a recording begins again: whether a symbol
was traded meanwhile nothing says, and no kline is on both sides of it."""
BEGINNING_MAX = 60
GATHERED_MAX = 2**17
"""Events in memory until they are written: 13 MB, and their messages."""

log = logging.getLogger(__name__)


EPOCH = date(1970, 1, 1)


class Stretch(NamedTuple):
    """What was recorded without too long a pause."""

    span: tuple[int, int]
    """When its first and its last event left."""
    begins: list[int]
    ends: list[int]
    """Of each stream: the index of its first event in it, and that after its last one."""


class Recording:
    """All events of some files, in order."""

    def __init__(self, paths: list[str], first_days: Mapping[str, date] = MappingProxyType({})) -> None:
        """Read files. `first_days`: where 3d klines count from, else from a symbol's first day here.

        Raises RecordingError.
        """
        self._first_days = first_days
        self.streams: list[Stream] = []
        self.report = Report()
        self._indices: dict[str, int] = {}
        self._files: list[str] = []
        self._spools = Spools()
        self._messages = bytearray()
        self._gathered = 0
        self._latest = 0
        """The time of the event that was read last."""
        try:
            for path in paths:
                self._read(Path(path))
            if not self.streams:
                first = self.report.left_out[0] if self.report.left_out else None
                why = f"; {first.file} line {first.line}: {first.reason}" if first else ""
                raise RecordingError(f"nothing in {', '.join(paths) or 'no file'}{why}")
            self._put_away()
            self.instruments = {
                name: self._finish(name) for name in dict.fromkeys(s.symbol for s in self.streams if s.kind)
            }
            for stream in self.streams:
                if not stream.kind:
                    stream.finish(0, 0, self._files, self.report)
        except NoSpace as error:
            raise RecordingError(str(error)) from error
        self.stretches = self._find_stretches()
        """One, or more where there are pauses that are too long. Each has trades."""
        if not self.stretches:
            raise RecordingError(f"no trades in {', '.join(paths)}")
        self._log_report()

    def events(self, stretch: Stretch | None = None) -> Iterator[tuple[Any, Any]]:
        """Yield (int64[n]: when events left the exchange, ascending; int64[n]: whose they are, indices into `streams`).

        The k-th event of a stream is its k-th message. Those of a stretch, or all.
        """
        times = [stream.times for stream in self.streams]
        if stretch is not None:
            spans = zip(times, stretch.begins, stretch.ends, strict=True)
            times = [part.between(begin, end) for part, begin, end in spans]
        return merged(times)

    def _finish(self, symbol: str) -> Instrument:
        streams = [stream for stream in self.streams if stream.symbol == symbol and stream.kind]
        price = max(stream.price.needed for stream in streams)
        quantity = max(stream.quantity.needed for stream in streams)
        for stream in streams:
            stream.finish(price, quantity, self._files, self.report)
        first_day = self._first_days.get(symbol)
        if first_day is not None:
            grid_3d = (first_day - EPOCH) // timedelta(milliseconds=1)
        else:
            grid_3d = min(stream.earliest for stream in streams) // DAY_MS * DAY_MS
        return Instrument(symbol=symbol, price_decimals=price, quantity_decimals=quantity, grid_3d=grid_3d)

    def _read(self, path: Path) -> None:
        began = said = time.monotonic()
        count = 0
        try:
            with opened(path) as files:
                for name, lines in files:
                    self._files.append(name)
                    read = reader_of(name)
                    for number, line in lines_of(lines):
                        try:
                            event = read(line)
                        except NotUnderstood as error:
                            beginning = line[:BEGINNING_MAX].decode("utf-8", "replace")
                            self.report.leave_out(LeftOut(name, number, beginning, str(error)))
                            continue
                        if event is not None:
                            self._add(event, number)
                        count += 1
                        if count % 65_536 == 0 and time.monotonic() - said > PROGRESS_S:
                            said = time.monotonic()
                            log.info("reading %s: %d lines in %.0f s", path.name, count, said - began)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise RecordingError(f"cannot read {path}: {error}") from error

    def _add(self, event: Event, line: int) -> None:
        index = self._indices.get(event.stream)
        if index is None:
            index = self._indices[event.stream] = len(self.streams)
            self.streams.append(Stream(event.stream, event.symbol, event.kind, self._spools))
        if not event.event_time:
            # It left no earlier than what stands before it; what stands before all is not sent again.
            if not self._latest:
                return
            event = event._replace(event_time=self._latest)
        self._latest = event.event_time
        offset = len(self._spools.messages) + len(self._messages)
        if event.message is not None:
            self._messages += event.message
        self.streams[index].add(event, offset, len(self._files) - 1, line)
        self._gathered += 1
        if self._gathered == GATHERED_MAX:
            self._put_away()

    def _put_away(self) -> None:
        """Write what was gathered. Raises NoSpace."""
        self._spools.messages.append(self._messages)
        self._messages = bytearray()
        for stream in self.streams:
            stream.put_away()
        self._gathered = 0

    def _find_stretches(self) -> list[Stretch]:
        """Return the stretches that have trades."""
        stretches: list[Stretch] = []
        counts = np.zeros(len(self.streams), np.int64)
        begins, first, last = counts.copy(), 0, 0

        def end() -> None:
            has_trades = any(counts[index] > begins[index] for index, stream in enumerate(self.streams) if stream.kind)
            if has_trades:
                stretches.append(Stretch((first, last), begins.tolist(), counts.tolist()))

        for times, owners in self.events():
            first = first or int(times[0])
            start = 0
            for index in np.flatnonzero(np.diff(times, prepend=last or times[0]) > PAUSE_MAX_MS).tolist():
                counts += np.bincount(owners[start:index], minlength=len(counts))
                last = int(times[index - 1]) if index else last
                end()
                begins, first, start = counts.copy(), int(times[index]), index
            counts += np.bincount(owners[start:], minlength=len(counts))
            last = int(times[-1])
        end()
        return stretches

    def _log_report(self) -> None:
        report = self.report
        for line in report.left_out:
            log.warning("left out: %s line %d, %r: %s", line.file, line.line, line.beginning, line.reason)
        for again in report.contradicting:
            log.warning(
                "id %d of %s again with another trade: %s line %d", again.id, again.symbol, again.file, again.line
            )
        counts = (report.left_out_count, report.contradicting_count, report.repeated)
        if any(counts):
            log.warning("%d lines left out, %d with an id that another trade has, %d repeated", *counts)
