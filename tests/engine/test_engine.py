"""Time is the exchange's: minutes open at their second 0, flat ones too, and nothing else moves them."""

from services.engine.book import next_minute, set_calendars
from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED
from tests.engine.played import MINUTE, START, PlayedEngine, Trade, batch, opens_at


def test_every_interval_closes_and_opens_at_its_own_boundary_and_flat_ones_carry_the_close() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7), Trade(1, START + 1, 130, 7)]))
    end = START + 12 * 60 * MINUTE
    played.until(end)
    for interval in INTERVAL_NAMES:
        rows = {time: row for (name, time), row in played.rows().items() if name == interval}
        times = sorted(rows)
        assert times[-1] == opens_at(interval, end)
        for time in times:
            assert bool(rows[time]["flags"] & CLOSED) == (time != times[-1])
            assert time == opens_at(interval, time)
            if time > START and interval != "1m":
                flat = rows[time]
                prices = {int(flat[name]) for name in ("open", "high", "low", "close")}
                assert prices == {130}
                assert flat["trade_count"] == 0
    assert {time for name, time in played.rows() if name == "1M"} == {opens_at("1M", START), opens_at("1M", end)}


def test_ticks_fall_on_second_0_of_the_exchanges_minute() -> None:
    played = PlayedEngine(START + 12_345)
    played.add()
    wait_ms = played.engine.wait_ms(0)
    assert wait_ms is not None
    assert wait_ms <= 60_000 - 12_345
    played.engine.take_commands()
    played.apply(batch([Trade(0, START + 12_300, 100, 7)]))
    played.until(START + 59_999)
    assert not played.rows()["1m", START]["flags"] & CLOSED
    played.until(START + 60_000)
    assert played.rows()["1m", START]["flags"] & CLOSED
    assert ("1m", START + MINUTE) in played.rows()


def test_a_trade_ahead_of_the_tick_opens_its_minute() -> None:
    played = PlayedEngine()
    played.add()
    played.until(START + 59_900)
    played.apply(batch([Trade(0, START, 100, 7), Trade(1, START + MINUTE + 3, 100, 7)]))
    assert played.rows()["1m", START]["flags"] & CLOSED
    assert not played.rows()["1m", START + MINUTE]["flags"] & CLOSED


def test_a_clock_that_jumps_back_and_forth_corrupts_nothing() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    played.until(START + 3 * MINUTE)
    before = {key: row.copy() for key, row in played.rows().items()}
    played.begin -= 10 * MINUTE
    played.apply(played.feed())
    played.engine.tick(played.now_ns)
    assert {key: row.tobytes() for key, row in played.rows().items()} == {
        key: row.tobytes() for key, row in before.items()
    }
    played.begin += 11 * MINUTE
    played.apply(played.feed())
    played.engine.tick(played.now_ns)
    assert ("1m", START + 4 * MINUTE) in played.rows()


def test_in_a_replay_only_events_move_the_time_and_no_unsaved_row_is_pushed_out() -> None:
    played = PlayedEngine(clock_speed=0.0)
    played.add()
    trades = [Trade(trade_id, START + trade_id * MINUTE, 100 + trade_id, 1) for trade_id in range(1_000)]
    played.now_ns = 10**15
    played.engine.tick(played.now_ns)
    assert played.engine.minute_end == START + MINUTE
    for begin in range(0, 1_000, 300):
        played.apply(batch(trades[begin : begin + 300], event_time=trades[min(begin + 299, 999)].time))
    batches = 0
    while played.engine._held:
        assert played.save() is not None
        played.engine.tick(played.now_ns)
        batches += 1
    played.save()
    assert played.engine.book.counters[0]["unsaved_overwritten"] == 0
    minutes = {time: row for (_, interval, time), row in played.stored.items() if interval == "1m"}
    assert len(minutes) == 1_000
    assert all(row["id_count"] == 1 and row["volume"] == 1 for row in minutes.values())
    assert batches < 30


def test_calendars_follow_any_minute_they_are_moved_through() -> None:
    played = PlayedEngine()
    book = played.engine.book
    set_calendars(book, START - 400 * 24 * 60 * MINUTE)
    for _ in range(5_000):
        next_minute(book, 0)
    now = int(book.calendars[0, 0]["open_time"])
    for index, interval in enumerate(INTERVAL_NAMES):
        if interval != "3d":
            assert int(book.calendars[0, index]["open_time"]) == opens_at(interval, now)
