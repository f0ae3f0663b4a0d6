"""The rules of ingest: what is done about decoded frames, tickers, changes of connections, and the engine's commands.

Pure: it gets `now`, and returns what is to be done in one object; it reads no socket and no clock, and waits for
nothing. What trades hold is decided by decode.py, which symbols are announced by symbols.py, which time it is by
clock.py.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

import msgspec

from services.ingest.binance.messages import TIME_MAX, stream_name, symbol_of
from services.ingest.clock import ClockSync
from services.ingest.decode import Decoded, FrameDecoder
from services.ingest.recent import Recent
from services.ingest.stale_streams import StaleStreams
from services.ingest.symbols import Symbols
from shared.bounds import ID_MAX
from shared.config import ExchangeConfig
from shared.interval import INTERVAL_INDEX
from shared.wire import (
    AppEvent,
    Command,
    FeedState,
    FetchKlines,
    FetchTrades,
    Listed,
    Prefer,
    RemoveSymbol,
    Subscribe,
    Trades,
    Unsubscribe,
)

STALE_AFTER = 3
"""Times `silence_ms`, after which a connection is dead, that a single stream may be silent while its symbol trades."""
FETCHES_MAX = 5_000
"""Requests of the engine under way: a few for every symbol. It asks again for what was dropped."""
NAMED_MAX = 5
"""Stale streams that are named in the log."""

Fetch = FetchTrades | FetchKlines

log = logging.getLogger(__name__)


class Actions(msgspec.Struct, frozen=True):
    """What is to be done, in the order of the fields."""

    unsubscribe: list[str] = []
    """Streams of trades that are not wanted any more, ..."""
    subscribe: list[str] = []
    """... and those that are."""
    fetch: Fetch | None = None
    announce: bool = False
    """There may be symbols to announce."""
    events: list[AppEvent] = []
    state: bool = False
    """The engine is to get a `FeedState`."""
    last_trades: list[Trades] = []
    """For the engine, after the state."""
    renew: str = ""
    """Why the connection of the trades is to be replaced; empty if it is not."""
    refresh_symbols: bool = False
    measure_clock: bool = False


NOTHING = Actions()


class Ingest:
    def __init__(
        self,
        settings: ExchangeConfig,
        session: int,
        symbols: Symbols,
        recent: Recent,
        clock_sync: ClockSync,
        decoder: FrameDecoder,
        refuse: Callable[[str, bytes], None],
        is_under_way: Callable[[FetchTrades], bool],
    ) -> None:
        """`session`: of this ingest. `is_under_way`: whether a request's trades are being fetched for another one."""
        self._kind = settings.stream
        self._session = session
        self._symbols = symbols
        self._recent = recent
        self._clock_sync = clock_sync
        self._clock = clock_sync.clock
        self._decoder = decoder
        self._refuse = refuse
        self._is_under_way = is_under_way
        self._stale_streams = StaleStreams(STALE_AFTER * settings.silence_ms)
        self._fetches: set[Fetch] = set()
        self.connected = False
        self._was_connected = False
        self._since = 0
        """The exchange's time at which `connected` has changed."""
        self._engine = 0
        """The session of the engine that said last what it knows."""
        self.counts: Counter[str] = Counter()

    def start(self, now_ns: int) -> None:
        """The exchange's time is known: the state of the connections counts from here on."""
        self._since = self._clock.now(now_ns)

    def take_frames(
        self,
        decoded: Decoded,
        begun: Sequence[str],
        delivered: Callable[[], Iterable[str]],
        now_ns: int,
        machine_ms: int,
    ) -> Actions:
        """Take what the frames of one read hold, once its trades were sent.

        `begun`: the streams that the exchange delivers from here on; `delivered`: returns all those of trades that it
        does. `machine_ms`: this machine's own time.
        """
        if decoded.trades is not None:
            self._recent.add(decoded.trades)
        if begun:
            self._recent.streams_began(self._symbols_of(begun))
        moved = self._clock_sync.move_to(decoded.event_time, now_ns)
        if decoded.event_time:
            self._clock_sync.take_event(decoded.event_time, now_ns, machine_ms)
        if not decoded.tickers:
            return NOTHING
        last_rows = {symbol: self._recent.last_row(symbol) for symbol in self._symbols_of(delivered())}
        stale = self._stale_streams.stale(decoded.tickers, last_rows, now_ns // 1_000_000)
        self.counts["streams stale"] += len(stale)
        return Actions(
            state=moved,
            renew=f"silent though they trade: {' '.join(stale[:NAMED_MAX])}" if stale else "",
            refresh_symbols=self._symbols.should_refresh(decoded.tickers, now_ns // 1_000_000),
            measure_clock=self._clock_sync.is_off(decoded.ticker_time, now_ns),
        )

    def connections_changed(self, connected: bool, trades_connected: bool, now_ns: int) -> Actions:
        """Take whether all connections are open, and that of the trades."""
        if not trades_connected:
            self._recent.streams_ended()
        if connected == self.connected:
            return NOTHING
        is_back = connected and self._was_connected
        self.connected = connected
        self._was_connected |= connected
        self._since = self._clock.now(now_ns)
        # While there was no connection, the exchange's clock may have moved and its symbols may have changed.
        return Actions(state=True, refresh_symbols=is_back, measure_clock=is_back)

    def symbols_read(self) -> Actions:
        """The list of symbols was read."""
        return Actions(announce=True, events=[Listed(self._symbols.names)])

    def removed(self, symbol: str, now_ns: int) -> RemoveSymbol:
        """Return the event that a symbol trades no more."""
        return RemoveSymbol(symbol, self._clock.now(now_ns))

    def state(self, announce_ms: int, now_ns: int) -> FeedState | None:
        """Return the state of the feed; None while the exchange's time is not known."""
        if not self._clock.known:
            return None
        announced, to_announce = self._symbols.progress
        return FeedState(
            self._session,
            self.connected,
            self._since,
            self._clock.now(now_ns),
            now_ns,
            announced,
            to_announce,
            announce_ms,
            self._engine,
        )

    def take_command(self, command: Command, now_ns: int) -> Actions:
        """Take what the engine asks for."""
        match command:
            case Subscribe():
                return self._subscribe(command, now_ns)
            case Unsubscribe():
                for symbol in self._symbols_of(command.streams):
                    self._symbols.engine_unsubscribed(symbol)
                    self._recent.streams_ended(symbol)
                return Actions(unsubscribe=command.streams)
            case FetchTrades() | FetchKlines():
                return self._take_fetch(command)
            case Prefer():
                self._symbols.prefer(command.symbols)
                return NOTHING
            case _:
                assert_never(command)

    def fetched(self, ask: Fetch) -> None:
        """A request has ended, whether it was answered or not."""
        self._fetches.discard(ask)

    def _subscribe(self, command: Subscribe, now_ns: int) -> Actions:
        symbols = self._symbols_of(command.streams)
        if command.complete:
            log.info("the engine knows %d symbols", len(symbols))
            self._engine = command.engine
            refused = self._symbols.engine_knows(symbols)
        else:
            refused = [symbol for symbol in symbols if not self._symbols.engine_subscribed(symbol)]
        known = [symbol for symbol in symbols if symbol in self._symbols.known]
        self._decoder.expect(known)
        streams = [stream_name(symbol, self._kind) for symbol in known]
        events: list[AppEvent] = [self.removed(symbol, now_ns) for symbol in refused]
        if not command.complete:
            return Actions(subscribe=streams, events=events)
        if self._symbols.left_out:
            log.warning("%d symbols are beyond symbols_max and left out", self._symbols.left_out)
        return Actions(
            subscribe=streams,
            announce=True,
            events=[*events, Listed(self._symbols.names)],
            state=True,
            # What was sent before this engine came is lost, and a symbol that trades seldom would not show it for long.
            last_trades=self._recent.last_trades(),
        )

    def _take_fetch(self, ask: Fetch) -> Actions:
        if not is_possible(ask):
            self._refuse("question", str(ask).encode())
            return NOTHING
        is_repeated = ask in self._fetches or (isinstance(ask, FetchTrades) and self._is_under_way(ask))
        if is_repeated or len(self._fetches) >= FETCHES_MAX:
            self.counts["repairs asked twice" if is_repeated else "repairs dropped"] += 1
            return NOTHING
        self._fetches.add(ask)
        return Actions(fetch=ask)

    def _symbols_of(self, streams: Iterable[str]) -> list[str]:
        symbols = (symbol_of(stream, self._kind) for stream in streams)
        return [symbol for symbol in symbols if symbol is not None]


def is_possible(ask: Fetch) -> bool:
    """Say whether a request can be sent to the exchange at all."""
    if isinstance(ask, FetchTrades):
        return 0 <= ask.first_id <= ID_MAX and -1 <= ask.last_id <= ID_MAX and 0 <= ask.from_time <= TIME_MAX
    return ask.interval in INTERVAL_INDEX and 0 <= ask.start_time <= TIME_MAX and ask.end_time <= TIME_MAX
