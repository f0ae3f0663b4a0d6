"""Two speeds of closing: by the clock at once, and final when the ids prove that nothing is missing."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.snapshots import Snapshots
from shared.kline import CLOSED, FINAL
from shared.snapshot import Snapshot, decode_snapshot
from tests.engine.played import (
    FIELDS,
    MINUTE,
    SESSION,
    START,
    PlayedEngine,
    Trade,
    batch,
    expected,
    history,
    market,
    number,
)


def traded(minute: float, trade_id: int) -> Trade:
    return Trade(trade_id, START + int(minute * MINUTE), 5_000 + trade_id, 7)


def state(played: PlayedEngine, minute: int) -> str:
    flags = int(played.rows()["1m", START + minute * MINUTE]["flags"])
    return "final" if flags & FINAL else "closed" if flags & CLOSED else "open"


def apply(played: PlayedEngine, *trades: Trade) -> None:
    """Let trades arrive when the last of them was made, or late."""
    played.until(max(played.time, *(trade.time for trade in trades)))
    played.apply(batch(trades))


def begun() -> PlayedEngine:
    """Return an engine that has applied the trades 0 and 1, in the first minute."""
    played = PlayedEngine()
    played.add()
    apply(played, traded(0.1, 0), traded(0.2, 1))
    return played


def test_a_kline_closes_by_the_clock_and_is_final_with_the_next_id() -> None:
    played = begun()
    assert state(played, 0) == "open"
    played.until(START + MINUTE)
    assert state(played, 0) == "closed"
    apply(played, traded(1.1, 2))
    assert [state(played, minute) for minute in (0, 1)] == ["final", "open"]
    assert played.rows()["1m", START]["revision"] == 0


def test_a_silent_symbols_klines_are_final_when_the_next_id_proves_the_silence() -> None:
    played = begun()
    played.until(START + 4 * MINUTE)
    assert {state(played, minute) for minute in range(4)} == {"closed"}
    apply(played, traded(4.5, 2))
    assert {state(played, minute) for minute in range(4)} == {"final"}
    rows = played.rows()
    assert rows["3m", START]["flags"] & FINAL
    assert not rows["5m", START + 3 * MINUTE]["flags"] & FINAL


def test_a_gap_keeps_klines_from_being_final_until_it_is_filled() -> None:
    played = begun()
    apply(played, traded(2.1, 4))
    assert [state(played, minute) for minute in (0, 1)] == ["closed", "closed"]
    apply(played, traded(0.5, 2))
    assert [state(played, minute) for minute in (0, 1)] == ["closed", "closed"]
    apply(played, traded(1.5, 3))
    assert [state(played, minute) for minute in (0, 1, 2)] == ["final", "final", "open"]
    assert played.rows()["1m", START]["revision"] == 1


def test_rows_say_whether_missing_trades_may_belong_in_them() -> None:
    played = begun()
    snapshots = Snapshots(played.engine, SESSION, 0)
    snapshots.subscription(b"\x01kline.BTCUSDT.1m")
    list(snapshots.owed(0))

    def due() -> dict[int, Snapshot]:
        rows = [decode_snapshot(body) for topic, body in snapshots.due(played.now_ns) if b"kline" in topic]
        return {(row.open_time - START) // MINUTE: row for row in rows}

    assert not any(row.gap for row in due().values())
    apply(played, traded(1.1, 2))
    apply(played, traded(3.1, 5))
    assert {minute: row.gap for minute, row in due().items()} == {0: False, 1: True, 2: True, 3: True}
    apply(played, traded(1.2, 3), traded(2.2, 4))
    assert {minute: (row.gap, row.final) for minute, row in due().items()} == {1: (False, True), 2: (False, True)}


def test_a_restored_gap_knows_which_klines_it_touches() -> None:
    played = begun()
    apply(played, traded(1.1, 2))
    apply(played, traded(3.1, 5))
    played.save()
    later = PlayedEngine(time=START + 3 * MINUTE + 10_000, restored=played.restored())
    assert [state(later, minute) for minute in (0, 1, 2)] == ["final", "closed", "closed"]
    gap = later.engine.book.gaps[0, 0]
    assert gap["from_time"] == START + 1.1 * MINUTE
    assert START + 3 * MINUTE <= gap["to_time"] <= START + 4 * MINUTE
    apply(later, traded(1.2, 3), traded(2.2, 4), traded(3.2, 6))
    assert [state(later, minute) for minute in (0, 1, 2)] == ["final", "final", "final"]


@given(seed=st.integers(0, 2**32), late=st.floats(0, 1))
@settings(deadline=None)
def test_what_is_final_is_whole_and_never_changes(seed: int, late: float) -> None:
    source = random.Random(seed)
    trades = market(seed, 120)
    whole = expected(trades)
    order = sorted(range(len(trades)), key=lambda n: n + (source.expovariate(1 / 30) if source.random() < late else 0))
    played = PlayedEngine()
    played.add()
    played.apply(batch([], covered=[(0, trades[0].id - 1)]))
    while order:
        size = source.randrange(1, 20)
        part, order = order[:size], order[size:]
        apply(played, *(trades[index] for index in part))
        if source.random() < 0.3:
            played.until(max(played.time, max(trades[index].time for index in part)))
        for key, row in played.rows().items():
            if row["flags"] & FINAL and row["id_count"] and row["trade_count"]:
                assert {name: number(row, name) for name in FIELDS} == whole[key], key
    # A void id that came before every trade had no row to be in, and comes again when it is asked for.
    apply(played, *trades)
    last = trades[-1].time // MINUTE * MINUTE
    for (interval, open_time), row in played.rows().items():
        if interval == "1m" and open_time < last:
            assert row["flags"] & FINAL


def test_ids_from_before_the_seam_count_in_no_row() -> None:
    played = PlayedEngine()
    trades = [traded(minute, trade_id) for trade_id, minute in enumerate((-5, -4, -3, -2, -1, 0.1, 0.2))]
    played.add(klines=history(trades, START), until=START)
    # A trade from before the seam comes late, and the answer by time begins after it.
    apply(played, trades[1], trades[6])
    played.apply(batch([trades[5]], covered=[(0, 6)]))
    assert played.engine.gaps(0) == []
    row = played.rows()["1m", START]
    assert (row["first_id"], row["last_id"], row["id_count"], row["trade_count"]) == (5, 6, 2, 2)
