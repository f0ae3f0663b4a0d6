"""One stream of a recording: gathered as it is read, then its events in order, on disk.

Decides which of a stream's events count: each id once, in the order of ids; the first of two that contradict each
other; no aggregate whose fills stand under a lower id. Knows no other stream, no file and no line but by number.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.simulator.replay.reading import Event
from services.simulator.replay.spool import BLOCK, Part, Spool, merged
from services.simulator.rows import AGG_ROW, TRADE_ROW, Rows

PADDED = 8
"""Spot writes every number with this many decimals; those that are always zero say nothing."""
NUMBER_MAX = 9_000_000_000_000_000_000
"""A trade's price, its quantity and their product, in units of the last decimals, must fit 64 bits."""
TOO_MUCH = NUMBER_MAX + 1
"""What stands for a number that does not."""
REPORTED_MAX = 20
"""Lines and ids that are reported; all are counted."""
FALLEN_MS = 100 * 60_000
"""A trade so much older than one with a lower id belongs in a kline that whoever builds them may have put away."""
TEXTS_MAX = 2**23
"""Bytes of messages that are read in one go, with what others' lie between."""

_EVENT = np.dtype(
    [(name, "<i8") for name in ("id", "first", "last", "time", "event_time", "price", "quantity", "plain_quantity")]
    + [("offset", "<i8"), ("length", "<i4"), ("file", "<i4"), ("line", "<i4")]
    + [(name, "i1") for name in ("price_decimals", "quantity_decimals", "plain_decimals", "kind", "maker")]
)
"""An event as it was read: numbers as they were written, and where its message lies and its line stood."""
_PACK = struct.Struct("<9q3i5b").pack
_EXTENT = np.dtype([("offset", np.int64), ("length", np.int64)])


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


class Fallen(NamedTuple):
    """A line whose trade is much older than one with a lower id."""

    symbol: str
    id: int
    time: int
    file: str
    line: int


class Report:
    """What of the files is in no event, and what may be in no kline."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self.left_out_count = 0
        self.repeated = 0
        """Lines whose trade is there already."""
        self.contradicting: list[Contradicting] = []
        self.contradicting_count = 0
        self.fallen: list[Fallen] = []
        self.fallen_count = 0

    def leave_out(self, line: LeftOut) -> None:
        self.left_out_count += 1
        if len(self.left_out) < REPORTED_MAX:
            self.left_out.append(line)

    def contradict(self, line: Contradicting) -> None:
        self.contradicting_count += 1
        if len(self.contradicting) < REPORTED_MAX:
            self.contradicting.append(line)

    def fall(self, line: Fallen) -> None:
        self.fallen_count += 1
        if len(self.fallen) < REPORTED_MAX:
            self.fallen.append(line)


class Spools:
    """Where the events of all streams lie."""

    def __init__(self) -> None:
        self.events = Spool(_EVENT)
        self.messages = Spool(np.uint8)
        self.extents = Spool(_EXTENT)
        self.times = Spool(np.int64)
        self.rows = {"aggTrade": Spool(AGG_ROW), "trade": Spool(TRADE_ROW)}


class Stream:
    def __init__(self, name: str, symbol: str, kind: str, spools: Spools) -> None:
        """`kind`: aggTrade, trade, or empty for one that is only sent again."""
        self.name = name
        self.symbol = symbol
        self.kind = kind
        self.as_received = True
        """Its messages can be sent again word by word; else some of it is an archive's, and all is written again."""
        self.price, self.quantity = _Decimals(), _Decimals()
        self._spools = spools
        self._gathered = bytearray()
        self._runs: list[Part] = []
        self._count = 0
        self._rows = self._extents = self.times = Part(spools.times, 0, 0)
        """`times`: int64[n], when each left the exchange; ascending, because who comes later by id left no earlier."""
        self._spans: list[tuple[int, int]] = []
        """The earliest and the latest time of each block of rows."""

    def __len__(self) -> int:
        return len(self.times)

    def add(self, event: Event, offset: int, file: int, line: int) -> None:
        """Take an event that stood in a line of a file, and whose message begins at `offset`."""
        self._count += 1
        message = event.message
        if message is None:
            self.as_received = False
        plain = event.plain_quantity or event.quantity
        self._gathered += _PACK(
            event.id if self.kind else self._count, event.first, event.last, event.time, event.event_time,
            event.price.digits, event.quantity.digits, plain.digits, offset, len(message or b""), file, line,
            event.price.decimals, event.quantity.decimals, plain.decimals, event.what, event.maker,
        )  # fmt: skip

    def put_away(self) -> None:
        """Write what was gathered. Raises NoSpace."""
        if not self._gathered:
            return
        events = np.frombuffer(self._gathered, _EVENT)
        self.price.note(events["price"], events["price_decimals"])
        self.quantity.note(events["quantity"], events["quantity_decimals"])
        spool = self._spools.events
        begin = len(spool)
        spool.append(events[np.argsort(events["id"], kind="stable")])
        self._runs.append(spool.since(begin))
        self._gathered = bytearray()

    def finish(self, price_decimals: int, quantity_decimals: int, files: list[str], report: Report) -> None:
        """Put all that was read in order, each once, with these decimals. Raises NoSpace."""
        self.put_away()
        decimals = price_decimals, quantity_decimals
        again = self._repeated_fills(decimals, files) if self.kind == "aggTrade" else np.zeros(0, np.int64)
        spools, rows_spool = self._spools, self._spools.rows.get(self.kind)
        begins = len(spools.times), len(spools.extents), len(rows_spool) if rows_spool is not None else 0
        left = newest = 0
        for rows, events in self._distinct(decimals, files, report):
            is_again = np.isin(rows["id"], again)
            is_huge = _is_huge(rows)
            for event in events[is_again | is_huge]:
                why = f"fills {event['first']} to {event['last']} stand under a lower id already"
                if event["id"] in rows["id"][is_huge]:
                    why = "its numbers, or their product, do not fit 64 bits"
                report.leave_out(LeftOut(files[event["file"]], int(event["line"]), f"{event['id']},...", why))
            rows, events = rows[~(is_again | is_huge)], events[~(is_again | is_huge)]
            newest = self._report_fallen(rows, events, newest, files, report)
            times = np.maximum(left, np.maximum.accumulate(rows["event_time"]))
            left = int(times[-1]) if len(times) else left
            extents = np.empty(len(events), _EXTENT)
            extents["offset"], extents["length"] = events["offset"], events["length"]
            spools.times.append(times)
            spools.extents.append(extents)
            if rows_spool is not None:
                rows_spool.append(rows)
        self.times, self._extents = spools.times.since(begins[0]), spools.extents.since(begins[1])
        if rows_spool is not None:
            self._rows = rows_spool.since(begins[2])
            self._spans = [(int(block["time"].min()), int(block["time"].max())) for block in self._rows.blocks()]
        self._runs = []

    def _report_fallen(
        self, rows: Rows, events: NDArray[np.void], newest: int, files: list[str], report: Report
    ) -> int:
        """Report which rows are much older than one before them; return the newest time so far, as `newest` is."""
        tops = np.maximum.accumulate(np.concatenate([[newest], rows["time"]]))
        for event in events[rows["time"] < tops[:-1] - FALLEN_MS] if self.kind else ():
            trade_id, time, line = int(event["id"]), int(event["time"]), int(event["line"])
            report.fall(Fallen(self.symbol, trade_id, time, files[event["file"]], line))
        return int(tops[-1])

    def _distinct(
        self, decimals: tuple[int, int], files: list[str], report: Report
    ) -> Iterator[tuple[Rows, NDArray[np.void]]]:
        """Yield (rows, the events that they are), ascending by id, each id once."""
        before: tuple[Any, Any] | None = None
        for events, _ in merged(self._runs, "id"):
            rows = self._rows_of(events, *decimals)
            if before is not None:
                rows, events = np.concatenate([before[0], rows]), np.concatenate([before[1], events])
            is_first = np.diff(rows["id"], prepend=-1) > 0
            firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
            content = [name for name in rows.dtype.names if name != "event_time"]
            is_same = np.all([rows[name] == rows[name][firsts] for name in content], axis=0)
            report.repeated += int((~is_first & is_same).sum())
            for event in events[~is_same]:
                line = int(event["line"])
                report.contradict(Contradicting(self.symbol, int(event["id"]), files[event["file"]], line))
            last = int(firsts[-1])
            if before is not None:
                is_first[0] = False
            before = rows[last : last + 1], events[last : last + 1]
            yield rows[is_first], events[is_first]

    def _repeated_fills(self, decimals: tuple[int, int], files: list[str]) -> NDArray[np.int64]:
        """Return the ids of aggregates whose fills stand under a lower id already: spot's of 2017 have some."""
        top, suspected = -1, []
        for events, _ in merged(self._runs, "id"):
            tops = np.maximum.accumulate(np.concatenate([[top], events["first"]]))
            suspected.append(np.unique(events["first"][events["first"] <= tops[:-1]]))
            top = int(tops[-1])
        fills = np.unique(np.concatenate(suspected))
        if not len(fills):
            return fills
        found = np.concatenate(
            [rows[np.isin(rows["first"], fills)] for rows, _ in self._distinct(decimals, files, Report())]
        )
        columns = np.stack([found[name] for name in ("first", "last", "time", "price", "quantity")])
        _, counted = np.unique(columns, axis=1, return_index=True)
        return np.delete(found["id"], counted)

    def _rows_of(self, events: NDArray[np.void], price_decimals: int, quantity_decimals: int) -> Rows:
        rows = np.zeros(len(events), AGG_ROW if self.kind == "aggTrade" else TRADE_ROW)
        for name in set(rows.dtype.names or ()) - {"price", "quantity", "plain_quantity"}:
            rows[name] = events[name]
        rows["price"] = self._scaled(events["price"], events["price_decimals"], price_decimals)
        rows["quantity"] = self._scaled(events["quantity"], events["quantity_decimals"], quantity_decimals)
        if self.kind == "aggTrade":
            rows["plain_quantity"] = self._scaled(events["plain_quantity"], events["plain_decimals"], quantity_decimals)
        return rows

    def _scaled(self, digits: NDArray[np.int64], written: NDArray[np.int8], decimals: int) -> NDArray[np.int64]:
        """Return numbers in units of 10**-decimals; `TOO_MUCH` for those that do not fit."""
        more = decimals - written.astype(np.int64)
        scaled: NDArray[np.int64] = np.where(
            more >= 0, digits * 10 ** np.maximum(more, 0), digits // 10 ** np.maximum(-more, 0)
        )
        scaled[digits * 10.0**more > NUMBER_MAX] = TOO_MUCH
        return scaled

    # What there is.

    @property
    def earliest(self) -> int:
        """The earliest time of a trade; that of time itself where there is none."""
        return min((earliest for earliest, _ in self._spans), default=0)

    def rows(self, begin: int, end: int) -> Rows:
        """Return the trades [begin, end), AGG_ROW[n] or TRADE_ROW[n] ascending by id."""
        return self._rows.read(begin, end)

    def first_from(self, trade_id: int) -> int:
        """Return the index of the first trade whose id is not less than this one."""
        return self._rows.find("id", trade_id)

    def blocks(
        self, begin: int, end: int, since: int | None = None, until: int | None = None, backwards: bool = False
    ) -> Iterator[Rows]:
        """Yield those blocks of the trades [begin, end) in which some may lie between two times, both inclusive."""
        blocks = range(begin // BLOCK, -(-end // BLOCK))
        for block in reversed(blocks) if backwards else blocks:
            earliest, latest = self._spans[block]
            if (since is None or latest >= since) and (until is None or earliest <= until):
                yield self.rows(max(begin, block * BLOCK), min(end, (block + 1) * BLOCK))

    def messages(self, begin: int, end: int) -> list[bytes]:
        """Return the messages [begin, end) as they were received."""
        extents = self._extents.read(begin, end)
        offsets, ends = extents["offset"], extents["offset"] + extents["length"]
        spool, low, high = self._spools.messages, int(offsets.min()), int(ends.max())
        if high - low > TEXTS_MAX:
            return [spool.read(*extent).tobytes() for extent in zip(offsets.tolist(), ends.tolist(), strict=True)]
        texts = spool.read(low, high).tobytes()
        return [texts[start:stop] for start, stop in zip((offsets - low).tolist(), (ends - low).tolist(), strict=True)]


def _is_huge(rows: Rows) -> NDArray[np.bool_]:
    """Say which trades nobody can count whose numbers have 64 bits."""
    price, quantity = rows["price"], rows["quantity"]
    huge: NDArray[np.bool_] = (np.maximum(price, quantity) > NUMBER_MAX) | (price * 1.0 * quantity > NUMBER_MAX)
    return huge


class _Decimals:
    """How many decimals some numbers need, as they were written."""

    def __init__(self) -> None:
        self._padded = self._others = 0

    def note(self, digits: NDArray[np.int64], written: NDArray[np.int8]) -> None:
        is_padded = written == PADDED
        self._others = max(self._others, int(written.max(where=~is_padded, initial=0)))
        padded = digits[is_padded]
        while self._padded < PADDED and (padded % 10 ** (PADDED - self._padded)).any():
            self._padded += 1

    @property
    def needed(self) -> int:
        return max(self._padded, self._others)
