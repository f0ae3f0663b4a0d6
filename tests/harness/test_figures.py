"""What becomes of what was measured: latencies, percentiles, spreads."""

import numpy as np

from harness.figures import Seen, latencies, percentiles, spread

MS = 1_000_000


def test_a_block_is_answered_by_the_first_snapshot_that_has_its_last_trade() -> None:
    written = [["xusdt@aggTrade", 5, 10 * MS], ["xusdt@aggTrade", 9, 20 * MS], ["yusdt@aggTrade", 2, 20 * MS]]
    seen = [Seen("XUSDT", 4, 9 * MS), Seen("YUSDT", 2, 21 * MS), Seen("XUSDT", 7, 13 * MS), Seen("XUSDT", 9, 25 * MS)]
    assert sorted(latencies(written, seen)) == [
        ("XUSDT", (10 * MS, 3.0)),
        ("XUSDT", (20 * MS, 5.0)),
        ("YUSDT", (20 * MS, 1.0)),
    ]


def test_an_older_row_that_was_repaired_takes_nothing_back() -> None:
    written = [["xusdt@aggTrade", 6, 10 * MS]]
    seen = [Seen("XUSDT", 7, 12 * MS), Seen("XUSDT", 3, 13 * MS), Seen("XUSDT", 8, 30 * MS)]
    assert latencies(written, seen) == [("XUSDT", (10 * MS, 2.0))]


def test_what_no_snapshot_has_shown_is_not_counted_as_fast() -> None:
    assert latencies([["xusdt@aggTrade", 8, 10 * MS]], [Seen("XUSDT", 7, 12 * MS)]) == []
    assert latencies([["xusdt@aggTrade", 8, 10 * MS]], []) == []


def test_percentiles_of_nothing_say_so() -> None:
    assert percentiles(np.array([])) == {"blocks": 0}
    assert percentiles(np.arange(1.0, 101.0)) == {"blocks": 100, "p50": 50.5, "p99": 99.01, "p99.9": 99.9, "max": 100.0}


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.26, 2.0, 9.0], 1) == {"median": 2.5, "least": 1.3, "most": 9.0}
    assert spread([104_084.4, 79_753.0, 114_132.2]) == {"median": 104_084, "least": 79_753, "most": 114_132}
