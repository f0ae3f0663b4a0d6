"""What cannot be repaired trade by trade: the exchange's own klines fill it, and nothing that was proven is lost."""

import numpy as np
import pytest
from msgspec.structs import replace

from services.engine import repair
from shared.interval import INTERVAL_NAMES
from shared.kline import EXCHANGE, FINAL
from shared.wire import FetchKlines, FetchTrades, Klines, Subscribe
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
    opens_at,
)


def live(played: PlayedEngine, trades: list[Trade]) -> None:
    """Let trades arrive when they are made."""
    for trade in trades:
        played.until(trade.time)
        played.apply(batch([trade]))


def commands(played: PlayedEngine, kind: type) -> list[object]:
    played.engine.tick(played.now_ns)
    return [command for command in played.engine.take_commands() if isinstance(command, kind)]


def begun(trades: list[Trade]) -> PlayedEngine:
    """Return an engine that has the symbol since `START`, with history before it."""
    played = PlayedEngine()
    played.add(klines=history(trades, START), until=START)
    played.apply(batch([], covered=[(0, max(trade.id for trade in trades if trade.time < START))]))
    commands(played, object)
    return played


def check(played: PlayedEngine, trades: list[Trade], begin: int) -> None:
    """Every row from `begin` on holds what was traded, whichever way it came."""
    whole = expected(trades)
    for (interval, open_time), row in played.rows().items():
        if open_time < opens_at(interval, begin):
            continue
        want = whole.get((interval, open_time), dict.fromkeys(FIELDS, 0))
        names = FIELDS[:9] if want["trade_count"] else FIELDS[4:9]
        assert {name: int(row[name]) for name in names} == {name: want[name] for name in names}, (interval, open_time)


def test_a_symbol_with_too_many_missing_ids_is_reseeded_and_keeps_what_was_proven() -> None:
    trades = [
        trade._replace(trade_count=1, price=trade.price or 7)
        for trade in market(5, 3_000, START - 60 * MINUTE, 72 * MINUTE)
    ]
    gap = range(START + 4 * MINUTE, START + 8 * MINUTE)
    far = [trade._replace(id=trade.id + (repair.IDS_MAX if trade.time >= gap.start else 0)) for trade in trades]
    played = begun(far)
    live(played, [trade for trade in far if START <= trade.time < gap.start])
    after = [trade for trade in far if trade.time >= gap.stop]
    live(played, after[:1])
    proven = {
        key: row.copy() for key, row in played.rows().items() if row["flags"] & FINAL and not row["flags"] & EXCHANGE
    }
    assert ("1m", START + 3 * MINUTE) not in proven
    assert ("1m", START + 2 * MINUTE) in proven
    assert commands(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]
    live(played, after[1:30])
    assert commands(played, FetchTrades) == []
    seam = played.time // MINUTE * MINUTE
    played.add(klines=history(far, seam), until=seam)
    assert commands(played, FetchTrades) == [FetchTrades("BTCUSDT", 0, -1, seam)]
    rest = [trade for trade in far if trade.time >= seam]
    played.until(rest[-1].time)
    played.apply(batch(rest, covered=[(0, rest[0].id - 1)]))
    check(played, far, START)
    assert played.engine.gaps(0) == []
    assert all((played.rows()[key] == row).all() for key, row in proven.items())
    assert played.rows()["1m", gap.start]["flags"] & EXCHANGE
    assert played.health(0)["reseeded"] == 1


def test_a_gap_whose_klines_leave_memory_is_filled_with_the_exchanges_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "PATIENCE_MS", 10**9)
    trades = market(6, 2_000, START - 60 * MINUTE, 240 * MINUTE)
    played = begun(trades)
    seen = [trade for trade in trades if START <= trade.time < START + 5 * MINUTE]
    live(played, seen)
    played.save()
    # Nobody answers for what is missing; the feed goes on.
    rest = [trade for trade in trades if trade.time >= START + 7 * MINUTE]
    live(played, [trade for trade in rest if trade.time < START + 90 * MINUTE])
    assert commands(played, FetchTrades)
    played.save()
    live(played, [trade for trade in rest if START + 90 * MINUTE <= trade.time < START + 110 * MINUTE])
    assert commands(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]
    played.save()
    seam = START + 110 * MINUTE
    played.until(seam)
    played.add(klines=history(trades, seam), until=seam)
    asked = {command.interval: command for command in commands(played, FetchKlines) if isinstance(command, FetchKlines)}
    assert asked["1m"].start_time == START + 4 * MINUTE
    assert asked["1m"].end_time == seam - 99 * MINUTE - 1
    rows = np.frombuffer(history(trades, seam, limit=200)[0].rows, played.engine.book.rows.dtype)
    wanted = rows[(rows["open_time"] >= asked["1m"].start_time) & (rows["open_time"] <= asked["1m"].end_time)]
    played.apply(Klines("BTCUSDT", 2, 3, "1m", wanted.tobytes(), start_time=asked["1m"].start_time))
    played.save()
    whole = expected(trades)
    for minute in range(110):
        saved = played.stored["BTCUSDT", "1m", START + minute * MINUTE]
        want = whole.get(("1m", START + minute * MINUTE), dict.fromkeys(FIELDS, 0))
        assert [int(saved[name]) for name in FIELDS[4:9]] == [want[name] for name in FIELDS[4:9]], minute
    assert not played.stored["BTCUSDT", "1m", START + 3 * MINUTE]["flags"] & EXCHANGE


def test_klines_that_were_asked_for_before_the_range_grew_do_not_answer_for_all_of_it() -> None:
    played = begun(market(6, 200, START - 60 * MINUTE, 60 * MINUTE))
    played.until(START + 5 * MINUTE)
    repair_, first = played.engine.repair, START - 200 * MINUTE
    repair_.want_klines(0, 0, START - 150 * MINUTE, START - 148 * MINUTE)
    (asked,) = [command for command in commands(played, FetchKlines) if isinstance(command, FetchKlines)]
    repair_.want_klines(0, 0, first, START - 148 * MINUTE)
    rows = np.zeros(2, played.engine.book.rows.dtype)
    rows["open_time"] = START - 150 * MINUTE, START - 149 * MINUTE
    played.apply(Klines("BTCUSDT", 2, 3, "1m", rows.tobytes(), start_time=asked.start_time))
    assert repair_.lacking() == {0: [("1m", first, START - 148 * MINUTE)]}
    played.apply(Klines("BTCUSDT", 2, 3, "1m", rows.tobytes(), start_time=first))
    assert repair_.lacking() == {0: [("1m", START - 148 * MINUTE, START - 148 * MINUTE)]}


def test_missing_ids_that_nobody_answers_for_are_given_up_after_a_while() -> None:
    played = begun(market(7, 500, START - 60 * MINUTE, 60 * MINUTE))
    played.apply(batch([Trade(1_000, START + 10, 100, 7)]))
    for second in range(0, 299, 5):
        played.until(START + second * 1_000)
        assert commands(played, Subscribe) == []
    played.until(START + 400_000)
    assert commands(played, Subscribe) == [Subscribe([], complete=True, engine=SESSION)]


def test_a_hole_in_what_the_store_has_is_asked_for() -> None:
    trades = market(9, 1_000, START - 60 * MINUTE, 80 * MINUTE)
    played = begun(trades)
    live(played, [trade for trade in trades if trade.time >= START])
    played.save()
    for minute in (3, 4, 5):
        del played.stored["BTCUSDT", "1m", START + minute * MINUTE]
    later = PlayedEngine(time=played.time, restored=played.restored())
    assert commands(later, FetchKlines) == [FetchKlines("BTCUSDT", "1m", START + 3 * MINUTE, START + 6 * MINUTE - 1)]
    assert set(INTERVAL_NAMES) == {interval for interval, _ in later.rows()}


def test_what_is_missing_is_asked_for_and_asked_again() -> None:
    played = PlayedEngine(gap_retry_ms=5_000)
    played.add()
    played.apply(batch([], covered=[(0, 9)]))
    played.apply(batch([Trade(10, START + 10, 100, 7)], event_time=START + 20))
    played.until(START + 1_500)
    played.engine.take_commands()
    played.apply(batch([Trade(14, START + 1_400, 100, 7), Trade(20, START + 1_400, 100, 7)], event_time=START + 1_450))
    played.engine.tick(played.now_ns)
    last = START + 1_400
    asked = [FetchTrades("BTCUSDT", 11, 13, to_time=last), FetchTrades("BTCUSDT", 15, 19, to_time=last)]
    assert played.engine.take_commands() == asked
    played.until(START + 4_000)
    assert played.engine.take_commands() == []
    played.until(START + 7_000)
    assert played.engine.take_commands() == asked
    played.apply(batch([Trade(trade_id, START + 1_000, 90, 1) for trade_id in (11, 12, 13)], covered=[(11, 13)]))
    played.until(START + 8_100)
    assert played.engine.take_commands() == asked[1:]
    played.apply(batch([Trade(trade_id, START + 1_400, 90, 1) for trade_id in range(15, 20)], covered=[(15, 19)]))
    played.until(START + 20_000)
    assert played.engine.take_commands() == []
    assert played.engine.gaps(0) == []
    # Each id from 10 to 20 was applied, or does not exist.
    assert played.values()["1m", START]["id_count"] == 11


def test_a_symbol_that_stays_silent_after_the_feed_came_up_is_asked_about_once() -> None:
    played = PlayedEngine(silence_ask_ms=5_000)
    for name in ("AUSDT", "BUSDT"):
        played.add(name)
        played.apply(batch([Trade(0, START, 100, 7)], symbol=name))
    played.apply(played.feed(session=2, engine=0))
    played.engine.take_commands()
    played.until(START + 4_000)
    played.apply(batch([Trade(1, START + 3_000, 100, 7)], symbol="BUSDT"))
    played.until(START + 4_900)
    assert played.engine.take_commands() == []
    wait_ms = played.engine.wait_ms(played.now_ns)
    assert wait_ms is not None
    assert wait_ms <= 100
    played.until(START + 5_000)
    assert played.engine.take_commands() == [FetchTrades("AUSDT", 1, -1)]
    played.apply(batch([Trade(1, START + 10, 90, 1)], symbol="AUSDT", covered=[(1, 1)]))
    played.until(START + 60_000)
    assert played.engine.take_commands() == []
    assert played.rows("AUSDT")["1m", START]["low"] == 90


def test_an_old_trade_out_of_ingests_memory_does_not_hide_those_after_it() -> None:
    """The feed was away and comes back while the engine does: ingest's memory shows what was before."""
    played = PlayedEngine(silence_ask_ms=3_000)
    played.add()
    played.apply(batch([], covered=[(0, 8)]), batch([Trade(9, START + 10, 100, 7)], event_time=START + 20))
    played.until(START + 60_000)
    played.apply(replace(played.feed(), since=START + 60_000))
    played.apply(batch([Trade(10, START + 20_000, 100, 7)]))
    played.engine.take_commands()
    played.until(START + 64_000)
    assert FetchTrades("BTCUSDT", 11, -1) in played.engine.take_commands()
    # One from after that shows by its id whether any is missing.
    played.apply(batch([], covered=[(11, 11)]), replace(played.feed(), since=START + 64_000))
    played.until(START + 65_000)
    played.apply(batch([Trade(12, START + 64_500, 100, 7)], event_time=START + 64_600))
    played.engine.take_commands()
    played.until(START + 70_000)
    assert FetchTrades("BTCUSDT", 13, -1) not in played.engine.take_commands()
