"""A recording as a market: its frames go out again in their order, and REST knows what has gone out so far.

Decides when the recording may begin, how far it has come and when it is over. Klines are made of the trades that went
out: of single ones where the recording holds them, which is what the exchange does, else of aggregates.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import numpy as np

from services.simulator.frames import TICKER_STREAM, Chunk, TradeTemplate, ticker_row
from services.simulator.grid import MINUTE_MS, open_time
from services.simulator.recording import Recording, RecordingError, Stream
from services.simulator.rows import AGG_ROW, KLINE_ROW, MARKET, TRADE_ROW, DayStats, Instrument, Rows, flat_rows, merge
from services.simulator.venue import Leaving
from services.simulator.writing import AggWriter

__all__ = ["RecordingError", "ReplayedMarket"]

EVENTS_MAX = 20_000
"""Events in one go, after which slow readers are waited for."""
AFTERWARDS_MS = 3_000
"""How far into the next minute time goes on behind the last event, so that its klines close."""


class ReplayedMarket:
    def __init__(self, paths: list[str]) -> None:
        """Read the recordings. Raises RecordingError."""
        recording = Recording(paths)
        self._times, self._stream_of = recording.times, recording.stream_of
        self._streams = recording.streams
        self._instruments = recording.instruments
        self._by_kind: dict[tuple[str, str], int] = {
            (stream.symbol, stream.kind): place for place, stream in enumerate(self._streams) if stream.kind
        }
        self.left_out = recording.told
        self._writers = {
            place: _writer(stream, self._instruments[stream.symbol])
            for place, stream in enumerate(self._streams)
            if stream.messages is None
        }
        self._sent = np.zeros(len(self._streams), np.int64)
        """How many events of each stream have left."""
        self._event = 0
        self.now = self.started = int(self._times[0]) - 1
        self.end_time = (int(self._times[-1]) // MINUTE_MS + 1) * MINUTE_MS + AFTERWARDS_MS
        self.span = int(self._times[0]), int(self._times[-1])
        """When the first and the last event left."""
        self.trades = 0
        self._changed: set[str] = set()

    @property
    def ended(self) -> bool:
        return self.now >= self.end_time

    def heard_by(self, wanted: Container[str]) -> bool:
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

    # What may be asked for.

    def _rows(self, symbol: str, kind: str) -> Rows:
        """Return what has left on a symbol's stream so far."""
        place = self._by_kind.get((symbol, kind))
        if place is None:
            return np.empty(0, AGG_ROW if kind == "aggTrade" else TRADE_ROW)
        return self._streams[place].rows[: int(self._sent[place])]

    def _executed(self, symbol: str) -> tuple[Rows, Any]:
        """Return (trades that count for klines, how many each stands for)."""
        if (symbol, "trade") in self._by_kind:
            rows = self._rows(symbol, "trade")
            rows = rows[rows["kind"] == MARKET]
            return rows, np.ones(len(rows), np.int64)
        rows = self._rows(symbol, "aggTrade")
        return rows, rows["last"] - rows["first"] + 1

    def first_time(self, instrument: Instrument) -> int:
        rows, _ = self._executed(instrument.symbol)
        return int(rows["time"].min()) // MINUTE_MS * MINUTE_MS if len(rows) else self.now

    def klines(self, instrument: Instrument, interval: str, start: int, until: int) -> Rows:
        rows, counts = self._executed(instrument.symbol)
        if not len(rows):
            return np.empty(0, KLINE_ROW)
        start = open_time(interval, start, instrument.grid_3d)
        minutes = _minutes(rows, counts, min(self.now, max(until, start)))
        merged = minutes if interval == "1m" else merge(minutes, interval, instrument.grid_3d)
        return merged[(merged["open_time"] >= start) & (merged["open_time"] <= until)]

    def agg_trades(
        self, instrument: Instrument, from_id: int | None, start: int | None, end: int | None, limit: int
    ) -> Rows:
        rows = self._rows(instrument.symbol, "aggTrade")
        if end is not None:
            rows = rows[rows["time"] <= end]
        if from_id is not None:
            return rows[rows["id"] >= from_id][:limit]
        if start is not None:
            return rows[rows["time"] >= start][:limit]
        return rows[-limit:]

    def single_trades(self, instrument: Instrument, from_id: int | None, limit: int) -> Rows:
        rows = self._rows(instrument.symbol, "trade")
        rows = rows[rows["kind"] == MARKET]
        return rows[-limit:] if from_id is None else rows[rows["id"] >= from_id][:limit]

    def told(self, instrument: Instrument, kind: str, since: int) -> Iterator[Rows]:
        rows = self._rows(instrument.symbol, kind)
        yield rows[rows["time"] >= since]

    def last_ids(self) -> dict[str, dict[str, int]]:
        ids: dict[str, dict[str, int]] = {symbol: {} for symbol in self._instruments}
        for symbol, kind in self._by_kind:
            rows = self._rows(symbol, kind)
            ids[symbol][kind] = int(rows["id"].max()) if len(rows) else -1
        return ids

    def day_stats(self) -> list[DayStats]:
        return [self._stats(instrument) for instrument in self._instruments.values()]

    def _stats(self, instrument: Instrument) -> DayStats:
        """Return what was traded since the recording began."""
        rows, counts = self._executed(instrument.symbol)
        if not len(rows):
            return DayStats(instrument, 0, 0, 0, 0, 0, 0, 0)
        price, quantity = rows["price"], rows["quantity"]
        return DayStats(
            instrument,
            int(price[0]),
            int(price.max()),
            int(price.min()),
            int(price[-1]),
            int(quantity.sum()),
            int((price * quantity).sum()),
            int(counts.sum()),
        )

    # What leaves.

    def follow(self, wanted: Iterable[str]) -> None:
        """A recording is what it is, whoever listens."""

    def advance(self, now: int, wanted: Container[str]) -> list[Leaving]:
        """Send what left until `now`, or as much of it as goes in one go; `self.now` says how far it came."""
        first = self._event
        last = int(np.searchsorted(self._times, now, side="right"))
        self._event = min(last, first + EVENTS_MAX)
        self.now = now if self._event == last else max(self.now, int(self._times[self._event - 1]))
        streams = self._stream_of[first : self._event]
        if not len(streams):
            return []
        chunks: list[Leaving] = []
        # Neighbours of one stream go together.
        starts = np.flatnonzero(np.diff(streams, prepend=-1))
        ends = [*starts[1:].tolist(), len(streams)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            place = int(streams[start])
            stream, begin = self._streams[place], int(self._sent[place])
            self._sent[place] += end - start
            if stream.kind:
                self._changed.add(stream.symbol)
                self.trades += end - start
            if stream.name in wanted:
                chunks.append(Chunk(stream.name, self._messages(stream, place, begin, begin + end - start)))
        return chunks

    def _messages(self, stream: Stream, place: int, start: int, end: int) -> list[bytes]:
        if stream.messages is not None:
            return stream.messages[start:end]
        return self._writers[place](stream.rows[start:end])

    def ticker(self) -> Chunk | None:
        """Return the changed symbols; while nothing happens, one of them, because the exchange is never silent."""
        symbols = sorted(self._changed) or sorted(self._instruments)[:1]
        self._changed.clear()
        rows = [ticker_row(self._stats(self._instruments[symbol]), self.now) for symbol in symbols]
        return Chunk(TICKER_STREAM, [f"[{','.join(rows)}]".encode()])


def _writer(stream: Stream, instrument: Instrument) -> Callable[[Rows], list[bytes]]:
    """Return what writes an archive's rows as the exchange would have sent them."""
    if stream.kind == "trade":
        return TradeTemplate(instrument).messages
    writer = AggWriter([instrument])
    return lambda rows: writer.messages(rows, np.zeros(len(rows), np.int64))


def _minutes(rows: Rows, counts: Any, until: int) -> Rows:
    """Return the 1m klines of trades, with flat ones where nobody traded, to the minute of `until`."""
    if (np.diff(rows["time"]) < 0).any():
        order = np.argsort(rows["time"], kind="stable")
        rows, counts = rows[order], counts[order]
    kept = rows["time"] <= max(until // MINUTE_MS * MINUTE_MS + MINUTE_MS - 1, int(rows["time"][0]))
    rows, counts = rows[kept], counts[kept]
    single = np.empty(len(rows), KLINE_ROW)
    single["open_time"] = rows["time"]
    for name in ("open", "high", "low", "close"):
        single[name] = rows["price"]
    bought = ~rows["maker"]
    single["volume"] = rows["quantity"]
    single["quote_volume"] = rows["quantity"] * rows["price"]
    single["taker_buy_volume"] = rows["quantity"] * bought
    single["taker_buy_quote_volume"] = single["quote_volume"] * bought
    single["count"] = counts
    traded = merge(single, "1m", 0)
    first = int(traded["open_time"][0])
    minutes = np.arange(first, max(until, int(traded["open_time"][-1])) + 1, MINUTE_MS)
    before = np.searchsorted(traded["open_time"], minutes, side="right") - 1
    filled = flat_rows(minutes, traded["close"][before])
    filled[(traded["open_time"] - first) // MINUTE_MS] = traded
    return filled
