"""Which of the store's rows an engine goes on with."""

from collections import Counter

from services.engine.window import rows_to_load
from shared.interval import INTERVAL_NAMES
from tests.engine.played import (
    MINUTE,
    START,
    PlayedEngine,
    batch,
    history,
    market,
    opens_at,
)
from tests.engine.test_seeding import DAY, VALUES, of_all


def test_trades_as_old_as_memory_find_their_rows_after_a_restart() -> None:
    seam, missing_from = START - 400 * MINUTE, START - 98 * MINUTE
    trades = market(3, 4_000, seam - 60 * MINUTE, 460 * MINUTE)
    played = PlayedEngine(seam)
    played.add(klines=history(trades, seam), until=seam)
    old = [trade for trade in trades if trade.time < seam]
    missing = [trade for trade in trades if missing_from <= trade.time < missing_from + 3 * MINUTE]
    assert len(missing) > 10
    played.apply(batch([], covered=[(0, old[-1].id)]))
    for trade in trades[len(old) :]:
        if trade not in missing:
            played.until(trade.time)
            played.apply(batch([trade]))
    played.save()
    later = PlayedEngine(played.time, restored=played.restored())
    loaded = Counter(interval for interval, _ in later.rows())
    assert loaded["1m"] == 100
    assert loaded["5m"] < len([key for key in played.stored if key[1] == "5m"])
    later.stored = played.stored
    later.apply(batch(missing, covered=[(missing[0].id, missing[-1].id)]))
    assert later.engine.gaps(0) == []
    later.save()
    everything = of_all(trades)
    for (_, interval, open_time), row in later.stored.items():
        assert {name: int(row[name]) for name in VALUES} == everything[interval, open_time], (interval, open_time)


def test_what_a_trade_may_reach_is_loaded() -> None:
    for window in (100, 128, 1_000):
        for name, rows in zip(INTERVAL_NAMES, rows_to_load(window), strict=True):
            for newest in range(START, START + 3 * DAY, 97 * MINUTE + 13):
                oldest = newest // MINUTE * MINUTE - (window - 1) * MINUTE
                reached = {opens_at(name, time) for time in range(oldest, newest + 1, MINUTE)}
                # And the one before them, whose close is carried on.
                assert len(reached) + 1 <= rows or rows == window
