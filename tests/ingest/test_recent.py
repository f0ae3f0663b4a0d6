"""Ingest's memory of recent trades, against a list."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.recent import Recent
from shared.kline import TRADE
from shared.wire import FetchTrades, Instrument, Trades, instruments_of, pack_instruments, trade_rows

NAMES = ("AUSDT", "BUSDT")


def batch(*trades: tuple[str, int], decimals: int = 2, time: int = 0) -> Trades:
    names = sorted({name for name, _ in trades})
    rows = np.zeros(len(trades), TRADE)
    rows["symbol"] = [names.index(name) for name, _ in trades]
    rows["id"] = rows["price"] = [trade_id for _, trade_id in trades]
    rows["time"] = time
    return Trades(pack_instruments([Instrument(name, decimals, 3) for name in names]), rows.tobytes(), 7)


def ids(parts: list[Trades]) -> list[int]:
    return [trade_id for part in parts for trade_id in trade_rows(part.rows)["id"].tolist()]


def covered(parts: list[Trades]) -> set[int]:
    ranges = [each for part in parts for each in part.covered]
    return {trade_id for each in ranges for trade_id in range(each.first_id, each.last_id + 1)}


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
    recent.streams_began(NAMES)
    came = []
    for each in batches:
        recent.add(batch(*each))
        came += each
    remembered = {trade_id for name, trade_id in came[-16:] if name == "AUSDT"}
    ask = FetchTrades("AUSDT", first, first + length)
    answer = recent.answer(ask)
    known = ids(answer.parts)
    rest = {trade_id for each in answer.rest for trade_id in range(each.first_id, each.last_id + 1)}
    assert set(known) <= remembered
    assert len(known) == len(set(known))
    assert covered(answer.parts) == set(known)
    # What is known between two missing ranges is asked for with them.
    assert rest | set(known) == set(range(first, first + length + 1))
    assert not rest or {min(rest), max(rest)}.isdisjoint(known)


def test_the_newest_of_every_symbol_is_known_while_it_is_remembered() -> None:
    recent = Recent(rows_max=4)
    assert recent.last_trades() == []
    recent.add(batch(("AUSDT", 1), ("AUSDT", 2), ("BUSDT", 7)))
    (part,) = recent.last_trades()
    names = [instrument.symbol for instrument in instruments_of(part)]
    assert {(names[row["symbol"]], row["id"]) for row in trade_rows(part.rows)} == {("AUSDT", 2), ("BUSDT", 7)}
    assert part.covered == []
    recent.add(batch(*(("BUSDT", trade_id) for trade_id in range(8, 12)), decimals=4))
    (part,) = recent.last_trades()
    assert [(each.symbol, each.price_decimals) for each in instruments_of(part)] == [("BUSDT", 4)]
    assert ids([part]) == [11]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_what_came_in_order_is_known_as_far_back_as_memory_goes(count: int, first: int, last: int) -> None:
    recent = Recent(rows_max=30)
    for trade_id in range(1, count + 1):
        recent.add(batch(("AUSDT", trade_id)))
    known = ids(recent.answer(FetchTrades("AUSDT", first, last)).parts)
    assert known == [trade_id for trade_id in range(max(1, count - 29), count + 1) if first <= trade_id <= last]


def test_it_knows_that_nothing_is_newer_unless_a_connection_was_lost() -> None:
    recent = Recent()
    recent.streams_began(NAMES)
    recent.add(batch(("AUSDT", 8), ("BUSDT", 5), ("AUSDT", 9)))
    answer = recent.answer(FetchTrades("AUSDT", 8, -1))
    assert (ids(answer.parts), answer.rest) == ([8, 9], [])
    nothing = recent.answer(FetchTrades("AUSDT", 10, -1))
    assert ([instruments_of(part)[0].symbol for part in nothing.parts], ids(nothing.parts)) == (["AUSDT"], [])
    assert nothing.rest == []
    assert recent.answer(FetchTrades("AUSDT", 6, -1)).rest == [FetchTrades("AUSDT", 6, 7)]
    # An engine that asks for more than the next one knows of trades that never came here.
    assert recent.answer(FetchTrades("AUSDT", 12, -1)).rest == [FetchTrades("AUSDT", 12, -1)]
    recent.streams_ended()
    assert recent.answer(FetchTrades("AUSDT", 8, -1)).rest == [FetchTrades("AUSDT", 8, -1)]
    # A trade that comes before the exchange has acknowledged the stream says nothing of those before it.
    recent.add(batch(("AUSDT", 12)))
    assert recent.answer(FetchTrades("AUSDT", 9, -1)).rest == [FetchTrades("AUSDT", 9, -1)]
    recent.streams_began(["AUSDT"])
    assert recent.answer(FetchTrades("AUSDT", 9, -1)).rest == [FetchTrades("AUSDT", 9, -1)]
    recent.add(batch(("AUSDT", 13)))
    answer = recent.answer(FetchTrades("AUSDT", 9, -1))
    assert (ids(answer.parts), answer.rest) == ([9, 12, 13], [FetchTrades("AUSDT", 10, 11)])
    recent.streams_ended("AUSDT")
    recent.add(batch(("AUSDT", 14)))
    assert recent.answer(FetchTrades("AUSDT", 14, -1)).rest == [FetchTrades("AUSDT", 14, -1)]


def test_two_connections_at_once_make_no_order_and_nothing_is_missed() -> None:
    recent = Recent()
    recent.streams_began(["AUSDT"])
    for trade_id in (8, 9, 10, 12, 9, 10, 11, 8, 9):
        recent.add(batch(("AUSDT", trade_id)))
    answer = recent.answer(FetchTrades("AUSDT", 10, -1))
    assert (ids(answer.parts), answer.rest) == ([10, 11, 12], [])
    assert ids(recent.answer(FetchTrades("AUSDT", 12, 12)).parts) == [12]


def test_missing_ranges_that_are_near_are_one_question() -> None:
    recent = Recent()
    recent.add(batch(("AUSDT", 5), ("AUSDT", 9), ("AUSDT", 3_000)))
    answer = recent.answer(FetchTrades("AUSDT", 1, 2_999))
    assert answer.rest == [FetchTrades("AUSDT", 1, 8), FetchTrades("AUSDT", 10, 2_999)]


def test_questions_that_begin_at_a_time_and_unknown_symbols_are_left_to_rest() -> None:
    recent = Recent()
    recent.add(batch(("AUSDT", 8)))
    for ask in (FetchTrades("AUSDT", 0, -1, 5), FetchTrades("CUSDT", 1, 9)):
        assert recent.answer(ask) == ([], [ask])


def test_trades_keep_the_decimals_they_came_with() -> None:
    recent = Recent()
    recent.add(batch(("AUSDT", 1), decimals=2))
    recent.add(batch(("AUSDT", 2), decimals=4))
    (part,) = recent.answer(FetchTrades("AUSDT", 1, 2)).parts
    rows = trade_rows(part.rows)
    assert [instruments_of(part)[row["symbol"]].price_decimals for row in rows] == [2, 4]


def test_ids_that_restart_are_another_sequence() -> None:
    recent = Recent()
    recent.streams_began(NAMES)
    for trade_id in range(1_000, 1_100):
        recent.add(batch(("AUSDT", trade_id), ("BUSDT", trade_id), time=trade_id))
    for trade_id in range(1, 4):
        recent.add(batch(("AUSDT", trade_id), time=5_000 + trade_id))
    answer = recent.answer(FetchTrades("AUSDT", 2, -1))
    assert (ids(answer.parts), answer.rest) == ([2, 3], [])
    # Of the former one nothing is known any more, and who asks for newer ids does not learn that there are none.
    assert recent.answer(FetchTrades("AUSDT", 1_050, 1_060)) == ([], [FetchTrades("AUSDT", 1_050, 1_060)])
    assert recent.answer(FetchTrades("AUSDT", 1_050, -1)) == ([], [FetchTrades("AUSDT", 1_050, -1)])
    assert ids(recent.last_trades()) == [3, 1_099]
    # The others are as they were.
    assert ids(recent.answer(FetchTrades("BUSDT", 1_098, -1)).parts) == [1_098, 1_099]
    # Where a connection was lost, nothing newer is vouched for.
    recent.streams_ended("BUSDT")
    recent.add(batch(("BUSDT", 1), time=6_000))
    assert recent.answer(FetchTrades("BUSDT", 1, -1)).rest == [FetchTrades("BUSDT", 1, -1)]
    assert ids(recent.answer(FetchTrades("BUSDT", 1, 1)).parts) == [1]


def test_a_single_id_that_is_absurd_is_forgotten_with_the_next() -> None:
    recent = Recent()
    recent.streams_began(NAMES)
    recent.add(batch(("AUSDT", 7), time=7))
    recent.add(batch(("AUSDT", 2**60), time=8))
    for trade_id in (8, 9):
        recent.add(batch(("AUSDT", trade_id), time=1 + trade_id))
    answer = recent.answer(FetchTrades("AUSDT", 8, -1))
    assert (ids(answer.parts), answer.rest) == ([8, 9], [])


def test_what_is_out_of_order_is_the_same_sequence() -> None:
    recent = Recent()
    recent.streams_began(NAMES)
    for trade_id in (10, 11, 14, 12, 13, 10, 15):
        recent.add(batch(("AUSDT", trade_id), time=trade_id // 2))
    assert ids(recent.answer(FetchTrades("AUSDT", 10, -1)).parts) == [10, 11, 12, 13, 14, 15]


def test_an_id_that_the_stream_lost_is_not_covered_by_those_around_it() -> None:
    recent = Recent()
    recent.streams_began(NAMES)
    recent.add(batch(*(("AUSDT", trade_id) for trade_id in (5, 6, 9, 10, 12))))
    for ask in (FetchTrades("AUSDT", 5, -1), FetchTrades("AUSDT", 5, 12)):
        answer = recent.answer(ask)
        assert covered(answer.parts) == {5, 6, 9, 10, 12}
        assert answer.rest == [FetchTrades("AUSDT", 7, 11)]


def test_a_void_id_that_came_is_remembered_as_one() -> None:
    recent = Recent()
    rows = np.zeros(2, TRADE)
    rows["id"], rows["trade_count"] = [1, 2], [1, 0]
    recent.add(Trades(pack_instruments([Instrument("AUSDT", 2, 3)]), rows.tobytes(), 7))
    (part,) = recent.answer(FetchTrades("AUSDT", 1, 2)).parts
    assert trade_rows(part.rows)["trade_count"].tolist() == [1, 0]
