"""Ids that answers leave out: asked for again, then visible as what they are, settled by the exchange's own klines."""

from typing import Any

import numpy as np
import pytest

from services.engine.encoding import has_gap
from services.engine.engine import SETTLED_MS
from services.engine.gaps import LEFT_OUT_MS
from services.engine.repair import LEFT_OUT_MAX
from services.engine.snapshots import Snapshots
from shared.kline import AUDITED, CLOSED, EXCHANGE, FINAL, UNEXPLAINED
from shared.snapshot import decode_snapshot
from shared.wire import Covered, FetchKlines, FetchTrades, Klines, Subscribe, Trades, Unexplained
from tests.engine.played import MINUTE, SESSION, START, PlayedEngine, Trade, batch, history
from tests.engine.test_proof import traded

TRADES = [traded(0.5, 1), traded(1.2, 2), traded(1.5, 3), traded(1.6, 4), traded(2.5, 5)]
"""Of these, 3 is sent to nobody."""
HOLE = Unexplained(3, 3, TRADES[1].time, TRADES[3].time)


def begun(**config: Any) -> PlayedEngine:
    played = PlayedEngine(**config)
    played.add(klines=history([traded(-5, 0)], START), until=START)
    played.apply(batch([], covered=[(0, 0)]))
    for trade in TRADES:
        if trade.id != 3:
            played.until(trade.time)
            played.apply(batch([trade], event_time=trade.time))
    return played


def asked(played: PlayedEngine, kind: type) -> list[object]:
    played.engine.tick(played.now_ns)
    return [command for command in played.engine.take_commands() if isinstance(command, kind)]


def leave_out(played: PlayedEngine, times: int = LEFT_OUT_MAX) -> None:
    """Let so many answers come, each when it was asked for, that do not name the id."""
    for attempt in range(times):
        if attempt:
            played.until(played.time + LEFT_OUT_MS[attempt - 1] + 15_000)
        assert FetchTrades("BTCUSDT", 3, 3, to_time=TRADES[3].time) in asked(played, FetchTrades)
        played.apply(batch([], covered=[(3, 3)]))


def flags(played: PlayedEngine, minute: int, interval: str = "1m") -> int:
    return int(played.rows()[interval, START + minute * MINUTE]["flags"])


def official(played: PlayedEngine, trades: list[Trade], minutes: range) -> Klines:
    """Return the exchange's own 1m klines, as they come when they were asked for to be compared."""
    klines = {part.interval: part.rows for part in history([traded(-5, 0), *trades], played.time)}["1m"]
    rows = np.frombuffer(klines, played.engine.book.rows.dtype)
    wanted = [START + minute * MINUTE for minute in minutes]
    return Klines("BTCUSDT", 2, 3, "1m", rows[np.isin(rows["open_time"], wanted)].tobytes(), True)


def test_an_id_that_an_answer_leaves_out_is_asked_for_again_and_later_each_time() -> None:
    played = begun()
    leave_out(played, LEFT_OUT_MAX - 1)
    assert played.engine.gaps(0) == [(3, 3)]
    assert flags(played, 1) == CLOSED
    leave_out_last = played.time
    played.apply(batch([traded(1.5, 3)], covered=[(3, 3)]))
    assert played.engine.gaps(0) == []
    assert flags(played, 1) == CLOSED | FINAL
    assert played.time == leave_out_last


def test_answers_that_come_sooner_than_they_were_asked_for_do_not_make_an_id_unexplained() -> None:
    played = begun()
    leave_out(played, 1)
    for _ in range(3 * LEFT_OUT_MAX):
        # Another gap of the symbol was asked for, and the answer was about this one too.
        played.until(played.time + 1_500)
        played.apply(batch([], covered=[(3, 3)]))
    assert played.time - TRADES[-1].time < sum(LEFT_OUT_MS)
    assert (played.engine.gaps(0), played.engine.repair.unexplained(0)) == ([(3, 3)], [])


def test_an_id_that_all_answers_leave_out_is_unexplained_and_what_follows_is_proven() -> None:
    played = begun()
    snapshots = Snapshots(played.engine, SESSION, 0)
    snapshots.subscription(b"\x01kline.BTCUSDT.1m")
    list(snapshots.owed(0))
    leave_out(played)
    assert (played.engine.gaps(0), played.engine.repair.unexplained(0)) == ([], [HOLE])
    assert [flags(played, minute) for minute in (0, 1)] == [CLOSED | FINAL, CLOSED | UNEXPLAINED]
    assert flags(played, 0, "3m") & UNEXPLAINED
    figures = played.health()
    assert (figures["missing_ids"], figures["unexplained_ids"], figures["symbols_unexplained"]) == (0, 1, 1)
    rows = [decode_snapshot(body) for topic, body in snapshots.due(played.now_ns) if b"kline" in topic]
    proofs = {(row.open_time - START) // MINUTE: (row.gap, row.unexplained, row.final) for row in rows}
    assert proofs[1] == (False, True, False)
    played.apply(batch([traded(3.1, 6)]))
    assert [flags(played, minute) & FINAL for minute in (0, 1, 2)] == [FINAL, 0, FINAL]
    assert not asked(played, FetchTrades)


def test_ids_are_settled_where_the_exchange_has_the_same_kline() -> None:
    played = begun()
    leave_out(played)
    asked(played, FetchKlines)
    played.until(START + 4 * MINUTE + 31_000)
    minute = START + MINUTE
    assert asked(played, FetchKlines) == [FetchKlines("BTCUSDT", "1m", minute, minute, audit=True)]
    kept = [trade for trade in TRADES if trade.id != 3]
    played.apply(official(played, kept, range(1, 2)))
    assert flags(played, 1) == CLOSED | FINAL | AUDITED
    assert flags(played, 0, "3m") & (UNEXPLAINED | AUDITED) == AUDITED
    assert played.engine.repair.unexplained(0) == [Unexplained(*HOLE_IDS, "audited")]
    played.save()
    assert played.marks["BTCUSDT"].unexplained == [Unexplained(*HOLE_IDS, "audited")]
    assert asked(played, FetchKlines) == []


HOLE_IDS = (HOLE.first_id, HOLE.last_id, HOLE.from_time, HOLE.to_time)


def test_where_the_exchange_has_another_kline_that_is_adopted_and_said() -> None:
    played = begun()
    leave_out(played)
    played.until(START + 4 * MINUTE + 31_000)
    played.apply(official(played, TRADES, range(1, 2)))
    assert flags(played, 1) == CLOSED | UNEXPLAINED
    assert asked(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]
    seam = played.time // MINUTE * MINUTE
    played.add(klines=history([traded(-5, 0), *TRADES], seam), until=seam)
    rows = played.rows()
    assert rows["1m", START + MINUTE]["volume"] == 3 * 7
    assert not rows["1m", START + MINUTE]["flags"] & UNEXPLAINED
    assert rows["1m", START]["id_count"] == 1, "what was proven stays"
    played.save()
    assert played.marks["BTCUSDT"].unexplained == [Unexplained(*HOLE_IDS, "adopted")]


def test_an_id_that_comes_after_all_is_applied_and_explains_its_kline() -> None:
    played = begun()
    leave_out(played)
    played.apply(batch([traded(1.5, 3)]))
    assert played.engine.repair.unexplained(0) == []
    assert flags(played, 1) == CLOSED | FINAL
    assert played.rows()["1m", START + MINUTE]["volume"] == 3 * 7


def test_unexplained_ids_survive_a_restart() -> None:
    played = begun()
    leave_out(played)
    played.save()
    mark = played.marks["BTCUSDT"]
    assert (mark.gaps, mark.unexplained) == ([], [HOLE])
    later = PlayedEngine(time=played.time + 5_000, restored=played.restored())
    assert later.engine.repair.unexplained(0) == [HOLE]
    assert flags(later, 1) == CLOSED | UNEXPLAINED
    later.until(START + 5 * MINUTE)
    minute = START + MINUTE
    assert FetchKlines("BTCUSDT", "1m", minute, minute, audit=True) in asked(later, FetchKlines)
    later.apply(official(later, [trade for trade in TRADES if trade.id != 3], range(1, 2)))
    assert flags(later, 1) == CLOSED | FINAL | AUDITED


def test_a_replay_asks_once_and_keeps_a_hole_as_what_it_is() -> None:
    played = begun(clock_speed=0.0)
    played.apply(batch([], covered=[(3, 3)]))
    played.apply(batch([traded(4.1, 6)], event_time=START + 5 * MINUTE))
    assert flags(played, 1) == CLOSED | UNEXPLAINED
    assert flags(played, 2) == CLOSED | FINAL
    assert asked(played, FetchKlines) == []
    played.save()
    assert played.marks["BTCUSDT"].unexplained == [HOLE]


def test_an_answer_that_waits_for_the_store_and_has_a_trade_that_is_refused_explains_nothing() -> None:
    """In a replay trades wait for the store; what was refused of an answer before it waited stays missing."""
    played = PlayedEngine(clock_speed=0.0, window=100)
    played.add(klines=history([traded(-5, 0)], START), until=START)
    played.apply(batch([], covered=[(0, 0)]), batch([traded(0.5, 1)], event_time=START + 31_000))
    far = START + 200 * MINUTE
    refused = Trade(2, START + MINUTE, -1, 7)
    held = batch([refused, Trade(3, far, 100, 7)], covered=[(2, 3)])
    played.apply(Trades(held.instruments, held.rows, far, held.covered))
    assert played.engine.minute_end < far, "the store does not have what would leave memory"
    while played.engine.minute_end <= far:
        played.save()
        played.engine.tick(played.now_ns)
    row = played.rows()["1m", far // MINUTE * MINUTE]
    assert row["id_count"] == 1
    assert [(ids.first_id, ids.last_id) for ids in played.engine.repair.unexplained(0)] == [(2, 2)]
    assert not row["flags"] & FINAL


def late(played: PlayedEngine, minute: float, trade_id: int) -> None:
    played.apply(batch([traded(minute, trade_id)], event_time=played.time))


def test_a_final_kline_that_gets_a_trade_all_the_same_takes_it_back_and_is_final_again_later() -> None:
    played = begun()
    played.apply(batch([traded(1.5, 3)]))
    before = played.rows()["1m", START + MINUTE].copy()
    assert before["flags"] == CLOSED | FINAL
    late(played, 1.9, 6)
    row = played.rows()["1m", START + MINUTE]
    assert (row["flags"], row["revision"], row["volume"]) == (CLOSED, before["revision"] + 1, before["volume"] + 7)
    assert played.engine.book.counters[0]["withdrawn"] == 1
    fall = traded(2.5, 5).time - traded(1.9, 6).time
    played.until(START + 4 * MINUTE)
    late(played, 3.01, 7)
    # So much later than before, each time from here on: what has fallen may fall again.
    assert [flags(played, minute) for minute in (1, 2)] == [CLOSED, CLOSED]
    played.apply(batch([Trade(8, START + 3 * MINUTE + fall, 100, 7)]))
    assert [flags(played, minute) for minute in (1, 2)] == [CLOSED | FINAL, CLOSED | FINAL]


def test_a_symbol_is_reseeded_by_a_trade_of_another_minute_under_a_used_id() -> None:
    played = begun()
    asked(played, object)
    played.until(START + 5 * MINUTE)
    late(played, 1.7, 4)
    assert asked(played, Subscribe) == [], "an id that came again with nothing newer is a duplicate"
    late(played, 5.1, 1)
    assert played.engine.book.counters[0]["contradictions"] == 1
    assert asked(played, Subscribe) == [], "trades of both are in this minute: it will be the exchange's own"
    played.until(START + 6 * MINUTE + SETTLED_MS)
    assert asked(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]


def test_a_minute_in_which_ids_restart_is_final_by_neither_of_them() -> None:
    played = begun()
    played.apply(batch([traded(1.5, 3)]))
    after = [traded(2.7, 0), traded(2.8, 1), traded(2.9, 6), traded(3.01, 7)]
    for trade in after:
        played.until(trade.time)
        played.apply(batch([trade], event_time=trade.time))
    asked(played, object)
    assert flags(played, 1) == CLOSED | FINAL
    assert flags(played, 2) == CLOSED, "of the new ids none counts yet, not even one that goes on with the old ones"
    book = played.engine.book
    assert [has_gap(book, 0, START + minute * MINUTE, START + (minute + 1) * MINUTE) for minute in (1, 2)] == [0, 1]
    early: dict[str, Any] = {
        "klines": history([traded(-5, 0), *TRADES], START + 2 * MINUTE),
        "until": START + 2 * MINUTE,
    }
    # Announced for another reason, and then with the minute not over: both times too early.
    for moment in (1, 2):
        played.add(**early)
        assert flags(played, 2) == CLOSED
        asked(played, object)
        played.until(START + 3 * MINUTE + moment * SETTLED_MS)
        assert asked(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]
    played.add(klines=history([traded(-5, 0), *TRADES, *after], START + 3 * MINUTE), until=START + 3 * MINUTE)
    played.apply(batch(after[3:], covered=[(0, 7)]))
    row = played.rows()["1m", START + 2 * MINUTE]
    assert (row["trade_count"], row["flags"] & (FINAL | EXCHANGE)) == (4, FINAL | EXCHANGE)
    assert played.rows()["3m", START]["trade_count"] == 8


def test_an_id_0_of_a_symbol_that_has_traded_before_is_a_restart() -> None:
    """It has begun, and before anybody could say what its newest id was, its ids restarted."""
    played = PlayedEngine()
    played.add(klines=history([traded(-5, 7), traded(-2.5, 8)], START), until=START)
    asked(played, object)
    played.apply(batch([traded(0.2, 0)], event_time=traded(0.2, 0).time))
    assert (played.engine.book.counters[0]["contradictions"], played.values()) == (1, {})
    played.until(START + MINUTE + SETTLED_MS)
    assert asked(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]


def test_an_id_0_of_a_symbol_that_has_never_traded_is_its_first_trade() -> None:
    played = PlayedEngine()
    played.add(until=START)
    played.apply(batch([traded(0.2, 0)], event_time=traded(0.2, 0).time))
    assert (played.engine.book.counters[0]["contradictions"], flags(played, 0)) == (0, 0)
    assert played.values()["1m", START]["id_count"] == 1


@pytest.mark.parametrize("trade_id", [1, 4])
def test_a_duplicate_after_a_restart_is_no_contradiction(trade_id: int) -> None:
    played = begun()
    played.save()
    later = PlayedEngine(time=played.time + 5_000, restored=played.restored())
    asked(later, object)
    later.apply(batch([trade for trade in TRADES if trade.id == trade_id], event_time=later.time))
    later.apply(batch([TRADES[-1]], event_time=later.time))
    assert asked(later, Subscribe) == []
    assert later.engine.book.counters[0]["duplicates"] == 2


def test_what_was_before_a_recording_is_none_of_its_holes() -> None:
    played = PlayedEngine(clock_speed=0.0)
    played.add()
    played.apply(batch([traded(0.5, 1_000)], event_time=START + 31_000))
    first = batch([], covered=[])
    played.apply(Trades(first.instruments, b"", 0, [Covered(0, 0, 999)]))
    assert (played.engine.gaps(0), played.engine.repair.unexplained(0)) == ([], [])
    played.apply(batch([traded(1.5, 1_002)], event_time=START + 91_000), batch([], covered=[(1_001, 1_001)]))
    assert [ids.first_id for ids in played.engine.repair.unexplained(0)] == [1_001]


LATE = traded(-2.5, 3)
"""It comes after trades from the seam on, and its minute is the exchange's own."""


def with_a_late_one(known: bool) -> PlayedEngine:
    """Play a trade with a time before the seam; `known`: the exchange's klines had it when they were asked for."""
    played = PlayedEngine()
    played.add(klines=history([traded(-5, 0), *([LATE] if known else [])], START), until=START)
    played.apply(batch([], covered=[(0, 0)]))
    played.apply(batch([traded(0.1, 1), traded(0.2, 2), LATE, traded(0.3, 4)], event_time=START + 20_000))
    return played


def test_a_trade_from_before_the_seam_that_comes_late_is_unexplained_in_its_minute_and_up_to_now() -> None:
    """No row holds it, and the exchange's own kline may have been asked for before there was such a trade."""
    played = with_a_late_one(known=False)
    kept = [Unexplained(3, 3, LATE.time, START + MINUTE - 1)]
    assert played.engine.repair.unexplained(0) == kept
    played.apply(batch([LATE], covered=[(3, 3)]), batch([LATE, traded(0.4, 5)]))
    assert (played.engine.gaps(0), played.engine.repair.unexplained(0)) == ([], kept)
    played.until(START + 2 * MINUTE)
    played.apply(batch([traded(2.1, 6)]))
    assert [flags(played, minute) & (UNEXPLAINED | FINAL) for minute in (-4, -3, -2, -1, 0, 1)] == [
        FINAL,
        UNEXPLAINED,
        UNEXPLAINED,
        UNEXPLAINED,
        UNEXPLAINED,
        FINAL,
    ]
    hour = LATE.time // (60 * MINUTE) * 60 * MINUTE
    assert played.rows()["1h", hour]["flags"] & UNEXPLAINED


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_trade_that_says_a_time_before_the_seam_is_unexplained_though_it_comes_before_those_it_follows_on(
    order: str,
) -> None:
    """Until an answer has said which ids are older than the seam, its time alone does not."""
    played = PlayedEngine()
    played.add(klines=history([traded(-5, 0)], START), until=START)
    first = [traded(0.1, 1), traded(0.2, 2)]
    if order == "after":
        played.apply(batch([traded(0.5, 6)], event_time=START + 30_000))
    played.apply(batch([LATE], event_time=START + 40_000))
    assert played.engine.repair.unexplained(0) == []
    played.apply(batch([*first, LATE, traded(0.3, 4), traded(0.4, 5)], covered=[(0, 5, 0)]))
    assert [(ids.first_id, ids.from_time) for ids in played.engine.repair.unexplained(0)] == [(3, LATE.time)]
    assert played.engine.gaps(0) == []


@pytest.mark.parametrize("known", [True, False])
def test_the_exchanges_minutes_show_whether_a_late_trade_from_before_the_seam_is_in_them(known: bool) -> None:
    played = with_a_late_one(known)
    played.until(START + 3 * MINUTE + 1_000)
    first = START - 3 * MINUTE
    assert asked(played, FetchKlines) == [FetchKlines("BTCUSDT", "1m", first, START, audit=True)]
    mine = [traded(0.1, 1), traded(0.2, 2), LATE, traded(0.3, 4)]
    played.apply(official(played, mine, range(-3, 1)))
    if known:
        assert [ids.outcome for ids in played.engine.repair.unexplained(0)] == ["audited"]
        assert all(flags(played, minute) & FINAL for minute in (-3, -2, -1))
        return
    # It is reseeded, and has the exchange's own klines from that minute on.
    assert asked(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]
    seam = played.time // MINUTE * MINUTE
    played.add(klines=history([traded(-5, 0), *mine], seam), until=seam)
    assert played.rows()["1m", first]["volume"] == LATE.quantity
    assert [ids.outcome for ids in played.engine.repair.unexplained(0)] == ["adopted"]
    assert all(flags(played, minute) & FINAL for minute in range(-3, 3))


def test_a_trade_too_old_for_memory_among_newer_ones_makes_its_own_minute_untrue_and_is_had_from_the_exchange() -> None:
    """Its id is among new ones, and its time one that has left memory: no row can take it any more."""
    played = PlayedEngine()
    played.add()
    for trade_id in range(120):
        played.until(START + trade_id * MINUTE + 500)
        played.apply(batch([traded(trade_id, trade_id)]))
        played.save()
    old = traded(10.5, 120)
    played.apply(batch([old]))
    assert played.engine.gaps(0) == []
    (kept,) = played.engine.repair.unexplained(0)
    assert (kept.first_id, kept.last_id, kept.from_time, kept.outcome) == (120, 120, old.time, "open")
    assert flags(played, 118) & (FINAL | UNEXPLAINED) == UNEXPLAINED
    played.apply(batch([traded(119.5, 121)]))
    played.until(START + 122 * MINUTE)
    played.apply(batch([traded(122, 122)]))
    # It is reseeded, and has the exchange's own klines from that minute on.
    played.until(played.time + 1_000)
    assert played.engine.reseeded == 1


def test_what_has_been_missing_for_as_long_as_memory_is_not_set_aside_when_it_comes() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([traded(0, 0)]))
    for trade_id in range(1, 120):
        played.until(START + trade_id * MINUTE + 500)
        played.apply(batch([traded(trade_id, trade_id + 1)]))
        played.save()
    played.apply(batch([traded(0.5, 1)]))
    assert played.engine.repair.unexplained(0) == []
    assert played.engine.gaps(0) == [(1, 1)]
