"""Recordings as they lie on disk: frames as received (`.jsonl`, `.jsonl.gz`) and the archive's aggTrades (CSV, zipped).

Decides how a line is read, which decimals a symbol has, and in which order events happened: that of the file, files
among each other by time. A line that is neither is counted and left out. Knows nothing of who asks for it.
"""

import gzip
import io
import logging
import re
import time
import zipfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np

from services.simulator.rows import AGG_ROW, KINDS, TRADE_ROW, Instrument, Rows

MICROSECONDS = 10**14
"""A time beyond this is in µs, as spot's archives are since 2025 (protocol §7)."""
PADDED = 8
"""Spot writes every number with this many decimals; those that are always zero say nothing."""
PROGRESS_S = 2.0
_ARCHIVE = re.compile(r"([^\W_]+?(?:_[0-9]+)?)-aggTrades", re.IGNORECASE)

log = logging.getLogger(__name__)


class RecordingError(ValueError):
    """A file that is no recording, in words."""


class _Frame(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Event(msgspec.Struct):
    """A trade of either kind; other events have no more than a time."""

    e: str = ""
    E: int = 0
    s: str = ""
    T: int = 0
    p: str = "0"
    q: str = "0"
    nq: str = ""
    a: int = 0
    t: int = 0
    f: int = 0
    l: int = 0  # noqa: E741
    m: bool = False
    X: str = "MARKET"


class Stream:
    """One stream of a recording, in its order."""

    def __init__(self, name: str, symbol: str, kind: str) -> None:
        """`kind`: aggTrade, trade, or empty for one that is only sent again."""
        self.name = name
        self.symbol = symbol
        self.kind = kind
        self.messages: list[bytes] | None = []
        """What was received, word by word; None for an archive, which is written anew."""
        self.rows: Rows = np.empty(0, AGG_ROW if kind == "aggTrade" else TRADE_ROW)
        self._fields = array("q")
        self._price, self._quantity, self._plain = _Numbers(), _Numbers(), _Numbers()

    def add_aggregate(self, event_time: int, event: _Event) -> None:
        self._fields.extend((event.a, event.f, event.l, event.T, event_time, event.m))
        self._price.add(event.p)
        self._quantity.add(event.q)
        self._plain.add(event.nq or event.q)

    def add_trade(self, event_time: int, event: _Event) -> None:
        kind = KINDS.index(event.X) if event.X in KINDS else 1
        self._fields.extend((event.t, event.T, event_time, kind, event.m))
        self._price.add(event.p)
        self._quantity.add(event.q)

    @property
    def decimals(self) -> tuple[int, int]:
        return self._price.decimals, self._quantity.decimals

    def finish(self, price_decimals: int, quantity_decimals: int) -> None:
        """Turn what was read into rows of these decimals."""
        names: tuple[str, ...] = ("id", "first", "last", "time", "event_time", "maker")
        if self.kind == "trade":
            names = ("id", "time", "event_time", "kind", "maker")
        fields = np.frombuffer(self._fields, np.int64).reshape(-1, len(names)) if self._fields else np.empty((0, 6))
        self.rows = np.empty(len(fields), self.rows.dtype)
        for place, name in enumerate(names if len(fields) else ()):
            self.rows[name] = fields[:, place]
        self.rows["price"] = self._price.scaled(price_decimals)
        self.rows["quantity"] = self._quantity.scaled(quantity_decimals)
        if self.kind == "aggTrade":
            self.rows["plain_quantity"] = self._plain.scaled(quantity_decimals)
        self._fields = array("q")
        self._price, self._quantity, self._plain = _Numbers(), _Numbers(), _Numbers()


class _Numbers:
    """Decimal texts as integers and how many decimals each had."""

    def __init__(self) -> None:
        self._mantissas, self._lengths = array("q"), array("b")

    def add(self, text: str) -> None:
        whole, _, part = text.partition(".")
        self._mantissas.append(int(whole + part))
        self._lengths.append(len(part))

    @property
    def decimals(self) -> int:
        if not self._lengths:
            return 0
        decimals = max(self._lengths)
        if decimals != PADDED:
            return decimals
        values = self.scaled(decimals)
        while decimals and not (values % 10).any():
            values, decimals = values // 10, decimals - 1
        return decimals

    def scaled(self, decimals: int) -> Any:
        mantissas = np.array(self._mantissas, np.int64)
        more = decimals - np.array(self._lengths, np.int64)
        return np.where(more >= 0, mantissas * 10 ** np.maximum(more, 0), mantissas // 10 ** np.maximum(-more, 0))


class Recording:
    """All events of some files, in order."""

    def __init__(self, paths: list[str]) -> None:
        """Read files. Raises RecordingError."""
        self.streams: list[Stream] = []
        self.refused = 0
        self._places: dict[str, int] = {}
        times, streams = [], []
        for path in paths:
            file_times, file_streams = array("q"), array("i")
            self._read(Path(path), file_times, file_streams)
            # An event that was received later happened no earlier, whatever its time says.
            times.append(np.maximum.accumulate(np.array(file_times, np.int64)))
            streams.append(np.array(file_streams, np.int64))
        if not sum(len(part) for part in times):
            raise RecordingError(f"nothing in {', '.join(paths) or 'no file'}")
        order = np.argsort(np.concatenate(times), kind="stable")
        self.times = np.concatenate(times)[order]
        """int64[n]: when each event left the exchange, ascending."""
        self.stream_of = np.concatenate(streams)[order]
        """int64[n]: whose it is, a place in `streams`. The k-th event of a stream is its k-th message."""
        self.instruments = {
            name: self._finish(name) for name in dict.fromkeys(s.symbol for s in self.streams if s.kind)
        }
        if not self.instruments:
            raise RecordingError(f"no trades in {', '.join(paths)}")
        if self.refused:
            log.warning("%d lines of the recording are nothing that is known, and left out", self.refused)

    def _finish(self, symbol: str) -> Instrument:
        streams = [stream for stream in self.streams if stream.symbol == symbol and stream.kind]
        price = max(stream.decimals[0] for stream in streams)
        quantity = max(stream.decimals[1] for stream in streams)
        for stream in streams:
            stream.finish(price, quantity)
        return Instrument(symbol=symbol, price_decimals=price, quantity_decimals=quantity)

    def _read(self, path: Path, times: "array[int]", streams: "array[int]") -> None:
        began = said = time.monotonic()
        try:
            with _lines(path) as (name, lines):
                add = self._csv_line(name) if ".csv" in name.lower() else self._frame_line
                for number, line in enumerate(lines):
                    if not line.strip():
                        continue
                    try:
                        event = add(line)
                    except ValueError:
                        # The first line of an archive may be its header.
                        self.refused += number > 0 or add == self._frame_line
                        continue
                    times.append(event[0])
                    streams.append(event[1])
                    if number % 65_536 == 0 and time.monotonic() - said > PROGRESS_S:
                        said = time.monotonic()
                        log.info("reading %s: %d events in %.0f s", path.name, len(times), said - began)
        except (OSError, EOFError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise RecordingError(f"cannot read {path}: {error}") from error

    def _stream(self, name: str, symbol: str, kind: str) -> int:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = len(self.streams)
            self.streams.append(Stream(name, symbol, kind))
        return place

    def _frame_line(self, line: str) -> tuple[int, int]:
        frame = _frames.decode(line)
        data = bytes(frame.data)
        event = _events.decode(data) if data[:1] == b"{" else _Event()
        kind = event.e if event.e in ("aggTrade", "trade") else ""
        place = self._stream(frame.stream, event.s, kind)
        stream = self.streams[place]
        if kind == "aggTrade":
            stream.add_aggregate(_ms(event.E or event.T), _in_ms(event))
        elif kind == "trade":
            stream.add_trade(_ms(event.E or event.T), _in_ms(event))
        if stream.messages is not None:
            stream.messages.append(data)
        return _ms(event.E or event.T), place

    def _csv_line(self, name: str) -> Any:
        found = _ARCHIVE.search(name)
        if found is None:
            raise RecordingError(f"{name}: an archive is called <SYMBOL>-aggTrades-<date>")
        instrument = Instrument(symbol=found[1].upper(), price_decimals=0, quantity_decimals=0)
        place = self._stream(f"{instrument.stream_base}@aggTrade", instrument.symbol, "aggTrade")
        stream = self.streams[place]
        stream.messages = None

        def add(line: str) -> tuple[int, int]:
            a, p, q, f, last, at, maker, *_ = line.rstrip("\r\n").split(",")
            happened = _ms(int(at))
            event = _Event(a=int(a), p=p, q=q, f=int(f), l=int(last), T=happened, m=maker.lower() == "true")
            stream.add_aggregate(happened + 5, event)
            return happened + 5, place

        return add


_frames = msgspec.json.Decoder(_Frame)
_events = msgspec.json.Decoder(_Event)


def _ms(at: int) -> int:
    return at // 1000 if at > MICROSECONDS else at


def _in_ms(event: _Event) -> _Event:
    event.T = _ms(event.T)
    return event


@contextmanager
def _lines(path: Path) -> Iterator[tuple[str, TextIO]]:
    """Open a recording. Yield (its name, which says what it is; its lines)."""
    name = path.name
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            inside = [entry for entry in archive.namelist() if entry.lower().endswith((".csv", ".jsonl"))]
            if not inside:
                raise RecordingError(f"{path}: no .csv or .jsonl in it")
            with archive.open(inside[0]) as file:
                yield inside[0], io.TextIOWrapper(file, "utf-8")
    elif name.lower().endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield name, file
    elif name.lower().endswith((".csv", ".jsonl")):
        with path.open(encoding="utf-8") as file:
            yield name, file
    else:
        raise RecordingError(f"{path}: neither .jsonl nor .csv, plain, .gz or .zip")
