"""Which of the store's rows an engine goes on with: those that anything in it may look at or change.

The store has them all; to load more than these takes five times as long, and nobody would read them. A row that is not
loaded is not there for the engine, as if it had left memory.
"""

from shared.interval import DAY_MS, INTERVALS, MINUTE_MS

CHILDREN = {interval.child for interval in INTERVALS}
PARTS_MAX = 31
"""Children of a kline, at the most; of minutes, which are 60 of an hour, all are there."""
DAY_INTERVAL = "15m"
"""The 24 h figures are made of these: fine enough, and a day of them is in every window."""


def rows_to_load(window: int) -> list[int]:
    """Return how many of the newest rows of each interval to load, where `window` minutes are in memory."""
    needed = []
    for name, length_ms, _ in INTERVALS:
        # A late trade may be as old as the oldest minute. Both ends of that time lie within a kline, and a kline that
        # is opened has the price of the one before it.
        rows = window * MINUTE_MS // length_ms + 3 if length_ms else 3
        if name in CHILDREN:
            rows = max(rows, PARTS_MAX + 1)
        if name == DAY_INTERVAL:
            rows = max(rows, DAY_MS // length_ms + 1)
        needed.append(min(rows, window))
    return needed
