"""What is said of the state of things, and from when on."""

from typing import Any

import pytest

from services.viz.status import SAVE_LATE_S, Status
from tests.viz.test_hub import WELL

FINE = WELL | {"missing_ids": 0, "listed": True, "waiting": []}


def state(age_s: float | None = 0.3, database: str = "", **figures: Any) -> Status:
    return Status(FINE | figures, age_s or 0.0, age_s, database, save_interval_s=5.0)


def test_nothing_is_said_while_all_is_well() -> None:
    assert state().reasons() == state().unready() == []
    assert state(saved_age_s=11.6, trade_age_s=9.6, gap_age_s=400.0).reasons() == []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (state(None), "the engine was not heard of yet"),
        (state(1.3), "the engine has said nothing for 1 s"),
        (state(started=False), "the engine waits for the store"),
        (state(database="gone"), "the database does not answer: gone"),
        (state(saved_age_s=5.0 + SAVE_LATE_S, rows_unsaved=12), "nothing was saved for 12 s: 12 klines wait"),
        (state(symbols_not_saved=["EVILUSDT"]), "the database refuses EVILUSDT"),
        (state(connected=False), "there is no connection to the exchange"),
        (state(trade_age_s=None), "no trade has come yet"),
        (state(trade_age_s=9.9), "no trades for 10 s"),
        (state(feed_age_s=9.9, trade_age_s=9.9), "ingest has said nothing for 10 s"),
        (state(feed_age_s=None), "ingest was not heard of yet"),
        (state(missing_ids=7_690, gap_age_s=10.0), "7690 trades are missing, some for 10 s"),
        (state(lag_ms=3_200), "the engine is 3 s behind the exchange"),
    ],
)
def test_a_reason_is_given_in_words(what: Status, said: str) -> None:
    assert [reason for reason in what.reasons() if said in reason] == what.reasons() != []


def test_a_young_gap_keeps_nobody_from_relying_on_the_rest() -> None:
    young, old = state(missing_ids=9, gap_age_s=50.0), state(missing_ids=9, gap_age_s=60.0)
    assert (len(young.reasons()), young.unready()) == (1, [])
    assert old.unready() == ["9 trades are missing, some for 60 s"]


def test_who_waits_for_history_is_not_ready_and_not_ill() -> None:
    assert state(waiting=["A", "B"]).unready() == ["not announced: 2 symbols wait for their history"]
    assert state(listed=False).unready() == ["not announced: which symbols trade is not known yet"]
    assert state(waiting=["A"]).reasons() == []


def test_the_page_shows_that_nothing_is_saved_only_when_that_is_late() -> None:
    assert state(saved_age_s=11.0).message()["unsaved"] == 0
    assert state(saved_age_s=20.0).message()["unsaved"] == 20
