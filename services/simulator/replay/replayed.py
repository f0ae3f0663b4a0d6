"""A recording as a market: its frames go out again in their order, and REST knows what has gone out so far.

Decides when the recording may begin, how far it has come and when it is over. Klines are made of the trades that went
out: of single ones where the recording holds them, which is what the exchange does, else of aggregates. What has gone
out is read again where it lies, a block at a time.

A recording of several stretches is played one at a time: who asks knows nothing of those before, neither trades nor
klines nor symbols.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import date
from types import MappingProxyType
from typing import Any

import numpy as np

from services.simulator.frames import TICKER_STREAM, Chunk, TradeTemplate, ticker_row
from services.simulator.grid import MINUTE_MS, end_time, open_time
from services.simulator.replay.recording import Recording, RecordingError
from services.simulator.replay.stream import Stream
from services.simulator.rows import (
    AGG_ROW,
    KLINE_ROW,
    MARKET,
    TRADE_ROW,
    DayStats,
    Instrument,
    Rows,
    flat_rows,
    joined,
    merge,
)
from services.simulator.venue import Leaving
from services.simulator.writing import AggWriter

__all__ = ["RecordingError", "ReplayedMarket"]

EVENTS_MAX = 20_000
"""Events in one go, after which slow readers are waited for."""
AFTERWARDS_MS = 3_000
"""How far into the next minute time goes on after the last event, so that its klines close."""


class ReplayedMarket:
    def __init__(self, paths: list[str], first_days: Mapping[str, date] = MappingProxyType({})) -> None:
        """Read the recordings. `first_days`: where 3d klines of symbols count from. Raises RecordingError."""
        self._recording = Recording(paths, first_days)
        self._streams = self._recording.streams
        self.report = self._recording.report
        self._by_kind: dict[tuple[str, str], int] = {
            (stream.symbol, stream.kind): index for index, stream in enumerate(self._streams) if stream.kind
        }
        self._writers = {
            index: _writer(stream, self._recording.instruments[stream.symbol])
            for index, stream in enumerate(self._streams)
            if not stream.as_received
        }
        self.stretches = len(self._recording.stretches)
        self.begin(0)

    def begin(self, index: int) -> None:
        """Begin a stretch, counted from 0, as if there were no other."""
        stretch = self._recording.stretches[index]
        self.stretch = index
        self._begins = stretch.begins
        self._sent = list(stretch.begins)
        """How many events of each stream have left, with those of the stretches before."""
        spans = zip(self._streams, stretch.begins, stretch.ends, strict=True)
        traded = {stream.symbol for stream, begin, end in spans if stream.kind and end > begin}
        self._instruments = {name: known for name, known in self._recording.instruments.items() if name in traded}
        self._played = {name: _Played(instrument) for name, instrument in self._instruments.items()}
        self._events = self._recording.events(stretch)
        self._times, self._stream_of = next(self._events)
        """Some events ahead: when they leave, and whose they are."""
        self._event = 0
        self.span = stretch.span
        """When the first and the last event left."""
        self.now = self.started = self.span[0] - 1
        self.end_time = (self.span[1] // MINUTE_MS + 1) * MINUTE_MS + AFTERWARDS_MS
        self.trades = 0
        self._changed: set[str] = set()

    @property
    def ended(self) -> bool:
        return self.now >= self.end_time

    @property
    def pause(self) -> int:
        """For how long from now on nothing happens, ms; 0 where nothing follows."""
        return int(self._times[self._event]) - self.now if self._event < len(self._times) else 0

    def has_subscribers(self, wanted: Container[str]) -> bool:
        """Say whether every symbol's trades have a subscriber."""
        return all(
            any(stream.name in wanted for stream in self._streams if stream.symbol == symbol and stream.kind)
            for symbol in self._instruments
        )

    def instruments(self) -> list[Instrument]:
        return list(self._instruments.values())

    def find(self, symbol: str) -> Instrument | None:
        return self._instruments.get(symbol)

    def status(self, instrument: Instrument) -> str:
        return "TRADING"

    # What may be asked for: what has left so far.

    def _executed(self, symbol: str) -> str:
        """Return the kind of stream that a symbol's klines are made of."""
        return "trade" if (symbol, "trade") in self._by_kind else "aggTrade"

    def _blocks(
        self,
        symbol: str,
        kind: str,
        begin: int = 0,
        since: int | None = None,
        until: int | None = None,
        backwards: bool = False,
    ) -> Iterator[Rows]:
        """Yield a symbol's trades that happened between two times, void ones left out, block by block."""
        index = self._by_kind.get((symbol, kind))
        if index is None:
            return
        begin = max(begin, self._begins[index])
        for rows in self._streams[index].blocks(begin, self._sent[index], since, until, backwards):
            kept = np.ones(len(rows), np.bool_) if kind == "aggTrade" else rows["kind"] == MARKET
            if since is not None:
                kept &= rows["time"] >= since
            if until is not None:
                kept &= rows["time"] <= until
            yield rows[kept]

    def first_time(self, instrument: Instrument) -> int:
        first = self._played[instrument.symbol].first_time
        return first // MINUTE_MS * MINUTE_MS if first else self.now

    def klines(self, instrument: Instrument, interval: str, start: int, until: int) -> Rows:
        start = open_time(interval, start, instrument.grid_3d)
        until = max(until, start)
        # The last one is whole, as far as it has come.
        end = min(self.now, end_time(interval, open_time(interval, until, instrument.grid_3d)) - 1)
        symbol, kind = instrument.symbol, self._executed(instrument.symbol)
        # Trades may be ahead of the event that has moved the time.
        minute_end = end // MINUTE_MS * MINUTE_MS + MINUTE_MS - 1
        traded = [_minutes(rows) for rows in self._blocks(symbol, kind, 0, start, minute_end)]
        minutes = _merged_minutes(joined(traded))
        before = next((rows for rows in self._blocks(symbol, kind, 0, None, start - 1, True) if len(rows)), None)
        if before is not None:
            minutes = joined([_minutes(before)[-1:], minutes])
        if not len(minutes):
            return minutes
        opens = np.arange(max(start, int(minutes["open_time"][0])), end + 1, MINUTE_MS)
        filled = flat_rows(opens, minutes["close"][np.searchsorted(minutes["open_time"], opens, side="right") - 1])
        if len(filled):
            traded_in = minutes[minutes["open_time"] >= start]
            filled[(traded_in["open_time"] - filled["open_time"][0]) // MINUTE_MS] = traded_in
        merged = filled if interval == "1m" else merge(filled, interval, instrument.grid_3d)
        return merged[(merged["open_time"] >= start) & (merged["open_time"] <= until)]

    def agg_trades(
        self, instrument: Instrument, from_id: int | None, start: int | None, end: int | None, limit: int
    ) -> Rows:
        since = start if from_id is None else None
        return self._page(instrument.symbol, "aggTrade", from_id, since, end, limit)

    def single_trades(self, instrument: Instrument, from_id: int | None, limit: int) -> Rows:
        return self._page(instrument.symbol, "trade", from_id, None, None, limit)

    def _page(
        self, symbol: str, kind: str, from_id: int | None, since: int | None, until: int | None, limit: int
    ) -> Rows:
        """Return the first trades from an id or a time on, else the last."""
        newest = from_id is None and since is None
        index = self._by_kind.get((symbol, kind))
        begin = self._streams[index].first_from(from_id) if index is not None and from_id is not None else 0
        parts: list[Rows] = [np.empty(0, AGG_ROW if kind == "aggTrade" else TRADE_ROW)]
        for rows in self._blocks(symbol, kind, begin, since, until, newest):
            parts.append(rows)
            if sum(map(len, parts)) >= limit:
                break
        if newest:
            return np.concatenate(parts[::-1])[-limit:]
        return np.concatenate(parts)[:limit]

    def trades_since(self, instrument: Instrument, kind: str, since: int) -> Iterator[Rows]:
        index = self._by_kind.get((instrument.symbol, kind))
        if index is not None:
            for rows in self._streams[index].blocks(self._begins[index], self._sent[index], since):
                yield rows[rows["time"] >= since]

    def last_ids(self) -> dict[str, dict[str, int]]:
        ids: dict[str, dict[str, int]] = {symbol: {} for symbol in self._instruments}
        for (symbol, kind), index in self._by_kind.items():
            begin, sent = self._begins[index], self._sent[index]
            if symbol in ids:
                ids[symbol][kind] = int(self._streams[index].rows(sent - 1, sent)["id"][0]) if sent > begin else -1
        return ids

    def day_stats(self) -> list[DayStats]:
        """Return what was traded since the recording began."""
        return [played.stats() for played in self._played.values()]

    # What leaves.

    def follow(self, wanted: Iterable[str]) -> None:
        """A recording does not depend on its subscribers."""

    def advance(self, now: int, wanted: Container[str]) -> list[Leaving]:
        """Send what left until `now`, or as much of it as goes in one go; `self.now` says how far it came."""
        first = self._event
        self._event = min(int(np.searchsorted(self._times, now, side="right")), first + EVENTS_MAX)
        streams = self._stream_of[first : self._event]
        reached = int(self._times[self._event - 1]) if len(streams) else self.now
        if self._event == len(self._times):
            self._times, self._stream_of = next(self._events, (self._times[:0], self._stream_of[:0]))
            self._event = 0
        ahead = self._times[self._event : self._event + 1]
        self.now = max(self.now, reached) if len(ahead) and ahead[0] <= now else now
        if not len(streams):
            return []
        chunks: list[Leaving] = []
        # Neighbours of one stream go together.
        starts = np.flatnonzero(np.diff(streams, prepend=-1))
        ends = [*starts[1:].tolist(), len(streams)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            index = int(streams[start])
            stream, begin = self._streams[index], self._sent[index]
            self._sent[index] += end - start
            if stream.kind:
                self._note(stream, begin, begin + end - start)
            if stream.name in wanted:
                chunks.append(Chunk(stream.name, self._messages(stream, index, begin, begin + end - start)))
        return chunks

    def _note(self, stream: Stream, begin: int, end: int) -> None:
        self._changed.add(stream.symbol)
        self.trades += end - begin
        if stream.kind == self._executed(stream.symbol):
            self._played[stream.symbol].add(stream.rows(begin, end))

    def _messages(self, stream: Stream, index: int, begin: int, end: int) -> list[bytes]:
        if stream.as_received:
            return stream.messages(begin, end)
        return self._writers[index](stream.rows(begin, end))

    def ticker(self) -> Chunk | None:
        """Return the changed symbols; while nothing happens, one of them, because the exchange is never silent."""
        symbols = sorted(self._changed) or sorted(self._instruments)[:1]
        self._changed.clear()
        rows = [ticker_row(self._played[symbol].stats(), self.now) for symbol in symbols]
        return Chunk(TICKER_STREAM, [f"[{','.join(rows)}]".encode()])


class _Played:
    """What was traded of a symbol so far."""

    def __init__(self, instrument: Instrument) -> None:
        self._stats = DayStats(instrument, 0, 0, 0, 0, 0, 0, 0)
        self.first_time = 0
        """The earliest time of a trade; 0 before there is any."""

    def add(self, rows: Rows) -> None:
        """Take AGG_ROW[n] or TRADE_ROW[n]."""
        if "kind" in rows.dtype.names:
            rows = rows[rows["kind"] == MARKET]
        if not len(rows):
            return
        earliest = int(rows["time"].min())
        before = self._stats if self.first_time else None
        self.first_time = min(self.first_time or earliest, earliest)
        price, quantity = rows["price"], rows["quantity"]
        instrument, _, _, _, _, volume, quote_volume, trades = self._stats
        self._stats = DayStats(
            instrument,
            before.open if before else int(price[0]),
            max(before.high, int(price.max())) if before else int(price.max()),
            min(before.low, int(price.min())) if before else int(price.min()),
            int(price[-1]),
            volume + int(quantity.sum()),
            quote_volume + sum((price * quantity).tolist()),
            trades + int(_counts(rows).sum()),
        )

    def stats(self) -> DayStats:
        return self._stats


def _writer(stream: Stream, instrument: Instrument) -> Callable[[Rows], list[bytes]]:
    """Return what writes an archive's rows as the exchange would have sent them."""
    if stream.kind == "trade":
        return TradeTemplate(instrument).messages
    writer = AggWriter([instrument])
    return lambda rows: writer.messages(rows, np.zeros(len(rows), np.int64))


def _counts(rows: Rows) -> Any:
    """Return how many trades each row stands for."""
    return rows["last"] - rows["first"] + 1 if "last" in rows.dtype.names else np.ones(len(rows), np.int64)


def _minutes(rows: Rows) -> Rows:
    """Return the 1m klines of executed trades in the order of their ids, without those in which nobody traded."""
    single = np.zeros(len(rows), KLINE_ROW)
    single["open_time"] = rows["time"] // MINUTE_MS * MINUTE_MS
    for name in ("open", "high", "low", "close"):
        single[name] = rows["price"]
    bought = ~rows["maker"]
    single["volume"] = rows["quantity"]
    single["quote_volume"] = rows["quantity"] * rows["price"]
    single["taker_buy_volume"] = rows["quantity"] * bought
    single["taker_buy_quote_volume"] = single["quote_volume"] * bought
    single["count"] = _counts(rows)
    return _merged_minutes(single)


def _merged_minutes(rows: Rows) -> Rows:
    """Return 1m klines ascending, each once; of each, what comes first among the rows is its open."""
    if (np.diff(rows["open_time"]) < 0).any():
        rows = rows[np.argsort(rows["open_time"], kind="stable")]
    return merge(rows, "1m", 0)
