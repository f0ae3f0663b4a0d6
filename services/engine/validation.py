"""Events that can be decoded and cannot be: what no neighbour of ours would say.

Decides which events are not taken at all, so that whoever sends one harms at most the symbol that it names. Bounds of
single numbers are shared/bounds.py's, and whether a trade can be is the kernel's. Knows no row and changes none.

The exchange's time has no neighbour to compare it with: one word that is far from what the clock shows is doubted, and
counts when the next one agrees. Ingest has had its own doubts by then (`ingest/clock.py`).

What the store says is held against what was sent to it: it cannot have more, nor elsewhere than it said before.
"""

from services.engine.saving import Saving
from shared.arrays import Rows
from shared.bounds import ID_MAX, TIME_MAX
from shared.clock import ExchangeClock
from shared.interval import DAY_MS, INTERVAL_INDEX, INTERVALS, MINUTE_MS
from shared.names import is_name
from shared.wire import (
    AddSymbol,
    AppEvent,
    FeedState,
    Klines,
    Listed,
    Persisted,
    Restored,
    StoreState,
    kline_rows,
    placed_rows,
)

FAR_MS = MINUTE_MS
"""A time that is further from the clock's is doubted, ..."""
NEAR_MS = DAY_MS
"""... and believed when the one before was as far, and no further from it than this: a simulated day may be short."""
AHEAD_MAX_MS = 400 * DAY_MS
"""To open the minutes of a longer time than this one by one would take the engine longer than a minute."""


class Validation:
    def __init__(self, clock: ExchangeClock, session: int, saving: Saving) -> None:
        """`session`: the engine's, of which no store has a batch that was not sent."""
        self._clock = clock
        self._session = session
        self._saving = saving
        self._doubted = 0
        """The time that the last word of the feed would make it now, if that was not believed; 0: it was."""

    def objection(self, event: AppEvent, now_ns: int) -> str:
        """Say why an event is not taken; empty if it is. Raises WireError on rows that are none."""
        match event:
            case FeedState():
                return self._of_time(event, now_ns)
            case AddSymbol():
                return self._of_symbol(event, now_ns)
            case Klines():
                return "" if _can_be(kline_rows(event.rows)) else "klines that cannot be"
            case Listed():
                return "" if all(map(is_name, event.symbols)) else "names that cannot be"
            case Restored():
                return "" if _fit(event) else "rows restored that cannot be"
            case Persisted():
                return "" if self._was_sent(event.session, event.batch) else "acknowledgements of what was never sent"
            case StoreState():
                return self._of_store(event)
        return ""

    def _of_time(self, state: FeedState, now_ns: int) -> str:
        """A replay's clock moves by events alone, as far as they say."""
        speed = self._clock.speed
        told = state.exchange_time + int((now_ns - state.monotonic_ns) * speed) // 1_000_000
        if state.exchange_time <= 0 or not 0 < told <= TIME_MAX:
            return "times that cannot be"
        now = self._clock.now(now_ns)
        doubted, self._doubted = self._doubted, 0
        if not self._clock.known or not speed or abs(told - now) <= FAR_MS:
            return ""
        if told - now > AHEAD_MAX_MS:
            return "times that cannot be"
        if doubted and abs(told - doubted) <= NEAR_MS:
            return ""
        self._doubted = told
        return "times far from all before, which the next one has not confirmed"

    def _of_symbol(self, event: AddSymbol, now_ns: int) -> str:
        if not is_name(event.symbol):
            return "names that cannot be"
        if self._clock.speed and event.klines_until > self._clock.now(now_ns) + FAR_MS:
            return "symbols that begin in a time to come"
        if not all(part.interval in INTERVAL_INDEX and _can_be(kline_rows(part.rows)) for part in event.klines):
            return "klines that cannot be"
        return ""

    def _of_store(self, state: StoreState) -> str:
        point = state.point
        if not self._was_sent(point.session, point.batch) or state.exchange_time < 0:
            return "stores that have what was never sent"
        if any(first > last for _, _, first, last in state.unfinished):
            return "stores that lack what cannot be"
        return ""

    def _was_sent(self, session: int, batch: int) -> bool:
        return batch >= 0 and session >= 0 and (session != self._session or batch <= self._saving.batch)


def _can_be(klines: Rows) -> bool:
    """Say whether KLINE[n] have times, prices, counts and ids that can be."""
    if not len(klines):
        return True
    names = ("open_time", "open", "high", "low", "close", "trade_count", "first_id", "last_id", "id_count")
    least = min(int(klines[name].min()) for name in names)
    return least >= 0 and int(klines["open_time"].max()) <= TIME_MAX and int(klines["last_id"].max()) <= ID_MAX


def _fit(part: Restored) -> bool:
    """Say whether all rows have a symbol and an interval."""
    rows = placed_rows(part.rows)
    if not len(rows):
        return True
    symbols, intervals = rows["symbol"], rows["interval"]
    fit = symbols.min() >= 0 and symbols.max() < len(part.marks)
    return bool(fit and intervals.min() >= 0 and intervals.max() < len(INTERVALS))
