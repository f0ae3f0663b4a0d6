"""The weight budget on virtual time."""

import random
from collections import Counter

import pytest

from services.ingest.rate_limit import GUARD_MS, MINUTE_MS, STOP_MAX_MS, WeightBudget

NOON = 1_700_000_040_000
BEGIN = NOON + GUARD_MS


def test_a_minute_s_budget_is_spent_and_comes_back_with_the_next() -> None:
    weight_budget = WeightBudget(1000, 0.9)
    spent = 0
    while weight_budget.wait_ms(20, BEGIN, repair=True) == 0:
        weight_budget.finish(20, weight_budget.start(20, BEGIN), BEGIN)
        spent += 20
    assert spent == 900
    assert weight_budget.wait_ms(20, BEGIN + 40_000, repair=True) == 20_000
    assert weight_budget.wait_ms(20, BEGIN + MINUTE_MS, repair=True) == 0


def test_repairs_have_a_reserve_that_history_leaves_them() -> None:
    weight_budget = WeightBudget(1000, 1.0)
    weight_budget.finish(900, weight_budget.start(900, BEGIN), BEGIN)
    assert weight_budget.wait_ms(1, BEGIN) > 0
    assert weight_budget.wait_ms(100, BEGIN, repair=True) == 0
    assert weight_budget.wait_ms(101, BEGIN, repair=True) > 0


def test_what_the_exchange_counted_raises_ours_and_never_lowers_it() -> None:
    weight_budget = WeightBudget(1000, 1.0)
    minute = weight_budget.start(10, BEGIN)
    other = weight_budget.start(30, BEGIN)
    weight_budget.finish(10, minute, BEGIN, used=500)
    assert weight_budget.used(BEGIN) == 530
    weight_budget.finish(30, other, BEGIN, used=100)
    assert weight_budget.used(BEGIN) == 530
    # An answer to a question of the minute before says nothing about this one.
    late = weight_budget.start(5, BEGIN)
    weight_budget.finish(5, late, BEGIN + MINUTE_MS, used=999)
    assert weight_budget.used(BEGIN + MINUTE_MS) == 5


def test_a_request_on_its_way_over_the_minute_s_end_counts_in_both() -> None:
    weight_budget = WeightBudget(1000, 1.0)
    weight_budget.start(40, BEGIN)
    assert weight_budget.used(BEGIN + MINUTE_MS) == 40


def test_a_stop_is_kept_extended_and_bounded() -> None:
    weight_budget = WeightBudget(1000, 1.0)
    weight_budget.stop(BEGIN + 5_000, BEGIN)
    weight_budget.stop(BEGIN + 3_000, BEGIN)
    assert weight_budget.wait_ms(1, BEGIN, repair=True) == 5_000
    assert weight_budget.wait_ms(1, BEGIN + 5_000, repair=True) == 0
    weight_budget.stop(BEGIN * 1000, BEGIN)
    assert weight_budget.stopped_until == BEGIN + STOP_MAX_MS


def test_a_request_heavier_than_the_budget_goes_alone() -> None:
    weight_budget = WeightBudget(10, 0.9)
    assert weight_budget.wait_ms(40, BEGIN) == 0
    weight_budget.start(40, BEGIN)
    assert weight_budget.wait_ms(1, BEGIN) > 0


def test_an_exchange_whose_time_restarts_has_a_new_count() -> None:
    weight_budget = WeightBudget(100, 1.0)
    weight_budget.finish(90, weight_budget.start(90, BEGIN), BEGIN)
    assert weight_budget.wait_ms(50, BEGIN - 3_600_000) == 0


def test_no_minute_of_the_exchange_ever_sees_more_than_the_limit() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    generator = random.Random(seed)
    weight_budget = WeightBudget(2400, 0.9)
    counted: dict[int, int] = {}
    now = BEGIN
    on_way: list[tuple[int, int, int]] = []
    for _ in range(20_000):
        now += generator.choice([1, 5, 50, 400])
        weight = generator.choice([1, 1, 5, 20])
        if weight_budget.wait_ms(weight, now, repair=generator.random() < 0.5) == 0:
            arrival = now + generator.randrange(200)
            # The exchange's own clock is up to 100 ms off ours.
            minute = (arrival + generator.randrange(-100, 100)) // MINUTE_MS
            counted[minute] = counted.get(minute, 0) + weight
            on_way.append((weight, weight_budget.start(weight, now), counted[minute]))
        while on_way and generator.random() < 0.7:
            weight, minute, used = on_way.pop(0)
            weight_budget.finish(weight, minute, now, used)
    assert max(counted.values()) <= 2400
    assert max(counted.values()) > 1500


def test_the_time_that_a_weight_takes_is_said_by_the_minutes_it_needs() -> None:
    weight_budget = WeightBudget(1000, 1.0)
    assert weight_budget.estimate_ms(900, BEGIN) == 0
    assert weight_budget.estimate_ms(901, BEGIN) == MINUTE_MS
    assert weight_budget.estimate_ms(2700, BEGIN + 20_000) == 40_000 + MINUTE_MS
    weight_budget.stop(BEGIN + 10_000, BEGIN)
    assert weight_budget.estimate_ms(10, BEGIN) == 10_000


@pytest.mark.parametrize("off_ms", [-900, -400, 0, 400, 900])
@pytest.mark.parametrize("seed", range(20))
def test_a_clock_that_is_wrong_by_less_than_a_second_never_spends_more_than_a_minute_allows(
    off_ms: int, seed: int
) -> None:
    """`off_ms`: how far the exchange's clock is ahead of what we take for it."""
    source = random.Random(seed)
    weight_budget = WeightBudget(1000, 1.0)
    spent: Counter[int] = Counter()
    now = NOON + source.randrange(MINUTE_MS)
    under_way: list[tuple[int, int, int]] = []
    while now < NOON + 10 * MINUTE_MS:
        weight = source.choice((1, 5, 20, 100))
        # Busy around the minutes' ends, idle or busy in between.
        if weight_budget.wait_ms(weight, now, repair=True) == 0:
            under_way.append((now + source.randrange(200), weight, weight_budget.start(weight, now)))
            spent[(now + off_ms) // MINUTE_MS] += weight
        under_way.sort()
        while under_way and under_way[0][0] <= now:
            _, done, minute = under_way.pop(0)
            weight_budget.finish(done, minute, now)
        near = now % MINUTE_MS > MINUTE_MS - 1_500 or now % MINUTE_MS < 2_500
        now += source.randrange(1, 30) if near else source.choice((50, 2_000))
    assert max(spent.values()) <= 1000
    # And not less than it could by much.
    assert sorted(spent.values())[len(spent) // 2] > 500
