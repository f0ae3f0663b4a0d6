"""Batches for the store: when, what is in them, and what happens to those that are lost."""

import numpy as np
import pytest

from services.engine import saving as saving_module
from shared.interval import INTERVAL_NAMES
from shared.wire import (
    Persisted,
    StoreState,
    decode_store_request,
    encode,
    placed_rows,
)
from tests.engine.played import MINUTE, MS, SESSION, START, PlayedEngine, Trade, batch, history, market


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
    for trade_id, name in enumerate(("AUSDT", "BUSDT", "CUSDT")):
        played.add(name)
        played.apply(batch([Trade(trade_id, START, 100, 7)], symbol=name))
    seen = []
    while (part := played.save()) is not None:
        assert len(part.marks) == 1
        assert set(placed_rows(part.rows)["symbol"].tolist()) == {0}
        seen.append(part.marks[0].symbol)
    assert seen == ["AUSDT", "BUSDT", "CUSDT"]


def test_a_batch_survives_its_journey() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7), Trade(9, START, 100, 7)]))
    saved = played.save(acknowledge=False)
    assert decode_store_request(encode(saved)) == saved
    assert saved is not None
    assert saved.marks[0].gaps == [(1, 8)]
    assert np.array_equal(np.unique(placed_rows(saved.rows)["interval"]), np.arange(15))
