"""Klines that are older than memory, on their way to the store."""

import numpy as np

from shared.kline import KLINE
from shared.wire import (
    Klines,
    StorePoint,
    StoreState,
)
from tests.engine.played import MINUTE, START, PlayedEngine, Trade, batch, history


def test_a_store_that_is_emptied_while_klines_are_on_their_way_gets_what_lies_between_them_and_memory_too() -> None:
    played = PlayedEngine(window=100)
    played.add()
    played.apply(batch([Trade(0, START + 10, 100, 7)]))

    def until(minute: int) -> None:
        for after in range(int(played.time - START) // MINUTE + 1, minute + 1):
            played.until(START + after * MINUTE)
            played.save()

    until(120)
    played.apply(StoreState(2, StorePoint(), START + 5 * MINUTE))
    assert ("1m", START + 5 * MINUTE, START + 21 * MINUTE - 1) in played.engine.repair.lacking()[0]
    until(125)
    played.apply(StoreState(3, StorePoint(), 0))
    assert ("1m", START + 5 * MINUTE, START + 26 * MINUTE - 1) in played.engine.repair.lacking()[0]
    # They have come, and wait for the store in their order.
    klines = {part.interval: part.rows for part in history([Trade(0, START + 10, 100, 7)], played.time, 10**6)}["1m"]
    rows = np.frombuffer(klines, KLINE)
    while ("1m", START + 5 * MINUTE, START + 26 * MINUTE - 1) in played.engine.repair.lacking().get(0, []):
        wanted = (rows["open_time"] >= START + 5 * MINUTE) & (rows["open_time"] < START + 26 * MINUTE)
        played.apply(Klines("BTCUSDT", 2, 3, "1m", rows[wanted].tobytes(), start_time=START + 5 * MINUTE))
    played.until(START + 126 * MINUTE)
    played.apply(StoreState(4, StorePoint(tables="another"), 0))
    assert ("1m", START + 5 * MINUTE, START + 27 * MINUTE - 1) in played.engine.repair.lacking()[0]
