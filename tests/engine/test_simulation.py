"""A few seeds of the simulation; `make sim` plays thousands."""

import pytest

from tests.simulated.simulation import run

FAILED_ONCE = {
    31: "a symbol that began anew took rows for whole that were closed and not proven",
    23: "the open of a long kline came from the exchange's own minutes behind ours",
    39: "the first trades were asked for once, and the answer was lost",
    1074: "a symbol that was announced late was restored with rows older than the rest",
}


@pytest.mark.parametrize("seed", FAILED_ONCE, ids=str)
def test_a_seed_that_failed_once(seed: int) -> None:
    wrong, _ = run(seed)
    assert not wrong, FAILED_ONCE[seed]


@pytest.mark.parametrize("begin", range(100_000, 100_060, 15))
def test_whatever_fails_the_store_has_what_was_traded(begin: int) -> None:
    for seed in range(begin, begin + 15):
        wrong, _ = run(seed)
        assert not wrong, f"make sim SEED={seed}"
