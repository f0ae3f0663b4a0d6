"""A short chaos; `make chaos` goes on for as long as you like."""

from pathlib import Path

import pytest

from tests.chaos import Plan, run

pytestmark = pytest.mark.pipeline


@pytest.mark.timeout(400)
def test_whatever_is_killed_every_kline_is_right_and_nobody_is_banned(tmp_path: Path) -> None:
    assert run(tmp_path, Plan(seed=5, seconds=30, every=1.5, symbols=25, rate=500, weight=2_400))[:10] == []
