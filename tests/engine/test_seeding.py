"""How a symbol begins: from nothing, from the exchange's history, from the store; and how it ends."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.engine import KlineEngine
from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED, EXCHANGE
from shared.wire import (
    AddSymbol,
    FetchKlines,
    FetchTrades,
    Klines,
    RemoveSymbol,
    Restored,
    StoreState,
    Subscribe,
    Unsubscribe,
    kline_rows,
)
from tests.engine.played import (
    MINUTE,
    MS,
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

DAY = 24 * 60 * MINUTE
VALUES = ("open", "high", "low", "close", "volume", "quote_volume", "trade_count", "taker_buy_volume")


def of_all(trades: list[Trade]) -> dict[tuple[str, int], dict[str, int]]:
    return {key: {name: row[name] for name in VALUES} for key, row in expected(trades).items() if row["trade_count"]}


def held(played: PlayedEngine) -> dict[tuple[str, int], dict[str, int]]:
    return {key: {name: int(row[name]) for name in VALUES} for key, row in played.rows().items() if row["trade_count"]}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([MINUTE, 60 * MINUTE, DAY, 40 * DAY]))
def test_history_and_live_trades_meet_without_a_trade_lost_or_counted_twice(seed: int, span: int) -> None:
    source = random.Random(seed)
    trades = market(seed, 200, START - span, span + 5 * MINUTE)
    seam = START + source.randrange(3) * MINUTE
    played = PlayedEngine(seam + source.randrange(3 * MINUTE))
    played.add(klines=history(trades, seam), until=seam)
    # The stream begins somewhere; what lies between the seam and it comes by REST, late and overlapping.
    live = [trade for trade in trades if trade.time >= seam]
    begin = source.randrange(len(live) + 1)
    played.until(START + 5 * MINUTE)
    played.apply(batch(live[begin:]))
    fetched = [trade for trade in trades if trade.time >= seam - MINUTE][: len(trades) - len(live) + begin + 3]
    older_to = max((trade.id for trade in trades if trade.time < seam), default=-1)
    played.apply(batch(fetched, covered=[(0, trades[-1].id, older_to)]))
    everything = of_all(trades)
    for (interval, open_time), row in held(played).items():
        assert row == everything[interval, open_time], (interval, open_time)
    newest = {(name, opens_at(name, START + 5 * MINUTE)) for name in INTERVAL_NAMES}
    assert newest <= played.rows().keys()
    assert played.engine.gaps(0) == []


def test_a_new_symbol_is_subscribed_and_asked_for_by_time_of_its_seam() -> None:
    played = PlayedEngine()
    assert played.engine.take_commands() == [Subscribe([], complete=True, engine=SESSION)]
    trades = market(1, 100, START - 60 * MINUTE, 60 * MINUTE)
    played.add(klines=history(trades, START - MINUTE), until=START - MINUTE)
    assert played.engine.take_commands() == [
        Subscribe(["btcusdt@aggTrade"]),
        FetchTrades("BTCUSDT", 0, -1, START - MINUTE),
    ]


def test_a_symbol_without_history_begins_with_its_first_trade() -> None:
    played = PlayedEngine()
    played.add()
    played.until(START + 3 * MINUTE)
    assert played.rows() == {}
    played.apply(batch([Trade(0, START + 2 * MINUTE, 100, 7)]))
    assert played.engine.gaps(0) == []
    assert {time for interval, time in played.rows() if interval == "1m"} == {START + 2 * MINUTE, START + 3 * MINUTE}


def test_a_symbol_that_is_removed_gets_no_flat_klines_and_keeps_its_rows() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    played.engine.take_commands()
    played.apply(RemoveSymbol("BTCUSDT", START), RemoveSymbol("NOBODY", START))
    assert played.engine.take_commands() == [Unsubscribe(["btcusdt@aggTrade"])]
    played.until(START + 2 * MINUTE)
    rows = played.rows()
    assert [time for interval, time in rows if interval == "1m"] == [START]
    assert rows["1m", START]["flags"] & CLOSED


def test_a_symbol_that_comes_back_is_reseeded() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]), RemoveSymbol("BTCUSDT", START))
    played.until(START + 2 * MINUTE)
    played.save()
    trades = market(3, 50, START - 9 * MINUTE, 11 * MINUTE)
    seam = START + 2 * MINUTE
    played.add(klines=history(trades, seam), until=seam)
    played.apply(batch([Trade(500, seam + 5, 100, 7)]))
    assert played.rows()["1m", START]["flags"] & EXCHANGE
    assert played.values().keys() == {(name, opens_at(name, seam)) for name in INTERVAL_NAMES}


def test_a_symbol_that_comes_back_with_other_decimals_keeps_its_rows_right() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]), RemoveSymbol("BTCUSDT", START))
    seam = START + 2 * MINUTE
    played.until(seam)
    played.save()
    for decimals in ((3, 3), (2, 3)):
        played.apply(RemoveSymbol("BTCUSDT", START))
        klines = history(market(3, 50, START - 9 * MINUTE, 11 * MINUTE), seam)
        official = int(kline_rows(klines[0].rows)["close"][-1]) * 10 ** (3 - decimals[0])
        played.apply(AddSymbol("BTCUSDT", *decimals, "btcusdt@aggTrade", klines, seam, START))
        closed = played.rows()["1m", seam - MINUTE]
        assert int(closed["close"]) == official


def test_a_full_book_says_so_and_goes_on() -> None:
    played = PlayedEngine(symbols_max=1)
    played.add("AUSDT")
    played.add("BUSDT")
    assert played.engine.dropped == {"symbols beyond symbols_max": 1}
    played.apply(batch([Trade(0, START, 100, 7)], symbol="AUSDT"))
    assert played.values("AUSDT")["1m", START]["volume"] == 7


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_an_engine_that_restarts_anywhere_ends_with_the_same_klines(seed: int) -> None:
    source = random.Random(seed)
    trades = market(seed, 200, START - 30 * MINUTE, 36 * MINUTE)
    seam = START
    old = [trade for trade in trades if trade.time < seam]
    live = [trade for trade in trades if trade.time >= seam]
    played = PlayedEngine(seam)
    played.add(klines=history(trades, seam), until=seam)
    played.apply(batch([], covered=[(0, old[-1].id)]))
    stop = source.randrange(len(live))
    position = 0
    while position < stop:
        part = live[position : position + source.randrange(1, 9)]
        played.until(part[-1].time)
        played.apply(batch(part))
        position += len(part)
        if source.random() < 0.3:
            played.save(acknowledge=source.random() < 0.8)
        if source.random() < 0.2:
            played.apply(StoreState(source.randrange(1, 9)))
    if not played.stored:
        return
    later = PlayedEngine(START + 6 * MINUTE, restored=played.restored())
    assert later.engine.take_commands()[0] == Subscribe(["btcusdt@aggTrade"], complete=True, engine=SESSION)
    last_id = played.marks["BTCUSDT"].last_id
    assert last_id < live[-1].id or position >= len(live)
    later.apply(batch(live[-1:], event_time=START + 6 * MINUTE))
    later.engine.tick(later.now_ns)
    asked = [command for command in later.engine.take_commands() if isinstance(command, FetchTrades)]
    for ask in asked:
        wanted = [trade for trade in trades if ask.first_id <= trade.id <= ask.last_id]
        later.apply(batch(wanted, covered=[(ask.first_id, ask.last_id)]))
    everything = of_all(trades)
    for key, row in held(later).items():
        assert row == everything[key], key
    assert later.engine.gaps(0) == []


def test_a_symbol_that_was_away_for_long_is_reseeded_and_asks_for_what_the_store_lacks() -> None:
    trades = market(1, 100, START - 60 * MINUTE, 62 * MINUTE)
    played = PlayedEngine()
    played.add(klines=history(trades, START), until=START)
    played.until(START + MINUTE)
    live = [trade for trade in trades if trade.time >= START]
    played.apply(batch(live, covered=[(0, live[0].id - 1)]))
    played.save()
    much_later = START + 30 * 60 * MINUTE
    later = PlayedEngine(much_later, restored=played.restored())
    assert later.engine.take_commands() == [Subscribe([], complete=True, engine=SESSION)]
    assert later.engine.symbols == []
    more = market(2, 4_000, START - 60 * MINUTE, 31 * 60 * MINUTE)
    later.add(klines=history(more, much_later), until=much_later)
    later.engine.tick(later.now_ns)
    asked = {c.interval: c for c in later.engine.take_commands() if isinstance(c, FetchKlines)}
    # The first minute is closed in the store, and no id after it proves it.
    begin, end = START, much_later - 99 * MINUTE - 1
    assert asked["1m"] == FetchKlines("BTCUSDT", "1m", begin, end)
    assert "1h" not in asked
    # The answer goes to the store as it is, in pages, and what was not answered is asked again of another ingest.
    pages = history([trade for trade in more if trade.time < end], end + 1, limit=5_000)[0]
    rows = pages.rows[-((end + 1 - begin) // MINUTE) * 128 :]
    later.apply(Klines("BTCUSDT", 2, 3, "1m", rows[: 128 * 500], start_time=begin))
    later.apply(later.feed(session=2, engine=0))
    later.engine.tick(later.now_ns)
    again = {c.interval: c for c in later.engine.take_commands() if isinstance(c, FetchKlines)}
    assert again == asked | {"1m": FetchKlines("BTCUSDT", "1m", begin + 500 * MINUTE, end)}
    later.apply(Klines("BTCUSDT", 2, 3, "1m", rows[128 * 500 :], start_time=begin + 500 * MINUTE))
    later.save()
    minutes = {time for _, interval, time in later.stored if interval == "1m"}
    assert minutes == set(range(begin, much_later + 1, MINUTE))


def test_nothing_counts_before_the_start_and_nothing_of_it_is_lost() -> None:
    engine = KlineEngine(PlayedEngine().engine._config)
    engine.apply(batch([Trade(0, START, 100, 7)]), 0)
    engine.tick(0)
    assert engine.wait_ms(0) is None
    assert engine.take_batch(0, last=True) is None
    assert engine.dropped == {"trades before the start": 1}
    engine.apply(Restored(0, [], b"", True, 0), 0)
    assert not engine.started
    engine.apply(Restored(8, [], b"", True, 0), 0)
    engine.apply(PlayedEngine().feed(), 0)
    assert engine.started
    assert engine.take_commands() == [Subscribe([], complete=True)]
    assert engine.dropped["rows restored for another engine"] == 1


def test_another_ingest_is_sent_everything_again() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7), Trade(5, START, 100, 7)], event_time=START))
    played.engine.tick(0)
    played.engine.take_commands()
    played.apply(played.feed(session=1))
    assert played.engine.take_commands() == []
    played.apply(played.feed(session=2, engine=0))
    played.engine.tick(0)
    assert played.engine.take_commands() == [
        Subscribe(["btcusdt@aggTrade"], complete=True, engine=SESSION),
        FetchTrades("BTCUSDT", 1, 4, to_time=START),
    ]


def test_an_introduction_that_was_lost_is_repeated_until_it_is_received() -> None:
    played = PlayedEngine()
    assert len(played.engine.take_commands()) == 1
    for second in range(6):
        played.now_ns = second * 1_000 * MS
        played.apply(played.feed(engine=0 if second < 4 else SESSION))
    introductions = played.engine.take_commands()
    assert introductions == [Subscribe([], complete=True, engine=SESSION)]
