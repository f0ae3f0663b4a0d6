"""What symbols cost whose trades REST fails to answer, on virtual time."""

import pytest

from services.ingest.rest import ATTEMPTS_MAX
from services.ingest.trade_fetch import TradeBackoff

WEIGHT, BUDGET = 20, 0.9 * 2_400
RETRY_S = 15
"""How often the engine asks for a range that nobody answers for."""


@pytest.mark.parametrize("symbols", [1, 10, 256])
def test_symbols_that_fail_cost_next_to_nothing_after_five_minutes(symbols: int) -> None:
    backoff = TradeBackoff()
    late = 0
    for now_s in range(0, 600, RETRY_S):
        for index in range(symbols):
            if backoff.may_ask(str(index), now_s):
                attempts = 1 if backoff.has_failed(str(index)) else ATTEMPTS_MAX
                late += WEIGHT * attempts * (now_s >= 300)
                backoff.failed(str(index), now_s)
    assert late / 5 <= 0.01 * BUDGET


def test_one_that_fails_keeps_nobody_else_waiting_and_is_forgiven() -> None:
    backoff = TradeBackoff()
    for now_s in range(600):
        if backoff.may_ask("BAD", now_s):
            backoff.failed("BAD", now_s)
        assert backoff.may_ask("GOOD", now_s)
        backoff.answered("GOOD")
    assert not backoff.may_ask("BAD", 600)
    backoff.answered("BAD")
    assert backoff.may_ask("BAD", 600)
    assert not backoff.has_failed("BAD")
