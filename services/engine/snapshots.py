"""What subscribers get: who wants which topic, and how a row looks outside of klagg.

Decides which topics are encoded, numbers their messages, and turns integers into decimals. Knows no socket and no
trade. A topic is wanted if any subscribed prefix begins it: ZeroMQ subscriptions are prefixes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from services.engine.book import settle
from services.engine.engine import KlineEngine
from services.engine.needs import DAY_INTERVAL
from shared.calendar import next_open_time
from shared.compiled import compiled
from shared.decimals import text_of
from shared.interval import DAY_MS, INTERVAL_INDEX, INTERVAL_NAMES, INTERVALS
from shared.kline import CLOSED, EXCHANGE, FINAL
from shared.wire import HEALTH_TOPIC, TICKERS_TOPIC, Snapshot, Tickers, encode, kline_topic

Message = tuple[bytes, bytes]
"""Topic and body: the two frames of a message."""

FIGURES_NS = 500_000_000
HEALTH_NS = 1_000_000_000
HEALTH_SOON_NS = 200_000_000
"""While it is not whole: whoever waits for that learns it at once."""
PREFIXES_MAX = 100_000
"""Subscriptions remembered; ZeroMQ remembers its own and does not say which are dropped."""


class Snapshots:
    def __init__(self, engine: KlineEngine, session: int, publish_interval_ms: int) -> None:
        self._engine = engine
        self._session = session
        self._interval_ns = publish_interval_ms * 1_000_000
        self._prefixes: set[bytes] = set()
        self._topics: list[bytes] = []
        """By symbol * intervals + interval."""
        self._sequences: dict[bytes, int] = {}
        self._publish_at = 0
        self._figures_at = 0
        self._health_at = 0
        self._day = np.zeros((engine.book.rows.shape[0], 6), np.int64)
        self.published = 0

    def subscription(self, message: bytes, now_ns: int) -> list[Message]:
        """Take a message of the XPUB socket; return the current rows of what was subscribed.

        They are the topic's rows that are not saved yet and its newest, ascending: with the database's, all there is.
        """
        settle(self._engine.book, False)
        self._know_symbols()
        prefix = message[1:]
        if message[:1] == b"\x01":
            if len(self._prefixes) < PREFIXES_MAX:
                self._prefixes.add(prefix)
            matched = self._matching(prefix)
            self._engine.book.watched.reshape(-1)[matched] = 1
            return [self._row(number, now_ns) for number in self._unsaved_and_newest(matched)]
        if message[:1] == b"\x00":
            self._prefixes.discard(prefix)
            for topic in self._matching(prefix).tolist():
                self._engine.book.watched.reshape(-1)[topic] = self._wanted(self._topics[topic])
        return []

    def due(self, now_ns: int) -> Iterator[Message]:
        """Yield what is to be published at the end of a turn."""
        self._know_symbols()
        settle(self._engine.book, True)
        if len(self._engine.changed) and now_ns >= self._publish_at:
            self._publish_at = now_ns + self._interval_ns
            numbers = self._engine.changed.take()
            self._engine.changed.release(numbers)
            for number in self._in_time(numbers):
                yield self._row(number, now_ns)
        if now_ns >= self._figures_at:
            self._figures_at = now_ns + FIGURES_NS
            if self._engine.started and self._wanted(TICKERS_TOPIC.encode()):
                yield TICKERS_TOPIC.encode(), encode(self._tickers(now_ns))
        if now_ns >= self._health_at:
            self._health_at = now_ns + HEALTH_NS
            if self._wanted(HEALTH_TOPIC.encode()):
                figures = self._engine.health(now_ns) | {"session": self._session, "published": self.published}
                if not figures["started"] or figures["missing_ids"]:
                    self._health_at = now_ns + HEALTH_SOON_NS
                yield HEALTH_TOPIC.encode(), encode(figures)

    def wait_ms(self, now_ns: int) -> int:
        """Return how long until `due` has something to say, at the latest."""
        due = min(self._figures_at, self._health_at)
        if len(self._engine.changed):
            due = min(due, self._publish_at)
        return max(0, due - now_ns) // 1_000_000

    def _know_symbols(self) -> None:
        """Learn the topics of symbols that were added."""
        known = len(self._topics) // len(INTERVALS)
        for symbol in self._engine.symbols[known:]:
            for interval in INTERVAL_NAMES:
                topic = kline_topic(symbol, interval).encode()
                if self._wanted(topic):
                    # Rows that were marked before this were not marked as changed: the newest will do.
                    self._engine.book.watched.reshape(-1)[len(self._topics)] = 1
                    number = np.array([len(self._topics)], np.int64)
                    self._engine.changed.mark(np.array(self._unsaved_and_newest(number), np.int64))
                self._topics.append(topic)

    def _matching(self, prefix: bytes) -> NDArray[np.int64]:
        return np.array([place for place, topic in enumerate(self._topics) if topic.startswith(prefix)], np.int64)

    def _wanted(self, topic: bytes) -> bool:
        if len(self._prefixes) > len(topic):
            return any(topic[:length] in self._prefixes for length in range(len(topic) + 1))
        return any(topic.startswith(prefix) for prefix in self._prefixes)

    def _unsaved_and_newest(self, topics: NDArray[np.int64]) -> list[int]:
        """Return the numbers of the rows that a new subscriber needs."""
        book, window = self._engine.book, self._engine.book.rows.shape[2]
        symbols, intervals = topics // len(INTERVALS), topics % len(INTERVALS)
        needed = book.unsaved.states.reshape(-1, window)[topics] != 0
        places = book.calendars["place"][book.symbols["grid"][symbols], intervals]
        needed[np.arange(len(topics)), places] = True
        which, place = np.nonzero(needed)
        return self._in_time(topics[which] * window + place)

    def _in_time(self, numbers: NDArray[np.int64]) -> list[int]:
        """Return the rows that are there, topic by topic, ascending by time."""
        open_times = self._engine.book.rows.reshape(-1)["open_time"][numbers]
        window = self._engine.book.rows.shape[2]
        order = np.lexsort((open_times, numbers // window))
        return [number for number, there in zip(numbers[order].tolist(), open_times[order], strict=True) if there]

    def _row(self, number: int, now_ns: int) -> Message:
        engine, window = self._engine, self._engine.book.rows.shape[2]
        topic = number // window
        symbol, interval = divmod(topic, len(INTERVALS))
        state, row = engine.book.symbols[symbol], engine.book.rows.reshape(-1)[number]
        price, quantity = int(state["price_decimals"]), int(state["quantity_decimals"])
        (
            open_time,
            open_,
            high,
            low,
            close,
            volume,
            quote_volume,
            trade_count,
            taker_buy_volume,
            taker_buy_quote_volume,
            first_id,
            last_id,
            id_count,
            _,
            _,
            flags,
            revision,
        ) = row.item()
        name = INTERVAL_NAMES[interval]
        end_time = next_open_time(name, open_time)
        gaps = engine.book.gaps[symbol, : state["gap_count"]]
        self.published += 1
        return self._topics[topic], encode(
            Snapshot(
                symbol=engine.symbols[symbol],
                interval=name,
                sequence=self._next(self._topics[topic]),
                session=self._session,
                exchange_time=engine.clock.now(now_ns),
                open_time=open_time,
                close_time=end_time - 1,
                open=text_of(open_, price),
                high=text_of(high, price),
                low=text_of(low, price),
                close=text_of(close, price),
                volume=text_of(volume, quantity),
                quote_volume=text_of(quote_volume, price + quantity),
                trade_count=trade_count,
                taker_buy_volume=text_of(taker_buy_volume, quantity),
                taker_buy_quote_volume=text_of(taker_buy_quote_volume, price + quantity),
                first_id=first_id,
                last_id=last_id,
                id_count=id_count,
                closed=bool(flags & CLOSED),
                final=bool(flags & FINAL),
                gap=any(gap["from_time"] < end_time and gap["to_time"] >= open_time for gap in gaps),
                source=source_of(flags, id_count),
                revision=revision,
            )
        )

    def _tickers(self, now_ns: int) -> Tickers:
        engine = self._engine
        settle(engine.book, False)
        count = len(engine.symbols)
        now = engine.clock.now(now_ns)
        day_figures(engine.book.rows[:, INTERVAL_INDEX[DAY_INTERVAL]], now - DAY_MS, now, self._day)
        symbols = engine.book.symbols[:count]
        prices, quantities = symbols["price_decimals"].tolist(), symbols["quantity_decimals"].tolist()
        known = [place for place in range(count) if self._day[place, 0]]
        columns: list[list[str]] = [[], [], [], [], [], []]
        for place in known:
            price, quantity = prices[place], quantities[place]
            figures = self._day[place].tolist()
            for column, value, decimals in zip(
                columns, figures, (price, price, price, price, quantity, price + quantity), strict=True
            ):
                column.append(text_of(value, decimals))
        last, open_24h, high_24h, low_24h, volume_24h, quote_volume_24h = columns
        return Tickers(
            sequence=self._next(TICKERS_TOPIC.encode()),
            session=self._session,
            exchange_time=now,
            symbols=[engine.symbols[place] for place in known],
            last=last,
            open_24h=open_24h,
            high_24h=high_24h,
            low_24h=low_24h,
            volume_24h=volume_24h,
            quote_volume_24h=quote_volume_24h,
            active=[bool(symbols[place]["active"]) for place in known],
        )

    def _next(self, topic: bytes) -> int:
        sequence = self._sequences[topic] = self._sequences.get(topic, 0) + 1
        return sequence


def source_of(flags: int, id_count: int) -> str:
    """Return where a row's figures come from, in words."""
    if not flags & EXCHANGE:
        return "trades"
    return "both" if id_count else "exchange"


@compiled
def day_figures(rows, begin, end, figures):  # type: ignore[no-untyped-def]
    """Write last, open, high, low, volume and quote volume of [begin, end] into int64[symbols, 6]; last 0: unknown.

    rows: KLINE[symbols, window] of one interval.
    """
    for symbol in range(rows.shape[0]):
        first_time, last_time = end + 1, 0
        figures[symbol, :] = 0
        for place in range(rows.shape[1]):
            row = rows[symbol, place]
            if row.open_time < begin or row.open_time > end:
                continue
            if row.open_time < first_time:
                first_time = row.open_time
                figures[symbol, 1] = row.open
            if row.open_time > last_time:
                last_time = row.open_time
                figures[symbol, 0] = row.close
            figures[symbol, 2] = max(figures[symbol, 2], row.high)
            figures[symbol, 3] = min(figures[symbol, 3], row.low) if figures[symbol, 3] else row.low
            figures[symbol, 4] += row.volume
            figures[symbol, 5] += row.quote_volume
