"""Streams that are acknowledged and bring nothing."""

from itertools import pairwise

from services.ingest.stale_streams import CHANGES_MIN, StaleStreams


def found(streams: StaleStreams, begin: int, seconds: int, price: str = "{}", trade: str = "5") -> list[int]:
    """Play a ticker a second of one symbol; return when its stream was stale. Both texts are given the second."""
    return [
        now
        for now in range(begin, begin + seconds)
        if streams.stale({"AUSDT": price.format(now)}, {"AUSDT": int(trade.format(now))}, now * 1000)
    ]


def test_a_stream_that_brings_nothing_while_the_price_changes_is_found() -> None:
    assert found(StaleStreams(10_000), 0, 11) == [10]


def test_a_stream_that_delivers_is_quiet_or_is_not_acknowledged_is_not_stale() -> None:
    assert found(StaleStreams(10_000), 0, 100, trade="{}") == []
    assert found(StaleStreams(10_000), 0, 100, price="7") == []
    streams = StaleStreams(10_000)
    assert not any(streams.stale({"AUSDT": str(now)}, {}, now * 1000) for now in range(100))


def test_a_price_must_change_more_than_once_or_twice() -> None:
    streams = StaleStreams(10_000)
    prices = ["1", "2", *["3"] * 100]
    assert CHANGES_MIN == 3
    assert not any(streams.stale({"A": price}, {"A": 5}, now * 1000) for now, price in enumerate(prices))


def test_what_does_not_help_is_tried_ever_less_often() -> None:
    times = found(StaleStreams(10_000), 0, 200)
    assert [later - earlier for earlier, later in pairwise(times)][:3] == [11, 21, 41]
