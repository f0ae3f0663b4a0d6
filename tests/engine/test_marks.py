"""Marks travel with the rows of their symbol, and by themselves when only they have changed."""

from shared.wire import (
    StoreState,
)
from tests.engine.played import MINUTE, START, PlayedEngine, batch, expected, market


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
