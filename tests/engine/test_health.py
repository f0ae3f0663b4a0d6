"""What the engine says of how well all is."""

from shared.wire import StoreState
from tests.engine.played import START, PlayedEngine, Trade, batch
from tests.engine.test_liveness import traded


def test_nothing_saved_is_reported_as_long_as_something_waits() -> None:
    played = PlayedEngine()
    played.add()
    traded(played, 0, START + 1_000)
    played.save()
    played.until(START + 100_000)
    played.save()
    assert played.health()["saved_age_s"] == 0.0
    traded(played, 1, START + 101_000)
    assert played.save(acknowledge=False) is not None
    played.until(START + 130_000)
    assert played.health()["saved_age_s"] == 30.0
    # A store that has come again takes it.
    played.apply(StoreState(5))
    played.save()
    assert played.health()["saved_age_s"] == 0.0


def test_health_says_how_far_trades_are_behind_the_exchange() -> None:
    played = PlayedEngine()
    played.add()
    played.until(START + 5_000)
    played.apply(batch([Trade(0, START + 1_000, 100, 7)], event_time=START + 1_200))
    assert played.health()["lag_ms"] == 3_800
    # An answer says nothing about now; and a clock may be measured late.
    played.apply(batch([Trade(1, START + 100, 100, 7)]))
    assert played.health()["lag_ms"] == 3_800
    played.apply(batch([Trade(2, START + 4_900, 100, 7)], event_time=START + 5_010))
    assert played.health()["lag_ms"] == 0
