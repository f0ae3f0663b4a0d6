"""How long ago the engine received what it lives on, and what it makes of it."""

import pytest

from services.engine.liveness import SILENCES_MAX, Liveness
from shared.wire import FeedState, StoreState
from tests.engine.played import SESSION, START, PlayedEngine, Trade, batch

SECOND = 1_000_000_000


def traded(played: PlayedEngine, trade_id: int, time: int) -> None:
    played.until(time)
    played.apply(batch([Trade(trade_id, time, 100, 7)], event_time=time))


def test_ages_grow_until_something_is_received() -> None:
    played = PlayedEngine()
    played.add()
    assert played.health()["trade_age_s"] is None
    traded(played, 0, START + 1_000)
    played.until(START + 3_500)
    health = played.health()
    assert (health["trade_age_s"], health["feed_age_s"], health["trade_time"]) == (2.5, 2.5, START + 1_000)
    played.apply(played.feed())
    health = played.health()
    assert (health["trade_age_s"], health["feed_age_s"]) == (2.5, 0.0)


def test_what_rest_answers_is_no_word_of_the_market() -> None:
    played = PlayedEngine()
    played.add()
    traded(played, 0, START + 1_000)
    played.until(START + 5_000)
    played.apply(batch([Trade(1, START + 1_500, 100, 7)]))
    assert played.health()["trade_age_s"] == 4.0


def test_a_gap_that_is_filled_bit_by_bit_is_as_old_as_its_rest() -> None:
    played = PlayedEngine()
    played.add()
    traded(played, 0, START)
    traded(played, 100, START + 1_000)
    assert played.health()["gap_age_s"] == 0.0
    played.until(START + 6_000)
    played.apply(batch([Trade(1, START + 10, 100, 7), Trade(99, START + 990, 100, 7)]))
    assert played.health()["gap_age_s"] == 5.0
    played.apply(batch([Trade(trade_id, START + 500, 100, 7) for trade_id in range(2, 99)]))
    health = played.health()
    assert (health["missing_ids"], health["gap_age_s"]) == (0, 0.0)
    traded(played, 200, START + 20_000)
    assert played.health()["gap_age_s"] == 0.0


def test_silences_of_the_market_are_remembered_and_bounded() -> None:
    played = PlayedEngine()
    played.add()
    traded(played, 0, START + 1_000)
    traded(played, 1, START + 2_900)
    assert played.health()["silences"] == []
    traded(played, 2, START + 9_000)
    assert played.health()["silences"] == [(START + 2_900, START + 9_000)]
    for index in range(20):
        traded(played, 3 + index, START + 20_000 + index * 5_000)
    silences = played.health()["silences"]
    assert len(silences) == SILENCES_MAX
    assert silences[-1] == (START + 110_000, START + 115_000)


def test_rooms_that_come_again_are_counted() -> None:
    played = PlayedEngine()
    assert played.health(0)["restarts"] == {"ingest": 0, "persist": 0}
    for session in (1, 1, 2, 3):
        played.apply(FeedState(session, True, START, START, 0, engine=SESSION))
    for session in (10, 10, 11):
        played.apply(StoreState(session))
    assert played.health(0)["restarts"] == {"ingest": 2, "persist": 1}


@pytest.mark.parametrize(("at_s", "worst"), [(0, 900), (30, 900), (59, 900), (60, 400), (89, 400), (90, 0)])
def test_the_worst_lag_is_that_of_the_last_minute(at_s: int, worst: int) -> None:
    liveness = Liveness()
    for second, lag in ((0, 100), (0, 900), (0, 200), (30, 400)):
        if second <= at_s:
            liveness.traded(START, lag, second * SECOND)
    assert liveness.lag_worst_ms(at_s * SECOND) == worst
