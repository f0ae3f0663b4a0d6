"""What ids that every answer leaves out cost of the exchange's request budget, on virtual time."""

from collections import Counter

import pytest

from services.engine.gaps import GAPS_MAX
from shared.wire import FetchTrades
from tests.engine.played import MINUTE, MS, START, PlayedEngine, Trade, batch

WEIGHT, BUDGET = 20, 0.9 * 2_400
"""Of a page of trades, and of a minute."""
APART = 1_001
"""Ids from one gap to the next: no two of them are in one page."""


@pytest.mark.parametrize("gaps", [1, 10, GAPS_MAX])
def test_a_symbol_whose_ids_nobody_has_costs_next_to_nothing_after_five_minutes(gaps: int) -> None:
    played = PlayedEngine(window=128)
    played.add(until=START)
    trades = [Trade(1_000 + index * APART, START, 100, 1) for index in range(gaps + 1)]
    played.apply(batch(trades, covered=[(1_000, 1_000)]))
    newest = trades[-1].id + 1
    spent: Counter[int] = Counter()
    waiting: list[FetchTrades] = []
    for now in range(0, 10 * MINUTE, 100):
        played.now_ns = now * MS
        played.engine.tick(played.now_ns)
        for ask in played.engine.take_commands():
            if isinstance(ask, FetchTrades) and ask.last_id >= 0 and ask not in waiting:
                waiting.append(ask)
        if waiting and spent[now // MINUTE] + WEIGHT <= BUDGET:
            # As ingest does: what is asked twice is one question, and a minute has its budget.
            spent[now // MINUTE] += WEIGHT
            ask = waiting.pop(0)
            played.apply(batch([], covered=[(ask.first_id, ask.last_id)]))
        if now % 1_000 == 0:
            played.apply(played.feed())
            played.apply(batch([Trade(newest + now // 1_000, START + now, 100, 1)], event_time=START + now))
    print(gaps, dict(spent))
    assert spent[0] >= WEIGHT
    # What was asked for within five minutes has come to its end by then.
    late = sum(spent[minute] for minute in range(6, 10)) / 4
    assert late <= 0.01 * BUDGET, spent
