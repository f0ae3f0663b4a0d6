"""The exchange's own klines become a symbol's rows, and longer ones are made of shorter ones."""

from datetime import UTC, datetime

import numpy as np
import pytest

from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED, EXCHANGE, FINAL, KLINE, SATURATED
from shared.wire import (
    IntervalKlines,
)
from tests.engine.played import (
    MINUTE,
    START,
    PlayedEngine,
    Trade,
    batch,
    history,
    market,
    number,
    opens_at,
)
from tests.engine.test_seeding import DAY, held, of_all

LEAST = 59
"""Minutes of an hour that may be over; exchange.backfill_rows is no less."""
EDGES = {
    "an hour": datetime(2026, 3, 18, 15, tzinfo=UTC),
    "a day": datetime(2026, 3, 19, tzinfo=UTC),
    "a week": datetime(2026, 3, 23, tzinfo=UTC),
    "a month of 31 days": datetime(2026, 4, 1, tzinfo=UTC),
    "a month of 28 days": datetime(2026, 3, 1, tzinfo=UTC),
    "a year": datetime(2026, 1, 1, tzinfo=UTC),
}


def closing(seam: int, rows: int) -> dict[tuple[str, int], tuple[dict[str, int], dict[str, int]]]:
    """Begin at a seam with so many klines an interval; return (what is held, what is right) where they differ."""
    trades = market(seam, 300, seam - 70 * DAY, 70 * DAY - 100 * MINUTE)
    trades += market(seam, 600, seam - 100 * MINUTE, 103 * MINUTE, first_id=trades[-1].id + 1)
    played = PlayedEngine(seam + 30_000)
    played.add(klines=history(trades, seam, rows), until=seam)
    played.until(seam + 3 * MINUTE)
    live = [trade for trade in trades if trade.time >= seam]
    played.apply(batch(live, covered=[(live[0].id, live[-1].id)]))
    everything, rows_held = of_all(trades), held(played)
    assert {(name, opens_at(name, seam)) for name in INTERVAL_NAMES} <= rows_held.keys()
    return {key: (row, everything[key]) for key, row in rows_held.items() if row != everything[key]}


@pytest.mark.parametrize("minutes", [-2, -1, 0, 1])
@pytest.mark.parametrize("edge", EDGES)
def test_a_start_across_the_end_of_a_kline_is_right_with_the_fewest_klines(edge: str, minutes: int) -> None:
    seam = int(EDGES[edge].timestamp() * 1000) + minutes * MINUTE
    for rows in (LEAST, 99):
        assert closing(seam, rows) == {}


def test_fewer_klines_would_not_do() -> None:
    # Otherwise the bound of the setting would be too high.
    wrong = closing(int(EDGES["an hour"].timestamp() * 1000) - MINUTE, LEAST - 1)
    assert {"1h", "2h", "1d", "1M"} <= {interval for interval, _ in wrong}


def test_rows_say_where_their_figures_come_from() -> None:
    trades = market(1, 100, START - 60 * MINUTE, 60 * MINUTE)
    played = PlayedEngine()
    played.add(klines=history(trades, START), until=START)
    played.apply(batch([Trade(900, START + 10, 100, 7)]))
    rows = played.rows()
    assert rows["1m", START]["flags"] == 0
    assert rows["1m", START - MINUTE]["flags"] == CLOSED | FINAL | EXCHANGE
    hour = rows["1h", opens_at("1h", START)]
    assert hour["flags"] == EXCHANGE
    assert hour["id_count"] == 1


def test_klines_that_make_a_longer_one_of_more_than_64_bits_are_all_taken() -> None:
    played = PlayedEngine()
    klines = history(market(3, 50, START - 9 * MINUTE, 11 * MINUTE), START)
    today = opens_at("1d", START)
    days = np.zeros(29, KLINE)
    days["open_time"], days["flags"] = today - DAY * np.arange(29, 0, -1), CLOSED | FINAL | EXCHANGE
    days["volume"] = days["trade_count"] = days["quote_volume"] = 1
    days["quote_volume_high"] = 9
    played.add(klines=[*klines, IntervalKlines("1d", days.tobytes())], until=START)
    rows = played.rows()
    month = rows["1M", opens_at("1M", START)]
    assert number(month, "quote_volume") == 29 * (9 * 10**18 + 1) + number(rows["1d", today], "quote_volume")
    assert not month["flags"] & SATURATED
    assert played.engine.dropped == {}
