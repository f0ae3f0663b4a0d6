"""An engine without sockets, a market of made-up trades, and klines computed the plain way to compare with."""

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from services.engine.book import settle
from services.engine.engine import KlineEngine
from services.engine.health import figures
from services.engine.window import rows_to_load
from shared.config import AuditConfig, EngineConfig
from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, PLACED_KLINE, QUOTES, TRADE
from shared.wire import (
    AddSymbol,
    Covered,
    DirtyBatch,
    FeedState,
    Instrument,
    IntervalKlines,
    Persisted,
    Restored,
    SymbolMark,
    Trades,
    pack_instruments,
    placed_rows,
)

START = int(datetime(2026, 3, 30, 23, 57, tzinfo=UTC).timestamp() * 1000)
"""Three minutes before a Tuesday that is the last day of a month: whatever rolls, rolls soon."""
MINUTE = 60_000
MS = 1_000_000
SESSION = 7_000
FIELDS = (*(KLINE.names or ())[1:10], "first_id", "last_id", "id_count")
PRICES = ("open", "high", "low", "close")


class Trade(NamedTuple):
    id: int
    time: int
    price: int
    quantity: int
    trade_count: int = 1
    buyer_is_maker: int = 0


def market(seed: int, count: int, begin: int = START, span_ms: int = 6 * MINUTE, first_id: int = 100) -> list[Trade]:
    """Return trades with ids without holes, ascending in time, some of them void."""
    source = random.Random(seed)
    times = sorted(source.randrange(begin, begin + span_ms) for _ in range(count))
    price, trades = 5_000, []
    for index, time in enumerate(times):
        price = max(1, price + source.randrange(-20, 21))
        void = source.random() < 0.05 and index > 0
        trades.append(
            Trade(
                first_id + index,
                time,
                0 if void else price,
                source.randrange(0, 500),
                0 if void else source.randrange(1, 4),
                source.randrange(2),
            )
        )
    return trades


def opens_at(interval: str, time: int) -> int:
    """Return the open time, by the calendar and not by arithmetic; 3d counts from the day of `START`."""
    return _opens_at(interval, time // MINUTE * MINUTE)


@lru_cache(2**18)
def _opens_at(interval: str, time: int) -> int:
    moment = datetime.fromtimestamp(time / 1000, UTC)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    length, unit = int(interval[:-1]), interval[-1]
    match unit:
        case "m":
            start = moment.replace(minute=moment.minute // length * length, second=0, microsecond=0)
        case "h":
            start = day.replace(hour=moment.hour // length * length)
        case "d":
            start = day - timedelta(days=(day - datetime(2026, 3, 30, tzinfo=UTC)).days % length)
        case "w":
            start = day - timedelta(days=day.weekday())
        case _:
            start = day.replace(day=1)
    return int(start.timestamp() * 1000)


def expected(trades: Iterable[Trade], until: int = 0) -> dict[tuple[str, int], dict[str, int]]:
    """Return what the klines with ids must hold, computed one trade at a time in the order of ids."""
    rows: dict[tuple[str, int], dict[str, int]] = {}
    for trade in sorted(set(trades)):
        for interval in INTERVAL_NAMES:
            row = rows.setdefault((interval, opens_at(interval, trade.time)), dict.fromkeys(FIELDS, 0))
            row["first_id"] = row["first_id"] or trade.id
            row["last_id"] = trade.id
            row["id_count"] += 1
            if not trade.trade_count:
                continue
            if not row["trade_count"]:
                row["open"] = row["high"] = row["low"] = trade.price
            row["high"], row["low"] = max(row["high"], trade.price), min(row["low"], trade.price)
            row["close"] = trade.price
            row["trade_count"] += trade.trade_count
            row["volume"] += trade.quantity
            row["quote_volume"] += trade.quantity * trade.price
            if not trade.buyer_is_maker:
                row["taker_buy_volume"] += trade.quantity
                row["taker_buy_quote_volume"] += trade.quantity * trade.price
    return rows


def number(row: np.void, name: str) -> int:
    """Return a number of a row, of which quote volumes are two fields: so many 10**18, and what is left."""
    return int(row[name]) + 10**18 * int(row[f"{name}_high"]) if name in QUOTES else int(row[name])


def put(row: np.void, name: str, value: int) -> None:
    """Write a number into a row."""
    if name in QUOTES:
        row[f"{name}_high"], value = divmod(value, 10**18)
    row[name] = value


def batch(trades: Iterable[Trade], symbol: str = "BTCUSDT", decimals: tuple[int, int] = (2, 3), **more: Any) -> Trades:
    """Return a batch; what covers ids from 0 on was asked for by a time: ids before its first trade are older.

    covered: of each range the first id, the last one, and up to which one they are older, where that is another.
    """
    rows = np.array([(0, *trade) for trade in trades], TRADE)
    covered = [
        Covered(0, first, last, *(older_to or [-1 if first else int(rows["id"].min(initial=last + 1)) - 1]))
        for first, last, *older_to in more.pop("covered", [])
    ]
    return Trades(pack_instruments([Instrument(symbol, *decimals)]), rows.tobytes(), covered=covered, **more)


class PlayedEngine:
    """A `KlineEngine` with its clock in hand, and a store that takes what it is given."""

    def __init__(self, time: int = START, restored: list[Restored] | None = None, **config: Any) -> None:
        config = {"symbols_max": 4, "window": 100} | config
        self.speed = config.pop("clock_speed", 1.0)
        self.window = config["window"]
        audit = config.pop("audit", AuditConfig(every_minutes=0))
        self.engine = KlineEngine(EngineConfig(**config), self.speed, SESSION, audit)
        self.now_ns = 0
        self.begin = time
        self.engine.apply(self.feed(), 0)
        for part in restored if restored is not None else [Restored(SESSION, [], b"", True, 0)]:
            self.engine.apply(part, 0)
        self.engine.tick(0)
        self.stored: dict[tuple[str, str, int], np.void] = {}
        self.marks: dict[str, SymbolMark] = {}
        self.stored_time = 0

    def feed(self, session: int = 1, engine: int = SESSION) -> FeedState:
        return FeedState(session, True, self.begin, self.time, self.now_ns, engine=engine)

    @property
    def time(self) -> int:
        return self.begin + self.now_ns // MS

    def until(self, time: int) -> None:
        """Let the exchange's clock run to `time`."""
        self.now_ns = (time - self.begin) * MS
        self.engine.tick(self.now_ns)

    def apply(self, *events: Any) -> None:
        for event in events:
            self.engine.apply(event, self.now_ns)

    def add(self, symbol: str = "BTCUSDT", klines: list[IntervalKlines] | None = None, until: int = 0) -> None:
        stream, grid_3d = f"{symbol.lower()}@aggTrade", opens_at("3d", until) if klines else 0
        self.apply(AddSymbol(symbol, 2, 3, stream, klines or [], until, START, grid_3d))

    def rows(self, symbol: str = "BTCUSDT") -> dict[tuple[str, int], np.void]:
        """Return the rows in memory by interval and open time."""
        settle(self.engine.book, False)
        rows = self.engine.book.rows[self.engine.table.index[symbol]]
        return {
            (interval, int(row["open_time"])): row
            for index, interval in enumerate(INTERVAL_NAMES)
            for row in rows[index]
            if row["open_time"]
        }

    def values(self, symbol: str = "BTCUSDT") -> dict[tuple[str, int], dict[str, int]]:
        """Return the rows that hold ids; where all of them are void, prices are carried, and 0 here."""
        return {
            key: {name: number(row, name) if row["trade_count"] or name not in PRICES else 0 for name in FIELDS}
            for key, row in self.rows(symbol).items()
            if row["id_count"]
        }

    def health(self, now_ns: int | None = None) -> dict[str, Any]:
        return figures(self.engine, self.now_ns if now_ns is None else now_ns)

    def save(self, acknowledge: bool = True) -> DirtyBatch | None:
        """Take what is unsaved into the store."""
        saved = self.engine.take_batch(self.now_ns, last=True)
        if saved is not None and acknowledge:
            for placed in placed_rows(saved.rows):
                name = saved.marks[placed["symbol"]].symbol
                key = (name, INTERVAL_NAMES[placed["interval"]], int(placed["kline"]["open_time"]))
                self.stored[key] = placed["kline"].copy()
            self.marks |= {mark.symbol: mark for mark in saved.marks}
            self.stored_time = saved.exchange_time
            self.apply(Persisted(SESSION, saved.batch, self.engine.saving.point.tables))
        return saved

    def restored(self) -> list[Restored]:
        """Return what the store would answer to `Load`, a part a symbol."""
        parts = []
        for name, mark in self.marks.items():
            keys = []
            for interval, count in zip(INTERVAL_NAMES, rows_to_load(self.window), strict=True):
                keys += sorted(key for key in self.stored if key[:2] == (name, interval))[-count:]
            rows = np.zeros(len(keys), PLACED_KLINE)
            for index, key in enumerate(keys):
                rows[index]["interval"] = INTERVAL_NAMES.index(key[1])
                rows[index]["kline"] = self.stored[key]
            parts.append(Restored(SESSION, [mark], rows.tobytes(), False, self.stored_time))
        parts.append(Restored(SESSION, [], b"", True, self.stored_time))
        return parts


def history(trades: Iterable[Trade], until: int, limit: int = 99) -> list[IntervalKlines]:
    """Return the exchange's own closed klines of these trades, as ingest announces them, flat ones included."""
    by_interval: dict[str, dict[int, dict[str, int]]] = {name: {} for name in INTERVAL_NAMES}
    for (interval, open_time), row in expected(trade for trade in trades if trade.time < until).items():
        by_interval[interval][open_time] = row
    answer = []
    for interval, rows in by_interval.items():
        if not rows:
            continue
        first, end = min(rows), opens_at(interval, until)
        opens: list[int] = []
        while end > first and len(opens) < limit:
            end = opens_at(interval, end - 1)
            opens.insert(0, end)
        older = [row["close"] for time, row in sorted(rows.items()) if time < end and row["trade_count"]]
        close, klines = older[-1] if older else 0, []
        for open_time in opens:
            kline = np.zeros(1, KLINE)
            kline["open_time"], kline["flags"] = open_time, CLOSED | FINAL | EXCHANGE
            traded = rows.get(open_time)
            if traded is not None and traded["trade_count"]:
                close = traded["close"]
                for name in FIELDS[:9]:
                    put(kline[0], name, traded[name])
            else:
                kline["open"] = kline["high"] = kline["low"] = kline["close"] = close
            klines.append(kline)
        if klines:
            answer.append(IntervalKlines(interval, np.concatenate(klines).tobytes()))
    return answer


@lru_cache(2**16)
def next_open(interval: str, open_time: int) -> int:
    time = open_time
    step = MINUTE if interval.endswith("m") else 60 * MINUTE
    while opens_at(interval, time) == open_time:
        time += step
    return opens_at(interval, time)
