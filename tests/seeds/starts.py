"""A first start just before or after the end of an hour, a day, a week, a month, with any number of klines allowed.

Decides when an engine starts, how old its symbol is, and how many klines an interval it begins with
(`exchange.backfill_rows`). The klines that are open at a start are made of closed ones: where those are too few, the
open ones of most intervals lack volume, and become closed and final in the store with it.
"""

import random
from datetime import UTC, datetime, timedelta

from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED
from shared.wire import Trades
from tests.engine.played import (
    FIELDS,
    MINUTE,
    PlayedEngine,
    Trade,
    batch,
    expected,
    history,
    market,
    next_open,
    number,
    opens_at,
)

ROWS_MIN, ROWS_MAX = 59, 99
"""What `exchange.backfill_rows` may be."""
SEAM_MS = 3_000
"""Ingest waits so long for a minute of the exchange's to be settled."""
LIVE_MS = 6 * MINUTE
VALUES = FIELDS[:9]


def wrong_starts(seed: int, rows: int = 0) -> list[str]:
    """Start once, let the market go on, and return which klines in the store are not what was traded.

    `rows`: how many klines an interval the engine begins with; 0: any number that is allowed.
    """
    source = random.Random(f"{seed}: a first start")
    rows = rows or source.choice((ROWS_MIN, source.randint(ROWS_MIN, ROWS_MAX), ROWS_MAX))
    ends, end = _end(source)
    now = end + source.randint(-3 * MINUTE, 2 * MINUTE)
    seam = (now - SEAM_MS) // MINUTE * MINUTE
    age_ms = source.choice((20, 90, 26 * 60, 40 * 24 * 60, 80 * 24 * 60)) * MINUTE
    recent_ms = min(age_ms, 100 * MINUTE)
    trades = market(source.getrandbits(32), 200, now - age_ms, age_ms - recent_ms + 1)
    trades += market(source.getrandbits(32), 300, now - recent_ms + 1, recent_ms + LIVE_MS, trades[-1].id + 1)
    played = PlayedEngine(now)
    played.add(klines=history(trades, seam, rows), until=seam)
    live = [trade for trade in trades if trade.time >= seam]
    # What was traded between the seam and the first trade of the stream comes by REST.
    begin = sum(trade.time < now for trade in live)
    fetched: Trades | None = batch(live[:begin], covered=[(0, live[begin].id - 1)])
    while begin < len(live):
        some = live[begin : begin + source.randint(1, 40)]
        begin += len(some)
        played.until(max(played.time, some[-1].time))
        played.apply(batch(source.sample(some, len(some)), event_time=some[-1].time))
        if fetched is not None and source.random() < 0.3:
            played.apply(fetched)
            fetched = None
        if source.random() < 0.3:
            played.save()
    if fetched is not None:
        played.apply(fetched)
    while played.save() is not None:
        pass
    return _wrong(played, trades, f"{rows} rows, {(seam - end) // MINUTE} min from the end of {ends}")


def _end(source: random.Random) -> tuple[str, int]:
    """Return the end of some kline, and what it is the end of."""
    day = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=source.randrange(800))
    ends = {
        "an hour": day + timedelta(hours=source.randrange(1, 24)),
        "a day": day,
        "a week": day - timedelta(days=day.weekday()),
        "a month": day.replace(day=1),
        "a year": day.replace(month=1, day=1),
    }
    name = source.choice(list(ends))
    return name, int(ends[name].timestamp() * 1_000)


def _wrong(played: PlayedEngine, trades: list[Trade], name: str) -> list[str]:
    whole, wrong = expected(trades), []
    for interval in INTERVAL_NAMES:
        if ("BTCUSDT", interval, opens_at(interval, played.time)) not in played.stored:
            wrong.append(f"start with {name}: no {interval} that is open")
    for (_, interval, open_time), row in played.stored.items():
        want = whole.get((interval, open_time))
        have = {field: number(row, field) for field in VALUES if row["trade_count"] or field not in VALUES[:4]}
        different = {field: (value, want[field] if want else 0) for field, value in have.items()}
        different = {field: both for field, both in different.items() if both[0] != both[1]}
        if bool(row["flags"] & CLOSED) != (next_open(interval, open_time) <= played.time):
            different["flags"] = (int(row["flags"]), CLOSED)
        if different:
            wrong.append(f"start with {name}: {interval} {open_time}: {different} (have, want)")
    return wrong
