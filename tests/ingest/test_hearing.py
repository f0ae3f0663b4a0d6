"""Streams that are acknowledged and silent."""

from itertools import pairwise

from services.ingest.hearing import CHANGES_MIN, Hearing

PATIENCE = 1_000


def found(hearing: Hearing, begin: int, seconds: int, price: str = "{}", heard: str = "5") -> list[int]:
    """Play a ticker a second of one symbol; return when its stream was unheard. Both texts are given the second."""
    return [
        now
        for now in range(begin, begin + seconds)
        if hearing.unheard({"AUSDT": price.format(now)}, {"AUSDT": int(heard.format(now))}, now * 1000)
    ]


def test_a_stream_that_brings_nothing_while_the_price_changes_is_found() -> None:
    assert found(Hearing(10_000), 0, 11) == [10]


def test_what_is_heard_quiet_or_not_acknowledged_is_not() -> None:
    assert found(Hearing(10_000), 0, 100, heard="{}") == []
    assert found(Hearing(10_000), 0, 100, price="7") == []
    hearing = Hearing(10_000)
    assert not any(hearing.unheard({"AUSDT": str(now)}, {}, now * 1000) for now in range(100))


def test_a_price_must_change_more_than_once_or_twice() -> None:
    hearing = Hearing(10_000)
    prices = ["1", "2", *["3"] * 100]
    assert CHANGES_MIN == 3
    assert not any(hearing.unheard({"A": price}, {"A": 5}, now * 1000) for now, price in enumerate(prices))


def test_what_does_not_help_is_tried_ever_less_often() -> None:
    times = found(Hearing(10_000), 0, 200)
    assert [later - earlier for earlier, later in pairwise(times)][:3] == [11, 21, 41]
