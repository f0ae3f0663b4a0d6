"""What subscribers get: who wants which topic, and what of it.

Decides which rows are published and when. How they look outside of klagg, and their sequence numbers, are
encoding.py's. Knows no socket and no trade. A topic is wanted if any subscribed prefix begins it: ZeroMQ subscriptions
are prefixes.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from services.engine.book import Book, locate, row_id_of, settle
from services.engine.dirty import Changes, clear
from services.engine.encoding import DAY, ROWS_MAX, Encoder, SnapshotBuffer, write_snapshots
from services.engine.engine import KlineEngine
from services.engine.health import figures, waiting
from services.engine.window import DAY_INTERVAL
from shared.arrays import Integers, Rows
from shared.calendar import bucket_of
from shared.compiled import allocating, compiled, fixed
from shared.decimals import INT64_MAX
from shared.interval import DAY_MS, INTERVAL_INDEX, INTERVAL_NAMES, INTERVALS
from shared.kline import QUOTE_BASE
from shared.snapshot import HEALTH_TOPIC, TICKERS_TOPIC, kline_topic
from shared.wire import encode

Message = tuple[bytes, bytes]
"""Topic and body: the two frames of a message."""

DAY_PARTS = INTERVAL_INDEX[DAY_INTERVAL]
FIGURES_NS = 500_000_000
HEALTH_NS = 500_000_000
HEALTH_SOON_NS = 200_000_000
"""While it is not whole: whoever waits for that learns it at once."""
QUIET_S = 1.0
"""It is not whole either when the market has been silent for so long."""
TIME_MAX = 1 << 43
"""Behind every open time, ms: in the year 2248."""
PAST_ALL = b"\xff"
"""No topic has this byte, which is in no UTF-8."""
OWED_ROWS_MAX = ROWS_MAX
"""Rows that new subscribers get in a turn, some 3 ms; the rest in the next ones."""
OWED_TOPICS = 64
"""Topics looked at in one go. Most have a row or two, all of a window if the store is gone: then a turn takes 20 ms."""


class Snapshots:
    def __init__(self, engine: KlineEngine, session: int, publish_interval_ms: int) -> None:
        self._engine = engine
        self._session = session
        self._interval_ns = publish_interval_ms * 1_000_000
        self._prefixes: set[bytes] = set()
        """What is subscribed."""
        self._heard: dict[bytes, None] = {}
        """Prefixes that were subscribed or given up since the last turn."""
        self._counted: set[bytes] = set()
        """Those that count in `_holders`."""
        self._holders = np.zeros(engine.book.watched.size, np.int32)
        """By topic: how many prefixes begin it."""
        self._owed = np.zeros(engine.book.watched.size, np.bool_)
        """By topic: whether somebody waits for its current rows."""
        self._owed_next = 0
        """The index of the topic whose turn it is."""
        self._topics: list[bytes] = []
        """By symbol * intervals + interval."""
        self._sorted: list[tuple[bytes, int]] = []
        """The topics in alphabetical order, and their indices."""
        self._sorted_topics = np.zeros(0, np.int64)
        self._encoder = Encoder(engine.book, session)
        self._settle = fixed(settle, engine.book, True)
        self._in_order = fixed(in_order, engine.book, np.zeros(0, np.int64))
        self._take_changed = fixed(take_changed, engine.book, engine.changed.changes, self._encoder.buffer, session, 0)
        self._publish_at = 0
        self._figures_at = 0
        self._health_at = 0
        self._days = np.zeros(len(engine.book.symbols), DAY)
        self.published = 0
        self._owes = False
        self.odd = 0
        """Messages that subscribe nothing, and give nothing up."""
        self.figures: dict[str, int] = {}
        """What else is told beside the engine's own figures."""

    @property
    def owes(self) -> bool:
        """Whether `owed` may have something to send."""
        return self._owes or bool(self._heard)

    def subscription(self, message: bytes) -> None:
        """Take what was subscribed, or is subscribed by nobody any more (publisher.py)."""
        prefix = message[1:]
        if message[:1] == b"\x01":
            self._prefixes.add(prefix)
            self._heard[prefix] = None
        elif message[:1] == b"\x00" and prefix in self._prefixes:
            self._prefixes.discard(prefix)
            self._heard[prefix] = None
        else:
            self.odd += 1

    def owed(self, now_ns: int) -> Iterator[Message]:
        """Yield a part of the current rows of what was subscribed: about `OWED_ROWS_MAX`, a topic whole.

        They are the topic's rows that are not saved yet and its newest, ascending: with the database's, all there is.
        However often a topic was subscribed since its last turn, it is one.
        """
        self._know_symbols()
        self._listen()
        if self._owes:
            self._settle(self._engine.book, False)
        rows = 0
        while self._owes and rows < OWED_ROWS_MAX:
            waiting = np.flatnonzero(self._owed)
            rest = waiting[np.searchsorted(waiting, self._owed_next) :]
            some = (rest if len(rest) else waiting)[:OWED_TOPICS]
            self._owed[some] = False
            self._owed_next = int(some[-1]) + 1
            self._owes = len(some) < len(waiting)
            row_ids = unsaved_and_newest(self._engine.book, some)
            rows += len(row_ids)
            yield from self._messages(row_ids, now_ns)

    def _listen(self) -> None:
        """Count who subscribes which topic, and note what is owed; each prefix once, however often it was heard of."""
        heard, self._heard = self._heard, {}
        for prefix in heard:
            matched, held, counted = self._matching(prefix), prefix in self._prefixes, prefix in self._counted
            if held != counted:
                (self._counted.add if held else self._counted.discard)(prefix)
                self._holders[matched] += 1 if held else -1
                self._engine.book.watched.reshape(-1)[matched] = self._holders[matched] > 0
            if held and len(matched):
                self._owe(matched)

    def _owe(self, topics: NDArray[np.int64]) -> None:
        self._owed[topics] = True
        self._owes = True

    def due(self, now_ns: int) -> Iterator[Message]:
        """Yield what is to be published at the end of a turn."""
        self._know_symbols()
        if now_ns >= self._publish_at:
            yield from self._changed(now_ns)
        else:
            self._settle(self._engine.book, True)  # So that there is something to wait for.
        if now_ns >= self._figures_at:
            self._figures_at = now_ns + FIGURES_NS
            if self._engine.started and self._wanted(TICKERS_TOPIC.encode()):
                yield TICKERS_TOPIC.encode(), self._tickers(now_ns)
        if now_ns >= self._health_at:
            self._health_at = now_ns + HEALTH_NS
            self._pass_wishes_on()
            if self._wanted(HEALTH_TOPIC.encode()):
                own = {"session": self._session, "published": self.published, "subscriptions": len(self._prefixes)}
                told = figures(self._engine, now_ns) | own | {"odd_subscriptions": self.odd} | self.figures
                quiet = told["trade_age_s"] is None or told["trade_age_s"] > QUIET_S
                if not told["started"] or told["missing_ids"] or quiet:
                    self._health_at = now_ns + HEALTH_SOON_NS
                yield HEALTH_TOPIC.encode(), encode(told)

    def wait_ms(self, now_ns: int) -> int:
        """Return how long until `due` has something to say, at the latest."""
        due = min(self._figures_at, self._health_at)
        if len(self._engine.changed):
            due = min(due, self._publish_at)
        return max(0, due - now_ns) // 1_000_000

    def _pass_wishes_on(self) -> None:
        """Tell who is waited for: a subscription to the klines of a symbol that has not begun is a wish for it."""
        wished = [
            name
            for name in waiting(self._engine)
            if any(kline_topic(name, interval).encode() in self._prefixes for interval in INTERVAL_NAMES)
        ]
        if wished:
            self._engine.prefer(wished)

    def _know_symbols(self) -> None:
        """Learn the topics of symbols that were added."""
        first = len(self._topics)
        if first == len(self._engine.symbols) * len(INTERVALS):
            return
        added = self._engine.symbols[first // len(INTERVALS) :]
        self._encoder.know(self._engine.symbols)
        self._topics += [kline_topic(symbol, name).encode() for symbol in added for name in INTERVAL_NAMES]
        for index, topic in enumerate(self._topics[first:], first):
            insort(self._sorted, (topic, index))
            self._holders[index] = sum(1 for prefix in _prefixes_of(topic) if prefix in self._counted)
        topics = np.arange(first, len(self._topics))
        wanted = topics[self._holders[topics] > 0]
        if len(wanted):
            # Rows that were marked before this were not marked as changed: those of now will do.
            self._engine.book.watched.reshape(-1)[wanted] = 1
            self._owe(wanted)

    def _matching(self, prefix: bytes) -> NDArray[np.int64]:
        """Return the indices of the topics that begin so."""
        if len(self._sorted_topics) < len(self._sorted):
            self._sorted_topics = np.array([topic for _, topic in self._sorted], np.int64)
        begin = bisect_left(self._sorted, (prefix, -1))
        return self._sorted_topics[begin : bisect_left(self._sorted, (prefix + PAST_ALL, -1))]

    def _wanted(self, topic: bytes) -> bool:
        return any(prefix in self._prefixes for prefix in _prefixes_of(topic))

    def _changed(self, now_ns: int) -> Iterator[Message]:
        """Yield what has changed, numbered on."""
        now = self._engine.clock.now(now_ns)
        row_ids, topics, end = self._take_changed(
            self._engine.book, self._engine.changed.changes, self._encoder.buffer, self._session, now
        )
        if not len(row_ids):
            return
        self._publish_at = now_ns + self._interval_ns
        first = self._encoder.written(min(len(row_ids), ROWS_MAX), end)
        yield from self._addressed(topics, chain(first, self._encoder.snapshots(row_ids[ROWS_MAX:], now)))

    def _messages(self, row_ids: NDArray[np.int64], now_ns: int) -> Iterator[Message]:
        """Yield rows as messages, numbered on."""
        row_ids, topics = self._in_order(self._engine.book, row_ids)
        yield from self._addressed(topics, self._encoder.snapshots(row_ids, self._engine.clock.now(now_ns)))

    def _addressed(self, topics: NDArray[np.int64], bodies: Iterable[bytes]) -> Iterator[Message]:
        self.published += len(topics)
        for topic, body in zip(topics.tolist(), bodies, strict=True):
            yield self._topics[topic], body

    def _tickers(self, now_ns: int) -> bytes:
        book, now = self._engine.book, self._engine.clock.now(now_ns)
        self._settle(book, False)
        days = self._days[: len(self._engine.symbols)]
        sum_up(book, now - DAY_MS, now, days)
        return self._encoder.tickers(days, now)


def _prefixes_of(topic: bytes) -> Iterator[bytes]:
    return (topic[:length] for length in range(len(topic) + 1))


@allocating
def unsaved_and_newest(book: Book, topics: Integers) -> Integers:
    """Return the ids of the rows that a new subscriber of these topics needs.

    topics: int64[n], symbol * intervals + interval.
    """
    intervals, window = book.rows.shape[1], book.rows.shape[2]
    row_ids = np.empty(len(topics) + book.unsaved.by_member.sum(), np.int64)
    count = 0
    for topic in topics:
        symbol, interval = topic // intervals, topic % intervals
        newest = book.calendars[book.symbols[symbol].grid, interval].slot
        for slot in range(window):
            row_id = row_id_of(book, symbol, interval, slot)
            unsaved = book.unsaved.by_member[interval * window + slot] > 0 and book.unsaved.states[row_id] != 0
            if unsaved or slot == newest:
                row_ids[count] = row_id
                count += 1
    return row_ids[:count]


@allocating
def in_order(book: Book, row_ids: Integers) -> tuple[Integers, Integers]:
    """Return those of the rows that are there, topic by topic, ascending by time, and the topic of each.

    row_ids: int64[n].
    """
    kept, topics, keys = np.empty_like(row_ids), np.empty_like(row_ids), np.empty_like(row_ids)
    count = 0
    for row_id in row_ids:
        symbol, interval, slot = locate(book, row_id)
        open_time = book.rows[symbol, interval, slot].open_time
        if open_time > 0:
            kept[count] = row_id
            topics[count] = symbol * book.rows.shape[1] + interval
            keys[count] = topics[count] * TIME_MAX + open_time
            count += 1
    order = np.argsort(keys[:count])
    return kept[order], topics[order]


@allocating
def take_changed(
    book: Book, changed: Changes, buffer: SnapshotBuffer, session: int, exchange_time: int
) -> tuple[Integers, Integers, int]:
    """Settle what is watched, take what has changed, and write as much of it as the buffer holds.

    Return all those rows and their topics, as `in_order` does, and where what was written ends. It is one call, because
    after a rest each costs more than its work.
    """
    settle(book, True)
    row_ids, topics = in_order(book, changed.items[: changed.total[0]])
    clear(changed)
    end = write_snapshots(buffer, book, row_ids[:ROWS_MAX], session, exchange_time)
    return row_ids, topics, end


@compiled
def sum_up(book: Book, begin: int, end: int, days: Rows) -> None:
    """Write what the klines that open in [begin, end] come to into DAY[symbols]."""
    window, calendar = book.rows.shape[2], book.calendars[0, DAY_PARTS]
    newest = bucket_of(calendar.length, calendar.anchor, end)
    oldest = max(bucket_of(calendar.length, calendar.anchor, begin), newest - window + 1)
    for symbol in range(len(days)):
        day = days[symbol]
        day.last = day.open = day.high = day.low = day.volume = day.quote_volume = day.quote_volume_high = 0
        known = False
        for bucket in range(oldest, newest + 1):
            row = book.rows[symbol, DAY_PARTS, bucket % window]
            if row.open_time < begin or row.open_time > end:
                continue
            if not known:
                day.open = row.open
                known = True
            day.last = row.close
            day.high = max(day.high, row.high)
            day.low = min(day.low, row.low) if day.low else row.low
            # What does not fit is the most that does; the day's kline says so.
            day.volume = day.volume + row.volume if row.volume <= INT64_MAX - day.volume else INT64_MAX
            day.quote_volume += row.quote_volume
            day.quote_volume_high += row.quote_volume_high + day.quote_volume // QUOTE_BASE
            day.quote_volume %= QUOTE_BASE
