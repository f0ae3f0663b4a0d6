"""Batches for the store: when, what is in them, and what happens to those that are lost."""

import numpy as np
import pytest

from services.engine import saving as saving_module
from shared.interval import INTERVAL_NAMES
from shared.kline import KLINE
from shared.wire import (
    DirtyBatch,
    FetchKlines,
    Klines,
    Persisted,
    StorePoint,
    StoreState,
    decode_store_request,
    encode,
    placed_rows,
)
from tests.engine.played import MINUTE, MS, SESSION, START, PlayedEngine, Trade, batch, expected, history, market


def test_a_batch_is_due_after_the_interval_or_at_so_many_rows() -> None:
    played = PlayedEngine(save_interval_ms=5_000, save_rows=20)
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    assert played.engine.take_batch(4_999 * MS) is None
    first = played.engine.take_batch(5_000 * MS)
    assert first is not None
    assert len(placed_rows(first.rows)) == 15
    played.apply(Persisted(SESSION, first.batch))
    played.until(START + 5 * MINUTE)
    played.apply(batch([Trade(1, START + 5 * MINUTE, 100, 7)]))
    assert len(played.engine.unsaved) >= 20
    assert played.engine.take_batch(5_001 * MS) is not None


def test_many_rows_wait_while_saving_rests_and_the_interval_does_not() -> None:
    played = PlayedEngine(save_interval_ms=5_000, save_rows=1)
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    first = played.engine.take_batch(0)
    assert first is not None
    played.now_ns = 100 * MS
    played.apply(Persisted(SESSION, first.batch), batch([Trade(1, START, 100, 7)]))
    # The batch took 100 ms: rows alone make another one 1.9 s later.
    assert played.engine.take_batch(1_999 * MS) is None
    second = played.engine.take_batch(2_000 * MS)
    assert second is not None
    played.now_ns = 4_000 * MS
    played.apply(Persisted(SESSION, second.batch), batch([Trade(2, START, 100, 7)]))
    # It took 2 s, which would be a rest of 38 s: the interval is over before.
    assert played.engine.take_batch(6_999 * MS) is None
    assert played.engine.take_batch(7_000 * MS) is not None


def test_a_backlog_rests_less_than_rows_that_trades_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving_module, "BATCH_ROWS_MAX", 10)
    played = PlayedEngine(save_interval_ms=60_000, save_rows=1)
    klines = history(market(1, 300, START - 90 * MINUTE, 90 * MINUTE), START)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        played.add(symbol, klines, until=START)
    first = played.engine.take_batch(0)
    assert first is not None
    played.now_ns = 100 * MS
    # Of the other symbol, more is unsaved than the 60 rows that trades change of two.
    assert len(played.engine.unsaved) > 60
    played.apply(Persisted(SESSION, first.batch))
    assert played.engine.take_batch(399 * MS) is None
    assert played.engine.take_batch(400 * MS) is not None


def test_there_is_one_batch_at_a_time() -> None:
    played = PlayedEngine(save_rows=1)
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    first = played.engine.take_batch(1)
    assert first is not None
    played.apply(batch([Trade(1, START, 100, 7)]))
    assert played.engine.take_batch(10**12) is None
    played.apply(Persisted(SESSION, first.batch - 1))
    assert played.engine.take_batch(10**12) is None
    played.apply(Persisted(SESSION, first.batch))
    second = played.engine.take_batch(10**12)
    assert second is not None
    assert second.batch == first.batch + 1
    assert second.marks[0].last_id == 1


def test_rows_and_frontiers_of_a_batch_are_one_cut() -> None:
    trades = market(5, 80)
    played = PlayedEngine(START + 6 * MINUTE, save_rows=1)
    played.add()
    for begin in range(0, 80, 8):
        played.apply(batch(trades[begin : begin + 8]))
        played.save()
        applied = [trade for trade in trades if trade.id <= played.marks["BTCUSDT"].last_id]
        assert len(applied) == begin + 8
        want = expected(applied)
        got = {key[1:]: int(row["volume"]) for key, row in played.stored.items() if row["id_count"]}
        assert got == {key: row["volume"] for key, row in want.items()}


def test_a_lost_batch_is_sent_again_with_what_changed_since() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    lost = played.save(acknowledge=False)
    played.apply(batch([Trade(1, START + 1, 110, 1)]))
    assert played.save() is None
    played.apply(StoreState(9))
    assert not played.engine.saving.under_way
    again = played.save()
    assert again is not None
    assert lost is not None
    assert len(placed_rows(again.rows)) == len(placed_rows(lost.rows)) == len(INTERVAL_NAMES)
    assert played.stored["BTCUSDT", "1m", START]["volume"] == 8
    # The acknowledgement of the lost one comes late and means nothing.
    played.apply(Persisted(SESSION, lost.batch))
    assert played.engine.dropped == {"acknowledgements of nothing": 1}


def test_large_batches_are_parted_between_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving_module, "BATCH_ROWS_MAX", 20)
    played = PlayedEngine()
    for number, name in enumerate(("AUSDT", "BUSDT", "CUSDT")):
        played.add(name)
        played.apply(batch([Trade(number, START, 100, 7)], symbol=name))
    seen = []
    while (part := played.save()) is not None:
        assert len(part.marks) == 1
        assert set(placed_rows(part.rows)["symbol"].tolist()) == {0}
        seen.append(part.marks[0].symbol)
    assert seen == ["AUSDT", "BUSDT", "CUSDT"]


def test_a_frontier_that_moves_without_rows_is_saved_too() -> None:
    played = PlayedEngine()
    played.add()
    played.save()
    played.apply(batch([], covered=[(0, 41)]))
    saved = played.save()
    assert saved is not None
    assert [(mark.symbol, mark.last_id, mark.gaps) for mark in saved.marks] == [("BTCUSDT", 41, [])]


def test_a_lost_frontier_that_moved_without_rows_is_sent_again() -> None:
    played = PlayedEngine()
    played.add()
    played.save()
    played.apply(batch([], covered=[(0, 41)]))
    assert played.save(acknowledge=False) is not None
    played.apply(StoreState(9))
    again = played.save()
    assert again is not None
    assert [(mark.symbol, mark.last_id) for mark in again.marks] == [("BTCUSDT", 41)]


def test_a_batch_survives_its_journey() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7), Trade(9, START, 100, 7)]))
    saved = played.save(acknowledge=False)
    assert decode_store_request(encode(saved)) == saved
    assert saved is not None
    assert saved.marks[0].gaps == [(1, 8)]
    assert np.array_equal(np.unique(placed_rows(saved.rows)["interval"]), np.arange(15))


def refused_at_first(played: PlayedEngine) -> DirtyBatch:
    """Two symbols begin; the store takes one of them, and refuses the other."""
    for name in ("AUSDT", "BUSDT"):
        played.add(name)
        played.apply(batch([Trade(0, START, 100, 7)], symbol=name))
    first = played.engine.take_batch(played.now_ns, last=True)
    assert first is not None
    played.apply(Persisted(SESSION, first.batch, "tables", ["BUSDT"]))
    return first


def test_a_symbol_that_the_store_refuses_is_named_and_saved_whole_when_it_is_taken_again() -> None:
    played = PlayedEngine()
    first = refused_at_first(played)
    assert played.health(0)["symbols_not_saved"] == ["BUSDT"]
    # It is not sent again at once, and keeps nobody waiting.
    assert played.engine.take_batch(played.now_ns, last=True) is None
    played.apply(batch([Trade(1, START + 1, 100, 7)], symbol="AUSDT"))
    second = played.save()
    assert second is not None
    assert second.after == StorePoint("tables", SESSION, first.batch)
    assert [mark.symbol for mark in second.marks] == ["AUSDT"]
    played.until(START + MINUTE)
    third = played.save()
    assert third is not None
    assert [mark.symbol for mark in third.marks] == ["AUSDT", "BUSDT"]
    assert np.count_nonzero(placed_rows(third.rows)["symbol"] == 1) == len(played.rows("BUSDT"))
    assert played.health(0)["symbols_not_saved"] == []
    assert played.save() is None


def test_klines_of_a_refused_symbol_that_leave_memory_are_wanted_of_the_exchange_when_it_is_taken() -> None:
    played = PlayedEngine(window=100)
    refused_at_first(played)
    played.until(START + 120 * MINUTE)
    assert not any(isinstance(command, FetchKlines) for command in played.engine.take_commands())
    saved = played.save(acknowledge=False)
    assert saved is not None
    (mark,) = [mark for mark in saved.marks if mark.symbol == "BUSDT"]
    # Without these words whoever goes on with what the store has would take the rows that it has for the last ones.
    assert ("1m", START, START + 20 * MINUTE) in mark.lacking
    played.apply(Persisted(SESSION, saved.batch, "tables"))
    played.until(START + 120 * MINUTE + 6_000)
    wanted = [command for command in played.engine.take_commands() if isinstance(command, FetchKlines)]
    assert FetchKlines("BUSDT", "1m", START, START + 20 * MINUTE) in wanted


def test_a_store_that_is_emptied_while_klines_are_on_their_way_gets_what_lies_between_them_and_memory_too() -> None:
    played = PlayedEngine(window=100)
    played.add()
    played.apply(batch([Trade(0, START + 10, 100, 7)]))

    def until(minute: int) -> None:
        for after in range(int(played.time - START) // MINUTE + 1, minute + 1):
            played.until(START + after * MINUTE)
            played.save()

    until(120)
    played.apply(StoreState(2, StorePoint(), START + 5 * MINUTE))
    assert ("1m", START + 5 * MINUTE, START + 21 * MINUTE - 1) in played.engine.repair.lacking()[0]
    until(125)
    played.apply(StoreState(3, StorePoint(), 0))
    assert ("1m", START + 5 * MINUTE, START + 26 * MINUTE - 1) in played.engine.repair.lacking()[0]
    # They have come, and wait for the store in their turn.
    klines = {part.interval: part.rows for part in history([Trade(0, START + 10, 100, 7)], played.time, 10**6)}["1m"]
    rows = np.frombuffer(klines, KLINE)
    while ("1m", START + 5 * MINUTE, START + 26 * MINUTE - 1) in played.engine.repair.lacking().get(0, []):
        wanted = (rows["open_time"] >= START + 5 * MINUTE) & (rows["open_time"] < START + 26 * MINUTE)
        played.apply(Klines("BTCUSDT", 2, 3, "1m", rows[wanted].tobytes()))
    played.until(START + 126 * MINUTE)
    played.apply(StoreState(4, StorePoint(tables="another"), 0))
    assert ("1m", START + 5 * MINUTE, START + 27 * MINUTE - 1) in played.engine.repair.lacking()[0]
