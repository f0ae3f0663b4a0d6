"""A short chaos and a short outage; `make chaos` and `make outage` go on for as long as you like."""

from pathlib import Path

import pytest

from tests import chaos, outage
from tests.chaos import Plan

pytestmark = pytest.mark.pipeline

AFTERNOON = 1_795_625_190_000
"""2026-11-25 16:46:30 UTC: minutes in which the market is busy enough to lose hundreds of single trades to a fault, and
tens of thousands in a row to another, with a request budget that is a real one's."""


@pytest.mark.timeout(400)
def test_whatever_is_killed_every_kline_is_right_and_nobody_is_banned(tmp_path: Path) -> None:
    plan = Plan(seed=17545, seconds=25, every=1.5, symbols=25, rate=500, weight=2_400, start_time=AFTERNOON)
    assert chaos.run(tmp_path, plan)[:10] == []


@pytest.mark.timeout(300)
def test_a_database_that_is_away_costs_no_memory_and_no_kline(tmp_path: Path) -> None:
    assert outage.run(tmp_path, Plan(seed=6, seconds=20, symbols=25, rate=2_000, weight=2_400))[:10] == []
