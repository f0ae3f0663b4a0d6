"""Ingest's memory of recent trades, against a list."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.recent import Recent
from shared.kline import TRADE
from shared.wire import FetchTrades, Instrument, Trades, trade_rows

NAMES = ("AUSDT", "BUSDT")


def batch(*trades: tuple[str, int], decimals: int = 2) -> Trades:
    names = sorted({name for name, _ in trades})
    rows = np.zeros(len(trades), TRADE)
    rows["symbol"] = [names.index(name) for name, _ in trades]
    rows["id"] = rows["price"] = [number for _, number in trades]
    return Trades([Instrument(name, decimals, 3) for name in names], rows.tobytes(), 7)


def ids(parts: list[Trades]) -> list[int]:
    return [number for part in parts for number in trade_rows(part.rows)["id"].tolist()]


def covered(parts: list[Trades]) -> set[int]:
    ranges = [each for part in parts for each in part.covered]
    return {number for each in ranges for number in range(each.first_id, each.last_id + 1)}


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 60)), max_size=8), max_size=12),
    st.integers(1, 60),
    st.integers(0, 60),
)
@settings(deadline=None)
def test_what_it_answers_is_what_came_and_the_rest_is_asked_for(
    batches: list[list[tuple[str, int]]], first: int, length: int
) -> None:
    recent = Recent(rows_max=16)
    came = []
    for each in batches:
        recent.add(batch(*each))
        came += each
    remembered = {number for name, number in came[-16:] if name == "AUSDT"}
    ask = FetchTrades("AUSDT", first, first + length)
    answer = recent.answer(ask)
    known = ids(answer.parts)
    rest = {number for each in answer.rest for number in range(each.first_id, each.last_id + 1)}
    assert set(known) <= remembered
    assert len(known) == len(set(known))
    assert covered(answer.parts) == set(known)
    assert rest | set(known) == set(range(first, first + length + 1))
    assert not rest & set(known)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_what_came_in_order_is_known_as_far_back_as_memory_goes(count: int, first: int, last: int) -> None:
    recent = Recent(rows_max=30)
    for number in range(1, count + 1):
        recent.add(batch(("AUSDT", number)))
    known = ids(recent.answer(FetchTrades("AUSDT", first, last)).parts)
    assert known == [number for number in range(max(1, count - 29), count + 1) if first <= number <= last]


def test_it_knows_that_nothing_is_newer_unless_a_connection_was_lost() -> None:
    recent = Recent()
    recent.add(batch(("AUSDT", 8), ("BUSDT", 5), ("AUSDT", 9)))
    answer = recent.answer(FetchTrades("AUSDT", 8, -1))
    assert (ids(answer.parts), answer.rest) == ([8, 9], [])
    nothing = recent.answer(FetchTrades("AUSDT", 10, -1))
    assert ([part.instruments[0].symbol for part in nothing.parts], ids(nothing.parts)) == (["AUSDT"], [])
    assert nothing.rest == []
    assert recent.answer(FetchTrades("AUSDT", 6, -1)).rest == [FetchTrades("AUSDT", 6, 7)]
    # Whoever asks for more than the next one knows of trades that never came here.
    assert recent.answer(FetchTrades("AUSDT", 12, -1)).rest == [FetchTrades("AUSDT", 12, -1)]
    recent.note_break()
    assert recent.answer(FetchTrades("AUSDT", 8, -1)).rest == [FetchTrades("AUSDT", 8, -1)]
    recent.add(batch(("AUSDT", 12)))
    answer = recent.answer(FetchTrades("AUSDT", 9, -1))
    assert (ids(answer.parts), answer.rest) == ([9, 12], [FetchTrades("AUSDT", 10, 11)])


def test_questions_that_begin_at_a_time_and_unknown_symbols_are_left_to_rest() -> None:
    recent = Recent()
    recent.add(batch(("AUSDT", 8)))
    for ask in (FetchTrades("AUSDT", 0, -1, 5), FetchTrades("CUSDT", 1, 9)):
        assert recent.answer(ask) == ([], [ask])
    recent.forget("AUSDT")
    assert recent.answer(FetchTrades("AUSDT", 8, 8)).rest == [FetchTrades("AUSDT", 8, 8)]


def test_trades_keep_the_decimals_they_came_with() -> None:
    recent = Recent()
    recent.add(batch(("AUSDT", 1), decimals=2))
    recent.add(batch(("AUSDT", 2), decimals=4))
    (part,) = recent.answer(FetchTrades("AUSDT", 1, 2)).parts
    rows = trade_rows(part.rows)
    assert [part.instruments[row["symbol"]].price_decimals for row in rows] == [2, 4]
