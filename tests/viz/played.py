"""An engine played by a test: a bound XPUB that answers subscriptions as the real one does; and made-up klines."""

import queue
import random
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec
import zmq

from shared.calendar import next_open_time, open_time_of
from shared.snapshot import HEALTH_TOPIC, TICKERS_TOPIC, Snapshot, Tickers, kline_topic
from shared.wire import encode

NOW = 1_790_000_000_000
"""The exchange's time at which a played engine starts, ms."""


def text_of(value: int, decimals: int) -> str:
    """Return a value in units of 10**-decimals as it is published."""
    return f"{Decimal(value).scaleb(-decimals):f}"


def made_up(
    symbol: str, interval: str, count: int, until: int = NOW, seed: int = 1, decimals: int = 2
) -> list[Snapshot]:
    """Return klines of a random walk, ascending; the last one holds `until` and is open."""
    source = random.Random(f"{seed}{symbol}{interval}")
    opens = [open_time_of(interval, until)]
    while len(opens) < count:
        opens.append(open_time_of(interval, opens[-1] - 1))
    price, rows, first_id = source.randrange(20_000, 80_000), [], 1
    for open_time in reversed(opens):
        close = max(100, price + round(source.gauss(0, price * 0.004)))
        wick = price * 0.003
        high = max(price, close) + round(abs(source.gauss(0, wick)))
        low = max(1, min(price, close) - round(abs(source.gauss(0, wick))))
        volume = round(source.lognormvariate(3, 0.8) * 1000)
        trades = source.randrange(1, 400)
        row = kline(
            symbol,
            interval,
            open_time,
            [text_of(value, decimals) for value in (price, high, low, close)],
            volume=text_of(volume, 3),
            quote_volume=text_of(volume * close, 3 + decimals),
            taker_buy_volume=text_of(round(volume * source.uniform(0.3, 0.7)), 3),
            trade_count=trades,
            first_id=first_id,
            last_id=first_id + trades - 1,
            id_count=trades,
            closed=open_time != opens[0],
            final=open_time != opens[0],
        )
        rows.append(row)
        price, first_id = close, first_id + trades
    return rows


def kline(symbol: str, interval: str, open_time: int, prices: Iterable[str], **fields: Any) -> Snapshot:
    """Return a snapshot of one kline; `prices` are open, high, low, close."""
    values: dict[str, Any] = {
        "sequence": 0,
        "session": 0,
        "exchange_time": NOW,
        "close_time": next_open_time(interval, open_time) - 1,
        "volume": "1.000",
        "quote_volume": "1.00",
        "trade_count": 1,
        "taker_buy_volume": "0.500",
        "taker_buy_quote_volume": "0.50",
        "first_id": 1,
        "last_id": 1,
        "id_count": 1,
        "closed": False,
        "final": False,
        "gap": False,
        "unexplained": False,
        "audited": False,
        "saturated": False,
        "source": "trades",
        "revision": 0,
    }
    values |= dict(zip(("open", "high", "low", "close"), prices, strict=True)) | fields
    return Snapshot(symbol=symbol, interval=interval, open_time=open_time, **values)


class PlayedEngine:
    """Publishes what it is given, and to each new subscription the rows of the topic that it holds as unsaved."""

    def __init__(
        self,
        endpoint: str,
        session: int = 1,
        sends_health: bool = True,
        unsaved: Mapping[str, list[Snapshot]] | None = None,
    ) -> None:
        """`unsaved`: what a subscriber gets who is there before anything else can be said to this engine."""
        self.session = session
        self.subscriptions: list[str] = []
        """Every topic that was subscribed, in order."""
        self.held: set[str] = set()
        """Topics with a subscriber."""
        self.unsaved: dict[str, list[Snapshot]] = dict(unsaved or {})
        self.figures: dict[str, tuple[str, str]] = {}
        """Last price and price 24 h ago of every symbol."""
        self.connected = True
        self.progress: dict[str, Any] = {}
        """What it says besides, or instead of the best."""
        self._sends_health = sends_health
        self._sequences: dict[str, int] = {}
        self._started = time.monotonic()
        self._orders: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def time(self) -> int:
        return NOW + round((time.monotonic() - self._started) * 1000)

    def publish(self, snapshot: Snapshot, lose: int = 0) -> None:
        """Send a row, after `lose` messages of the same topic that never arrive."""
        self._orders.put(self._numbered(snapshot, lose))

    def publish_tickers(self) -> None:
        symbols = list(self.figures)
        tickers = Tickers(
            sequence=self._next(TICKERS_TOPIC),
            session=self.session,
            exchange_time=self.time(),
            symbols=symbols,
            last=[self.figures[symbol][0] for symbol in symbols],
            open_24h=[self.figures[symbol][1] for symbol in symbols],
            high_24h=[self.figures[symbol][0] for symbol in symbols],
            low_24h=[self.figures[symbol][1] for symbol in symbols],
            volume_24h=[str(1000 + len(symbol)) for symbol in symbols],
            quote_volume_24h=[str(100_000 * (index + 1)) for index in reversed(range(len(symbols)))],
            active=[True] * len(symbols),
        )
        self._orders.put((TICKERS_TOPIC, encode(tickers)))

    def publish_raw(self, topic: str, body: bytes) -> None:
        self._orders.put((topic, body))

    def stop(self) -> None:
        self._orders.put(None)
        self._thread.join(10)
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> "PlayedEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _next(self, topic: str, lose: int = 0) -> int:
        self._sequences[topic] = self._sequences.get(topic, 0) + 1 + lose
        return self._sequences[topic]

    def _numbered(self, snapshot: Snapshot, lose: int = 0) -> tuple[str, bytes]:
        topic = kline_topic(snapshot.symbol, snapshot.interval)
        numbered = msgspec.structs.replace(
            snapshot, sequence=self._next(topic, lose), session=self.session, exchange_time=self.time()
        )
        return topic, encode(numbered)

    def _run(self) -> None:
        sent_at = 0.0
        while True:
            while self._socket.poll(5):
                self._subscribed(self._socket.recv())
            with suppress(queue.Empty):
                while True:
                    order = self._orders.get_nowait()
                    if order is None:
                        return
                    self._socket.send_multipart([order[0].encode(), order[1]])
            if self._sends_health and time.monotonic() - sent_at > 0.25:
                sent_at = time.monotonic()
                self._orders.put((HEALTH_TOPIC, encode(self._health() | self.progress)))
                if self.figures:
                    self.publish_tickers()

    def _health(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "started": True,
            "connected": self.connected,
            "listed": True,
            "waiting": [],
            "exchange_time": self.time(),
            "trade_time": self.time(),
            **dict.fromkeys(("trade_age_s", "feed_age_s", "saved_age_s", "gap_age_s"), 0.0),
        }

    def _subscribed(self, message: bytes) -> None:
        topic = message[1:].decode()
        if not message[0]:
            self.held.discard(topic)
            return
        self.subscriptions.append(topic)
        self.held.add(topic)
        for name, rows in self.unsaved.items():
            if name.startswith(topic):
                for row in rows:
                    self._orders.put(self._numbered(row))
