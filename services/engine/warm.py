"""Compile everything before the first trade, so that no batch ever waits for a compiler.

The compiled code is cached on disk; a warm start only loads it. Compiled functions are chosen by the types of their
arguments, and an array read from a message is read-only, which is a type of its own: so the arguments here are made the
way that the loop makes them.
"""

import numpy as np

from services.engine.engine import KlineEngine
from services.engine.snapshots import FIGURES_NS, Snapshots
from shared.calendar import open_time_of
from shared.config import EngineConfig
from shared.interval import DAY_MS, INTERVAL_NAMES, MINUTE_MS
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, TRADE
from shared.wire import (
    AddSymbol,
    AppEvent,
    Covered,
    FeedState,
    Instrument,
    IntervalKlines,
    Klines,
    Restored,
    Trades,
    decode_event,
    encode,
    pack_instruments,
)


def warm_up() -> None:
    """Play the life of one symbol through an engine of its own, with a subscriber of all, and through the next one."""
    begin = 20_000 * DAY_MS
    config = EngineConfig(symbols_max=1, window=100)
    engine = KlineEngine(config)
    klines = []
    for name in INTERVAL_NAMES:
        row = np.zeros(1, KLINE)
        row["open_time"] = open_time_of(name, open_time_of(name, begin) - 1)
        row["open"] = row["high"] = row["low"] = row["close"] = 100
        row["flags"] = CLOSED | FINAL | EXCHANGE
        klines.append(IntervalKlines(name, row.tobytes()))
    trades = np.zeros(4, TRADE)
    trades["id"] = [7, 9, 8, 12]
    trades["time"] = [begin + 1, begin + MINUTE_MS, begin + 2, begin + 3]
    trades["price"] = trades["quantity"] = trades["trade_count"] = 1
    events: list[AppEvent] = [
        FeedState(1, True, 0, begin + 2 * MINUTE_MS, 0),
        Restored(0, [], b"", True, 0),
        AddSymbol("X", 0, 0, "x", klines, begin, begin),
        Trades(pack_instruments([Instrument("X", 1, 1)]), trades.tobytes(), begin, [Covered(0, 0, 6, 6)]),
        Klines("X", 1, 1, "1m", klines[0].rows),
    ]
    snapshots = Snapshots(engine, 0, 0)
    snapshots.subscription(b"\x01")
    for event in events:
        _play(engine, event)
        list(snapshots.due(0)) + list(snapshots.owed(0))
    list(snapshots.due(FIGURES_NS))
    batch = engine.take_batch(0, last=True)
    assert batch is not None
    events = [
        FeedState(1, True, 0, begin + 3 * MINUTE_MS, 0),
        Restored(0, batch.marks, batch.rows, True, batch.exchange_time),
    ]
    engine = KlineEngine(config)
    for event in events:
        _play(engine, event)


def _play(engine: KlineEngine, event: AppEvent) -> None:
    engine.apply(decode_event(encode(event)), 0)
    engine.tick(0)
