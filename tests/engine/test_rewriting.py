"""What the store had and has no more, or never took, is saved again or asked of the exchange."""

import numpy as np

from shared.interval import INTERVAL_NAMES, INTERVALS
from shared.wire import (
    DirtyBatch,
    FetchKlines,
    Klines,
    Persisted,
    StorePoint,
    StoreState,
    placed_rows,
)
from tests.engine.played import (
    MINUTE,
    SESSION,
    START,
    PlayedEngine,
    Trade,
    batch,
    history,
    market,
)
from tests.engine.test_repair import begun, commands, live


def test_rows_that_leave_memory_unsaved_are_fetched_when_the_store_is_back() -> None:
    trades = market(8, 3_000, START - 60 * MINUTE, 240 * MINUTE)
    played = begun(trades)
    played.save()
    live(played, [trade for trade in trades if trade.time >= START])
    end = played.time // MINUTE * MINUTE
    assert played.health(0)["unsaved_overwritten"] == 80
    assert commands(played, FetchKlines) == []
    played.save()
    asked = commands(played, FetchKlines)
    assert asked == [FetchKlines("BTCUSDT", "1m", START, START + 79 * MINUTE)]
    rows = np.frombuffer(history(trades, end, limit=500)[0].rows, played.engine.book.rows.dtype)
    rows = rows[(rows["open_time"] >= START) & (rows["open_time"] <= START + 79 * MINUTE)]
    played.apply(Klines("BTCUSDT", 2, 3, "1m", rows.tobytes(), start_time=START))
    played.save()
    minutes = sorted(time for _, interval, time in played.stored if interval == "1m" and time >= START)
    assert minutes == list(range(START, end + 1, MINUTE))
    assert commands(played, FetchKlines) == []


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
    # Without it an engine that goes on with what the store has would take the rows that it has for the last ones.
    assert ("1m", START, START + 20 * MINUTE) in mark.lacking
    played.apply(Persisted(SESSION, saved.batch, "tables"))
    played.until(START + 120 * MINUTE + 6_000)
    wanted = [command for command in played.engine.take_commands() if isinstance(command, FetchKlines)]
    assert FetchKlines("BUSDT", "1m", START, START + 20 * MINUTE) in wanted


def test_an_emptied_store_gets_longer_klines_that_begin_no_later_than_those_in_them() -> None:
    """An engine that has restarted holds a day of hours, and of eight hours no more than three klines."""
    trades = market(8, 3_000, START - 60 * 60 * MINUTE, 62 * 60 * MINUTE)
    played = PlayedEngine(window=100)
    played.add(klines=history(trades, START), until=START)
    played.save()
    later = PlayedEngine(played.time, restored=played.restored(), window=100)
    commands(later, FetchKlines)
    later.apply(StoreState(9, StorePoint(tables="another"), 0))
    wanted = commands(later, FetchKlines)
    asked = {command.interval: command for command in wanted if isinstance(command, FetchKlines)}
    held = {name: min(time for interval, time in later.rows() if interval == name) for name in INTERVAL_NAMES}
    begins = held | {name: command.start_time for name, command in asked.items()}
    assert held["8h"] > held["1h"], "or there is nothing to ask for"
    for name, _, child in INTERVALS:
        assert not child or begins[name] <= begins[child], (name, child)
        assert name not in asked or asked[name].end_time == held[name] - 1
