"""The standing audit: what differs from the exchange's own klines, and what that means."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from services.engine.audit import BURNT, FIELDS, MATCHED, MISMATCHED, NONE, STRADDLED, judge
from services.simulator.market.generated import GeneratedMarket
from shared.config import AuditConfig
from shared.kline import KLINE
from shared.wire import FetchKlines, FetchTrades, IntervalKlines, Klines, Subscribe, kline_rows
from tests.engine.played import MINUTE, START, PlayedEngine, Trade, batch, history, market

NOON = 1_790_164_800_000
MINUTES = 90
AUDIT = AuditConfig(every_minutes=5)


def of_aggregates(rows: Any, minutes: int, close: int) -> np.ndarray[Any, Any]:
    """Return klines of whole minutes from NOON on, made of AGG_ROW[n] the plain way."""
    klines = np.zeros(minutes, KLINE)
    for minute, kline in enumerate(klines):
        kline["open_time"] = NOON + minute * MINUTE
        own = rows[rows["time"] // MINUTE == NOON // MINUTE + minute]
        if not len(own):
            kline["open"] = kline["high"] = kline["low"] = kline["close"] = close
            continue
        taken = own[~own["maker"]]
        prices, close = own["price"], int(own["price"][-1])
        kline["open"], kline["high"], kline["low"], kline["close"] = prices[0], prices.max(), prices.min(), close
        kline["volume"], kline["quote_volume"] = own["quantity"].sum(), (own["quantity"] * prices).sum()
        kline["taker_buy_volume"] = taken["quantity"].sum()
        kline["taker_buy_quote_volume"] = (taken["quantity"] * taken["price"]).sum()
        kline["trade_count"] = (own["last"] - own["first"] + 1).sum()
    return klines


def both(made: GeneratedMarket, symbol: str) -> tuple[Any, Any]:
    """Return a symbol's klines as made of aggregates, and the exchange's own."""
    instrument = made.find(symbol)
    assert instrument is not None
    parts = list(made.trades_since(instrument, "aggTrade", NOON))
    sums = made.klines(instrument, "1m", NOON, NOON + MINUTES * MINUTE - 1)[:MINUTES]
    before = made.klines(instrument, "1m", NOON - MINUTE, NOON - 1)[0]
    official = np.zeros(len(sums), KLINE)
    for name in FIELDS:
        official[name] = sums["count" if name == "trade_count" else name]
    return of_aggregates(np.concatenate(parts), MINUTES, int(before["close"])), official


@pytest.fixture(scope="module")
def made() -> GeneratedMarket:
    made = GeneratedMarket(
        seed=4,
        symbols=30,
        trades_per_second=400.0,
        history_days=2,
        listing_interval_s=0.0,
        quirks=True,
        start=NOON - MINUTE,
    )
    for step in range(0, (MINUTES + 3) * MINUTE, 1_000):
        made.advance(NOON - MINUTE + step, set())
    return made


def verdicts(ours: Any, official: Any) -> list[str]:
    carried, found = None, []
    for index in range(len(ours)):
        verdict, carried = judge(ours[index], official[index], carried, int(ours[index - 1]["close"]) if index else 0)
        found.append(verdict)
    return found[1:]


def test_what_aggregates_make_of_a_minute_is_recognised(made: GeneratedMarket) -> None:
    counts: Counter[str] = Counter()
    for instrument in made.instruments():
        counts.update(verdicts(*both(made, instrument.symbol)))
    assert counts[MISMATCHED] == 0
    assert min(counts[MATCHED], counts[BURNT], counts[STRADDLED]) > 50


def test_one_trade_that_is_missing_is_a_mismatch_however_much_straddles(made: GeneratedMarket) -> None:
    wrong = tried = 0
    for instrument in made.instruments()[:8]:
        ours, official = both(made, instrument.symbol)
        for minute in range(5, MINUTES - 5, 7):
            if ours[minute]["trade_count"] < 3:
                continue
            changed = ours.copy()
            lost = max(1, int(changed[minute]["volume"]) // 5)
            changed[minute]["volume"] -= lost
            changed[minute]["quote_volume"] -= lost * int(changed[minute]["open"])
            tried += 1
            wrong += MISMATCHED in verdicts(changed, official)
    assert tried > 50
    assert wrong == tried


def kline(**values: int) -> Any:
    row = np.zeros(1, KLINE)
    for name, value in values.items():
        row[name] = value
    return row[0]


def test_a_count_alone_may_be_too_high_by_a_little_and_never_too_low() -> None:
    same = {"open": 5, "high": 6, "low": 4, "close": 5, "volume": 10, "quote_volume": 50}
    for ours, official, verdict in (
        (7, 7, MATCHED),
        (8, 7, BURNT),
        (10, 7, BURNT),
        (11, 7, MISMATCHED),
        (6, 7, MISMATCHED),
    ):
        assert judge(kline(**same, trade_count=ours), kline(**same, trade_count=official), NONE, 5)[0] == verdict


def live(played: PlayedEngine, trades: list[Trade], until: int) -> None:
    for minute in range((until - START) // MINUTE):
        begin = START + minute * MINUTE
        played.until(begin + MINUTE - 1)
        played.apply(batch([trade for trade in trades if begin <= trade.time < begin + MINUTE]))
    played.until(until)


def asked(played: PlayedEngine) -> list[FetchKlines]:
    commands = played.engine.take_commands()
    return [command for command in commands if isinstance(command, FetchKlines) and command.audit]


def begun(trades: list[Trade], audit: AuditConfig = AUDIT) -> PlayedEngine:
    played = PlayedEngine(audit=audit, silence_ask_ms=3_600_000)
    played.add(klines=history(trades, START), until=START)
    earlier = [trade.id for trade in trades if trade.time < START]
    played.apply(batch([], covered=[(0, max(earlier))]))
    return played


def answer(trades: list[Trade], ask: FetchKlines) -> Klines:
    end = ask.end_time + MINUTE
    (part,) = [part for part in history(trades, end, 10_000) if part.interval == "1m"]
    rows = kline_rows(part.rows)
    rows = rows[(rows["open_time"] >= ask.start_time) & (rows["open_time"] <= ask.end_time)]
    return Klines(ask.symbol, 2, 3, "1m", rows.tobytes(), True)


def counts(played: PlayedEngine) -> dict[str, int]:
    return {name: count for name, count in played.engine.audit.totals().items() if count}


def test_every_minute_is_compared_once_and_every_few_minutes() -> None:
    trades = market(3, 900, START - 60 * MINUTE, 80 * MINUTE)
    played = begun(trades)
    seen: list[int] = []
    for minute in range(1, 20):
        live_until = START + minute * MINUTE
        begin = live_until - MINUTE
        played.until(live_until - 1)
        played.apply(batch([trade for trade in trades if begin <= trade.time < live_until]))
        played.until(live_until)
        for ask in asked(played):
            assert ask.end_time - ask.start_time < 100 * MINUTE
            seen += range(ask.start_time, ask.end_time + 1, MINUTE)
            played.apply(answer(trades, ask))
    compared = {time for time in seen if time >= START}
    assert compared == set(range(START, max(compared) + 1, MINUTE))
    assert max(compared) >= START + 10 * MINUTE
    assert counts(played) == {MATCHED: len(compared)}
    assert played.health()["audit"] == {
        MATCHED: len(compared),
        BURNT: 0,
        STRADDLED: 0,
        MISMATCHED: 0,
    }


def test_what_was_found_is_kept_with_the_symbol() -> None:
    trades = market(3, 900, START - 60 * MINUTE, 80 * MINUTE)
    played = begun(trades)
    live(played, trades, START + 8 * MINUTE)
    ask = asked(played)[-1]
    reply = answer(trades, ask)
    rows = kline_rows(reply.rows).copy()
    rows["low"][-1] -= 1
    rows["volume"][-1] += 7
    played.apply(Klines("BTCUSDT", 2, 3, "1m", rows.tobytes(), True))
    assert counts(played)[MISMATCHED] == counts(played)["low"] == counts(played)["volume"] == 1
    played.save()
    later = PlayedEngine(time=played.time, restored=played.restored(), audit=AUDIT)
    assert later.engine.audit.totals() == played.engine.audit.totals()
    (mismatch,) = later.engine.audit.mark_of(0).mismatches
    assert mismatch.open_time == rows["open_time"][-1]
    ours = played.values()["1m", mismatch.open_time]
    assert mismatch.fields == {name: (ours[name], ours[name] + more) for name, more in (("low", -1), ("volume", 7))}
    # What was compared is not compared again.
    later.apply(Klines("BTCUSDT", 2, 3, "1m", rows.tobytes(), True))
    assert later.engine.audit.totals() == played.engine.audit.totals()


def test_a_mismatch_is_replaced_if_that_is_wanted() -> None:
    trades = market(3, 900, START - 60 * MINUTE, 80 * MINUTE)
    played = begun(trades, AuditConfig(every_minutes=5, policy="adopt"))
    live(played, trades, START + 8 * MINUTE)
    ask = asked(played)[-1]
    # One of our trades is not in the exchange's klines.
    wrong = next(trade for trade in trades if trade.time >= START + 3 * MINUTE and trade.trade_count)
    official = [trade for trade in trades if trade != wrong]
    played.apply(answer(official, ask))
    commands = played.engine.take_commands()
    assert [command.complete for command in commands if isinstance(command, Subscribe)] == [True]
    seam = played.time // MINUTE * MINUTE
    klines = history(official, seam)
    played.add(klines=klines, until=seam)
    bad = wrong.time // MINUTE * MINUTE
    (minutes,) = [kline_rows(part.rows) for part in klines if part.interval == "1m"]
    want = minutes[minutes["open_time"] == bad][0]
    have = played.rows()["1m", bad]
    assert [have[name] for name in FIELDS] == [int(want[name]) for name in FIELDS]
    assert any(isinstance(command, FetchTrades) for command in played.engine.take_commands())


def test_a_silent_symbol_that_the_exchange_knows_better_is_asked_for() -> None:
    trades = [Trade(trade_id, START - MINUTE + trade_id * 1_000, 100 + trade_id, 7) for trade_id in range(62)]
    played = begun(trades)
    live(played, trades[:61], START + 6 * MINUTE)
    played.engine.take_commands()
    (part,) = [part for part in history(trades, START + 5 * MINUTE) if part.interval == "1m"]
    played.apply(Klines("BTCUSDT", 2, 3, "1m", part.rows, True))
    played.engine.tick(played.now_ns)
    assert FetchTrades("BTCUSDT", 61, -1) in played.engine.take_commands()
    assert counts(played) == {}
    played.apply(batch(trades[61:], covered=[(61, 61)]))
    played.apply(Klines("BTCUSDT", 2, 3, "1m", part.rows, True))
    assert counts(played) == {MATCHED: 5}


def test_the_exchange_s_own_rows_are_not_compared_with_themselves() -> None:
    trades = market(3, 900, START - 60 * MINUTE, 80 * MINUTE)
    played = begun(trades)
    (part,) = [part for part in history(trades, START) if part.interval == "1m"]
    assert isinstance(part, IntervalKlines)
    played.apply(Klines("BTCUSDT", 2, 3, "1m", part.rows, True))
    assert counts(played) == {}


def test_a_mismatch_is_kept_although_a_later_minute_is_not_proven_yet() -> None:
    trades = [Trade(trade_id, START - MINUTE + trade_id * 10_000, 100 + trade_id, 7) for trade_id in range(24)]
    played = begun(trades)
    live(played, trades, START + 6 * MINUTE)
    (part,) = [part for part in history(trades, START + 5 * MINUTE) if part.interval == "1m"]
    rows = kline_rows(part.rows).copy()
    # The first minute is proven, the one of the last trade is not.
    rows["low"][rows["open_time"] == START] -= 1
    rows["volume"][rows["open_time"] == START + 2 * MINUTE] += 7
    played.apply(Klines("BTCUSDT", 2, 3, "1m", rows.tobytes(), True))
    assert counts(played) == {MISMATCHED: 1, "low": 1, MATCHED: 1}
    assert [mismatch.open_time for mismatch in played.engine.audit.mark_of(0).mismatches] == [START]


def test_what_the_exchange_cuts_off_each_trades_worth_is_no_mismatch_and_more_is() -> None:
    """Spot: 0.045 x 0.005773 counts as 0.00025978, which is 0.000259785 (6 and 4 decimals, quote volumes with 10)."""
    ours, official = np.zeros(1, KLINE)[0], np.zeros(1, KLINE)[0]
    for row in (ours, official):
        row["open"] = row["high"] = row["low"] = row["close"] = 5_773
        row["volume"], row["trade_count"] = 900, 2
        row["quote_volume"] = 2 * 450 * 5_773
    official["quote_volume"] = 2 * (450 * 5_773 // 100 * 100)
    assert judge(ours, official, NONE, 0)[0] == MISMATCHED
    assert judge(ours, official, NONE, 0, cut=99)[0] == MATCHED
    official["quote_volume"] -= 2 * 99
    assert judge(ours, official, NONE, 0, cut=99)[0] == MISMATCHED
    official["quote_volume"] = ours["quote_volume"] + 1
    assert judge(ours, official, NONE, 0, cut=99)[0] == MISMATCHED
