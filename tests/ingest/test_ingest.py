"""The rules of ingest on virtual time: what is to be done about frames, connections and commands."""

from collections import Counter

import numpy as np
import pytest

from services.ingest.binance.messages import Listing
from services.ingest.clock import ANSWERS_MIN, OFF_MS, ClockSync
from services.ingest.decode import Decoded, FrameDecoder
from services.ingest.ingest import FETCHES_MAX, NOTHING, Actions, Ingest
from services.ingest.recent import Recent
from services.ingest.symbols import Symbols
from shared.config import ExchangeConfig
from shared.kline import TRADE
from shared.wire import (
    Command,
    FeedState,
    FetchKlines,
    FetchTrades,
    Instrument,
    Listed,
    Prefer,
    RemoveSymbol,
    Subscribe,
    Trades,
    Unsubscribe,
    pack_instruments,
    trade_rows,
)
from tests.ingest.played import START

MS = 1_000_000
SILENCE_MS = 1_000


class World:
    """An ingest without sockets, and the time."""

    def __init__(self, *names: str, speed: float = 1.0, fetching: bool = False, symbols_max: int = 10) -> None:
        self.now = START
        self.refused: Counter[str] = Counter()
        self.symbols = Symbols([], symbols_max)
        self.symbols.refresh([Listing(name, True, 2, 3) for name in names])
        self.recent = Recent(100)
        self.clock_sync = ClockSync(speed)
        for _ in range(ANSWERS_MIN):
            self.clock_sync.take_answer(self.now, self.now_ns, self.now_ns, self.now)
        self.ingest = Ingest(
            ExchangeConfig(silence_ms=SILENCE_MS),
            7,
            self.symbols,
            self.recent,
            self.clock_sync,
            FrameDecoder("aggTrade", self.symbols.decimals, lambda *_: None),
            lambda kind, _: self.refused.update([kind]),
            lambda _: fetching,
        )
        self.ingest.start(self.now_ns)

    @property
    def now_ns(self) -> int:
        return (self.now - START + 1_000_000) * MS

    def take(self, decoded: Decoded, begun: tuple[str, ...] = (), delivered: tuple[str, ...] = ()) -> Actions:
        return self.ingest.take_frames(decoded, begun, lambda: delivered, self.now_ns, self.now)

    def tick(self, prices: dict[str, str], *delivered: str) -> Actions:
        """Take the ticker of the next second."""
        self.now += 1_000
        return self.take(Decoded(event_time=self.now, tickers=prices, ticker_time=self.now), (), delivered)

    def ask(self, command: Command) -> Actions:
        return self.ingest.take_command(command, self.now_ns)

    @property
    def state(self) -> FeedState:
        state = self.ingest.state(0, self.now_ns)
        assert state is not None
        return state


def trades(symbol: str, *ids: int) -> Trades:
    rows = np.zeros(len(ids), TRADE)
    rows["id"], rows["time"] = ids, START
    return Trades(pack_instruments([Instrument(symbol, 2, 3)]), rows.tobytes(), START)


def test_frames_of_trades_alone_leave_nothing_to_do() -> None:
    world = World("AUSDT")
    assert world.take(Decoded(trades=trades("AUSDT", 5), event_time=START)) is NOTHING
    assert world.recent.last_row("AUSDT") == 1


def test_a_stream_that_brings_nothing_while_its_symbol_trades_costs_its_connection() -> None:
    world = World("AUSDT", "BUSDT")
    for second in range(3):
        world.take(Decoded(trades=trades("BUSDT", second)))
        actions = world.tick({"AUSDT": str(second), "BUSDT": str(second)}, "ausdt@aggTrade", "busdt@aggTrade")
        assert actions.renew == ""
    world.take(Decoded(trades=trades("BUSDT", 9)))
    actions = world.tick({"AUSDT": "9", "BUSDT": "9"}, "ausdt@aggTrade", "busdt@aggTrade")
    assert actions.renew == "silent though they trade: AUSDT"
    assert world.ingest.counts["streams stale"] == 1


def test_a_name_that_is_not_listed_and_a_time_that_cannot_be_are_asked_about() -> None:
    world = World("AUSDT")
    assert not world.tick({"AUSDT": "1"}).refresh_symbols
    actions = world.tick({"AUSDT": "1", "NEWUSDT": "1"})
    assert (actions.refresh_symbols, actions.measure_clock) == (True, False)
    world.now += 1_000
    off = world.now + OFF_MS + 1_000
    assert world.take(Decoded(event_time=off, tickers={"AUSDT": "1"}, ticker_time=off)).measure_clock


def test_in_a_replay_a_ticker_that_moves_the_time_is_sent_at_once() -> None:
    world = World("AUSDT", speed=0.0)
    later = Decoded(event_time=START + 60_000, tickers={"AUSDT": "1"}, ticker_time=START + 60_000)
    assert world.take(later).state
    assert not world.take(later).state
    assert world.state.exchange_time == START + 60_000


def test_only_a_connection_that_was_lost_raises_questions_when_it_is_back() -> None:
    world = World("AUSDT")
    first = world.ingest.connections_changed(True, True, world.now_ns)
    assert (first.state, first.refresh_symbols, first.measure_clock) == (True, False, False)
    assert world.ingest.connections_changed(True, True, world.now_ns) is NOTHING
    world.now += 5_000
    assert world.ingest.connections_changed(False, True, world.now_ns).state
    state = world.state
    assert (state.connected, state.since) == (False, START + 5_000)
    back = world.ingest.connections_changed(True, True, world.now_ns)
    assert (back.state, back.refresh_symbols, back.measure_clock) == (True, True, True)


@pytest.mark.parametrize("lost", [False, True])
def test_memory_answers_for_the_newest_trades_until_the_stream_is_lost(lost: bool) -> None:
    world = World("AUSDT")
    world.take(Decoded(), begun=("ausdt@aggTrade",))
    world.take(Decoded(trades=trades("AUSDT", 5, 6)))
    if lost:
        world.ingest.connections_changed(False, False, world.now_ns)
    answer = world.recent.answer(FetchTrades("AUSDT", 6, -1))
    assert bool(answer.rest) == lost


def test_an_engine_that_says_what_it_knows_gets_all_that_it_lacks_in_order() -> None:
    world = World("AUSDT", "BUSDT")
    world.take(Decoded(trades=trades("AUSDT", 5, 6)))
    actions = world.ask(Subscribe(["ausdt@aggTrade", "goneusdt@aggTrade", "busdt@trade"], True, 3))
    assert actions.subscribe == ["ausdt@aggTrade"]
    assert actions.announce
    assert actions.events == [RemoveSymbol("GONEUSDT", START), Listed(["AUSDT", "BUSDT"])]
    assert actions.state
    assert [trade_rows(part.rows)["id"].tolist() for part in actions.last_trades] == [[6]]
    assert world.state.engine == 3
    # One more symbol is no introduction.
    actions = world.ask(Subscribe(["busdt@aggTrade"]))
    assert actions.subscribe == ["busdt@aggTrade"]
    assert not any((actions.announce, actions.state, actions.events, actions.last_trades))


def test_a_symbol_that_is_unsubscribed_is_not_answered_for_any_more() -> None:
    world = World("AUSDT")
    world.take(Decoded(), begun=("ausdt@aggTrade",))
    world.take(Decoded(trades=trades("AUSDT", 5, 6)))
    assert world.ask(Unsubscribe(["ausdt@aggTrade"])).unsubscribe == ["ausdt@aggTrade"]
    assert world.recent.answer(FetchTrades("AUSDT", 6, -1)).rest


def test_a_request_is_sent_once_until_it_has_ended() -> None:
    world = World("AUSDT")
    ask = FetchKlines("AUSDT", "1m", 0, 60_000)
    assert world.ask(ask).fetch == ask
    assert world.ask(ask) is NOTHING
    assert world.ingest.counts["repairs asked twice"] == 1
    world.ingest.fetched(ask)
    assert world.ask(ask).fetch == ask


def test_trades_that_another_request_fetches_are_not_fetched_twice() -> None:
    world = World("AUSDT", fetching=True)
    assert world.ask(FetchTrades("AUSDT", 1, 2)) is NOTHING
    assert world.ingest.counts["repairs asked twice"] == 1


def test_requests_under_way_are_bounded() -> None:
    world = World("AUSDT")
    asked = [world.ask(FetchTrades("AUSDT", trade_id, trade_id)).fetch for trade_id in range(1, FETCHES_MAX + 3)]
    assert sum(ask is not None for ask in asked) == FETCHES_MAX
    assert world.ingest.counts["repairs dropped"] == 2


@pytest.mark.parametrize(
    "ask", [FetchKlines("A", "7m", 0, 1), FetchKlines("A", "1m", 0, 10**15), FetchTrades("A", -5, -3)]
)
def test_what_cannot_be_asked_is_refused(ask: FetchKlines | FetchTrades) -> None:
    world = World("A")
    assert world.ask(ask) is NOTHING
    assert world.refused == {"question": 1}


def test_what_is_preferred_is_announced_next() -> None:
    world = World("AUSDT", "BUSDT", "CUSDT")
    world.ask(Subscribe([], True, 1))
    assert world.ask(Prefer(["CUSDT"])) is NOTHING
    assert world.symbols.take() == "CUSDT"


def test_there_is_no_state_before_there_is_a_time() -> None:
    world = World("AUSDT")
    world.clock_sync.clock.set(0, 0)
    assert world.ingest.state(0, world.now_ns) is None
