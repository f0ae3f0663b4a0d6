"""What symbols cost whose trades REST fails to answer, on virtual time."""

import pytest

from services.ingest.patience import Patience
from services.ingest.rest import ATTEMPTS_MAX

WEIGHT, BUDGET = 20, 0.9 * 2_400
RETRY_S = 15
"""How often the engine asks for a range that nobody answers for."""


@pytest.mark.parametrize("symbols", [1, 10, 256])
def test_symbols_that_fail_cost_next_to_nothing_after_five_minutes(symbols: int) -> None:
    patience = Patience()
    late = 0
    for now_s in range(0, 600, RETRY_S):
        for number in range(symbols):
            if patience.may_ask(str(number), now_s):
                attempts = 1 if patience.has_failed(str(number)) else ATTEMPTS_MAX
                late += WEIGHT * attempts * (now_s >= 300)
                patience.failed(str(number), now_s)
    assert late / 5 <= 0.01 * BUDGET


def test_one_that_fails_keeps_nobody_else_waiting_and_is_forgiven() -> None:
    patience = Patience()
    for now_s in range(600):
        if patience.may_ask("BAD", now_s):
            patience.failed("BAD", now_s)
        assert patience.may_ask("GOOD", now_s)
        patience.answered("GOOD")
    assert not patience.may_ask("BAD", 600)
    patience.answered("BAD")
    assert patience.may_ask("BAD", 600)
    assert not patience.has_failed("BAD")
