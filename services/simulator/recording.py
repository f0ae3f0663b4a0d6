"""Recordings as they lie on disk: frames as received (`.jsonl`, `.jsonl.gz`) and the archive's files (CSV, zipped).

Decides which decimals a symbol has, and in which order events happened: those of a stream of trades in the order of
their ids, whichever file and line they stand in, and streams among each other by time. What is left out of the files is
told, line by line. How a line is read is reading.py's. Knows nothing of who asks for it.
"""

import logging
import time
import zipfile
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.simulator.reading import Event, NotUnderstood, Number, RecordingError, lines_of, opened, reader_of
from services.simulator.rows import AGG_ROW, TRADE_ROW, Instrument, Rows

__all__ = ["Recording", "RecordingError"]

PADDED = 8
"""Spot writes every number with this many decimals; those that are always zero say nothing."""
PROGRESS_S = 2.0
PAUSE_MAX_MS = 31 * 86_400_000
"""A recording may stand still for so long; each minute of it becomes a kline of each symbol."""
TOLD_MAX = 20
"""Lines and ids that are told; all are counted."""
BEGINNING_MAX = 60

log = logging.getLogger(__name__)


class LeftOut(NamedTuple):
    """A line that is not understood."""

    file: str
    line: int
    beginning: str
    reason: str


class Contradicting(NamedTuple):
    """A line whose id came before with another trade; the first one counts."""

    symbol: str
    id: int
    file: str
    line: int


class Told:
    """What of the files is in no event."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self.left_out_count = 0
        self.repeated = 0
        """Lines whose trade is there already."""
        self.contradicting: list[Contradicting] = []
        self.contradicting_count = 0

    def leave_out(self, line: LeftOut) -> None:
        self.left_out_count += 1
        if len(self.left_out) < TOLD_MAX:
            self.left_out.append(line)

    def contradict(self, line: Contradicting) -> None:
        self.contradicting_count += 1
        if len(self.contradicting) < TOLD_MAX:
            self.contradicting.append(line)


class Stream:
    """One stream of a recording."""

    def __init__(self, name: str, symbol: str, kind: str, is_archive: bool) -> None:
        """`kind`: aggTrade, trade, or empty for one that is only sent again."""
        self.name = name
        self.symbol = symbol
        self.kind = kind
        self.messages: list[bytes] | None = None if is_archive else []
        """What was received, word by word; None where some of it is an archive's, and all is written anew."""
        self.rows: Rows = np.empty(0, AGG_ROW if kind == "aggTrade" else TRADE_ROW)
        self.times: NDArray[np.int64] = np.zeros(0, np.int64)
        """int64[n]: when each left the exchange; ascending, because who comes later by id left no earlier."""
        self._names: tuple[str, ...] = ("id", "first", "last", "time", "event_time", "kind", "maker")
        self._fields = array("q")
        self._origins = array("i")
        """Of each event: which file, and which line of it."""
        self._price, self._quantity, self._plain = _Numbers(), _Numbers(), _Numbers()

    def add(self, event: Event, file: int, line: int) -> None:
        if self.messages is not None and event.message is not None:
            self.messages.append(event.message)
        elif self.messages is not None:
            self.messages = None
        if not self.kind:
            self._fields.append(event.event_time)
            return
        self._fields.extend((event.id, event.first, event.last, event.time, event.event_time, event.what, event.maker))
        self._origins.extend((file, line))
        self._price.add(event.price)
        self._quantity.add(event.quantity)
        if self.kind == "aggTrade":
            self._plain.add(event.plain_quantity or event.quantity)

    @property
    def decimals(self) -> tuple[int, int]:
        return self._price.decimals, self._quantity.decimals

    def finish(self, price_decimals: int, quantity_decimals: int, files: list[str], told: Told) -> None:
        """Turn what was read into rows of these decimals, ascending by id, each once."""
        if not self.kind:
            self.times = np.maximum.accumulate(np.frombuffer(self._fields, np.int64))
            return
        fields = np.frombuffer(self._fields, np.int64).reshape(-1, len(self._names))
        rows = np.empty(len(fields), self.rows.dtype)
        for place, name in enumerate(self._names):
            if name in (rows.dtype.names or ()):
                rows[name] = fields[:, place]
        rows["price"] = self._price.scaled(price_decimals, self.symbol)
        rows["quantity"] = self._quantity.scaled(quantity_decimals, self.symbol)
        if self.kind == "aggTrade":
            rows["plain_quantity"] = self._plain.scaled(quantity_decimals, self.symbol)
        order = np.argsort(rows["id"], kind="stable")
        rows = rows[order]
        is_first = np.concatenate([[True], np.diff(rows["id"]) > 0])
        self._tell_repeated(rows, order, is_first, files, told)
        if self.kind == "aggTrade":
            self._leave_out_fills(rows, order, is_first, files, told)
        self.rows = rows[is_first]
        if self.messages is not None:
            self.messages = [self.messages[place] for place in order[is_first].tolist()]
        self.times = np.maximum.accumulate(self.rows["event_time"])
        self._fields, self._origins = array("q"), array("i")
        self._price, self._quantity, self._plain = _Numbers(), _Numbers(), _Numbers()

    def _tell_repeated(self, rows: Rows, order: Any, is_first: Any, files: list[str], told: Told) -> None:
        firsts = np.flatnonzero(is_first)
        content = [name for name in rows.dtype.names if name not in ("event_time",)]
        for place in np.flatnonzero(~is_first).tolist():
            first = firsts[np.searchsorted(firsts, place) - 1]
            if all(rows[name][place] == rows[name][first] for name in content):
                told.repeated += 1
            else:
                file, line = self._origins[2 * order[place] : 2 * order[place] + 2]
                told.contradict(Contradicting(self.symbol, int(rows["id"][place]), files[file], line))

    def _leave_out_fills(self, rows: Rows, order: Any, is_first: Any, files: list[str], told: Told) -> None:
        """Leave out aggregates whose fills stand under a lower id already: spot's of 2017 have some."""
        if (np.diff(rows["first"][is_first]) > 0).all():
            return
        columns = [rows[name][is_first] for name in ("first", "last", "time", "price", "quantity")]
        _, counted = np.unique(np.stack(columns), axis=1, return_index=True)
        places = np.flatnonzero(is_first)
        for place in np.setdiff1d(places, places[counted]).tolist():
            file, line = self._origins[2 * order[place] : 2 * order[place] + 2]
            fills = f"fills {rows['first'][place]} to {rows['last'][place]} stand under a lower id already"
            told.leave_out(LeftOut(files[file], line, f"{rows['id'][place]},...", fills))
            is_first[place] = False


class _Numbers:
    """Decimals as integers and how many decimals each had."""

    def __init__(self) -> None:
        self._digits, self._decimals = array("q"), array("b")

    def add(self, number: Number) -> None:
        self._digits.append(number.digits)
        self._decimals.append(number.decimals)

    @property
    def decimals(self) -> int:
        """The decimals that are needed for all of them."""
        if not self._decimals:
            return 0
        decimals = max(self._decimals)
        if decimals != PADDED:
            return decimals
        digits = np.frombuffer(self._digits, np.int64)
        padded = digits[np.frombuffer(self._decimals, np.int8) == PADDED]
        shorter = max((number for number in set(self._decimals) if number != PADDED), default=0)
        while decimals > shorter and not (padded % 10).any():
            padded, decimals = padded // 10, decimals - 1
        return decimals

    def scaled(self, decimals: int, symbol: str) -> NDArray[np.int64]:
        """Return all of them in units of 10**-decimals. Raises RecordingError if they do not fit 64 bits."""
        digits = np.frombuffer(self._digits, np.int64)
        more = decimals - np.frombuffer(self._decimals, np.int8).astype(np.int64)
        if (digits * 10.0**more > 9e18).any():
            raise RecordingError(f"the numbers of {symbol} have more digits than fit 64 bits")
        scaled: NDArray[np.int64] = np.where(
            more >= 0, digits * 10 ** np.maximum(more, 0), digits // 10 ** np.maximum(-more, 0)
        )
        return scaled


class Recording:
    """All events of some files, in order."""

    def __init__(self, paths: list[str]) -> None:
        """Read files. Raises RecordingError."""
        self.streams: list[Stream] = []
        self.told = Told()
        self._places: dict[str, int] = {}
        self._files: list[str] = []
        for path in paths:
            self._read(Path(path))
        if not self.streams:
            first = self.told.left_out[0] if self.told.left_out else None
            why = f"; {first.file} line {first.line}: {first.reason}" if first else ""
            raise RecordingError(f"nothing in {', '.join(paths) or 'no file'}{why}")
        self.instruments = {
            name: self._finish(name) for name in dict.fromkeys(s.symbol for s in self.streams if s.kind)
        }
        for stream in self.streams:
            if not stream.kind:
                stream.finish(0, 0, self._files, self.told)
        if not self.instruments:
            raise RecordingError(f"no trades in {', '.join(paths)}")
        times = np.concatenate([stream.times for stream in self.streams])
        order = np.argsort(times, kind="stable")
        self.times = times[order]
        """int64[n]: when each event left the exchange, ascending."""
        counts = [len(stream.times) for stream in self.streams]
        self.stream_of = np.repeat(np.arange(len(self.streams), dtype=np.int32), counts)[order]
        """int32[n]: whose it is, an index into `streams`. The k-th event of a stream is its k-th message."""
        self._check_pauses()
        self._tell()

    def _finish(self, symbol: str) -> Instrument:
        streams = [stream for stream in self.streams if stream.symbol == symbol and stream.kind]
        price = max(stream.decimals[0] for stream in streams)
        quantity = max(stream.decimals[1] for stream in streams)
        for stream in streams:
            stream.finish(price, quantity, self._files, self.told)
        return Instrument(symbol=symbol, price_decimals=price, quantity_decimals=quantity)

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
                            self.told.leave_out(LeftOut(name, number, beginning, str(error)))
                            continue
                        if event is not None:
                            self._stream(event).add(event, len(self._files) - 1, number)
                        count += 1
                        if count % 65_536 == 0 and time.monotonic() - said > PROGRESS_S:
                            said = time.monotonic()
                            log.info("reading %s: %d lines in %.0f s", path.name, count, said - began)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise RecordingError(f"cannot read {path}: {error}") from error

    def _stream(self, event: Event) -> Stream:
        place = self._places.get(event.stream)
        if place is None:
            place = self._places[event.stream] = len(self.streams)
            self.streams.append(Stream(event.stream, event.symbol, event.kind, event.message is None))
        return self.streams[place]

    def _check_pauses(self) -> None:
        pauses = np.diff(self.times)
        if len(pauses) and int(pauses.max()) > PAUSE_MAX_MS:
            days = int(pauses.max()) // 86_400_000
            raise RecordingError(
                f"nothing happens for {days} days, and each of their minutes would be a kline: give what is before and"
                " what is after separately"
            )

    def _tell(self) -> None:
        told = self.told
        for line in told.left_out:
            log.warning("left out: %s line %d, %r: %s", line.file, line.line, line.beginning, line.reason)
        for again in told.contradicting:
            log.warning(
                "id %d of %s again with another trade: %s line %d", again.id, again.symbol, again.file, again.line
            )
        counts = (told.left_out_count, told.contradicting_count, told.repeated)
        if any(counts):
            log.warning("%d lines left out, %d with an id that another trade has, %d repeated", *counts)
