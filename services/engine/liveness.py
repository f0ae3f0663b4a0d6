"""How long ago the engine heard of what it lives on: trades, the feed, the store.

Notes what comes and how late. Judges nothing: what is too old is decided by whoever reads it (health.py tells it). Ages
are seconds; None: it never happened.
"""

from collections import Counter, deque

SECOND_NS = 1_000_000_000
SILENCE_NS = 2 * SECOND_NS
"""A market without a trade for longer than this was not heard: some symbol trades several times a second."""
SILENCES_MAX = 8
"""The newest; klines of symbols that have not traded since an older one are as old as that."""
WORST_S = 60
"""The worst lag is that of so long."""


class Liveness:
    """When the engine heard what last. Times are monotonic ns."""

    def __init__(self) -> None:
        self.trade_time = 0
        """The exchange's time of the newest event that the feed brought."""
        self.silences: deque[tuple[int, int]] = deque(maxlen=SILENCES_MAX)
        """The exchange's times between which the feed brought no trade of any symbol."""
        self.restarts: Counter[str] = Counter()
        """Rooms that came again under another session."""
        self._traded_at: int | None = None
        self._fed_at: int | None = None
        self._saved_at: int | None = None
        self._sessions: dict[str, int] = {}
        self._lags: deque[tuple[int, int]] = deque(maxlen=WORST_S)
        """Seconds in which trades came, and the worst lag of each."""
        self._gaps: dict[int, tuple[int, int, int]] = {}
        """By symbol: a range of ids that is missing, and since when."""

    def traded(self, event_time: int, lag_ms: int, now_ns: int) -> None:
        """The feed has brought trades."""
        if self._traded_at is not None and now_ns - self._traded_at > SILENCE_NS:
            self.silences.append((self.trade_time, event_time))
        self._traded_at = now_ns
        self.trade_time = max(self.trade_time, event_time)
        second = now_ns // SECOND_NS
        if not self._lags or self._lags[-1][0] != second:
            self._lags.append((second, lag_ms))
        elif lag_ms > self._lags[-1][1]:
            self._lags[-1] = (second, lag_ms)

    def fed(self, session: int, now_ns: int) -> None:
        """The feed has said how it is."""
        self._fed_at = now_ns
        self.seen("ingest", session)

    def saved(self, now_ns: int) -> None:
        """The store has everything, or has taken a batch."""
        self._saved_at = now_ns

    def seen(self, room: str, session: int) -> None:
        """A room has spoken under this session."""
        if self._sessions.setdefault(room, session) != session:
            self._sessions[room] = session
            self.restarts[room] += 1

    def ages(self, now_ns: int) -> dict[str, float | None]:
        """Return how long ago was what; trades are a word of the feed too."""
        fed = [at for at in (self._fed_at, self._traded_at) if at is not None]
        return {
            "trade_age_s": _age(self._traded_at, now_ns),
            "feed_age_s": _age(max(fed, default=None), now_ns),
            "saved_age_s": _age(self._saved_at, now_ns),
        }

    def lag_worst_ms(self, now_ns: int) -> int:
        """Return the worst lag of the last minute."""
        begin = now_ns // SECOND_NS - WORST_S
        return max((lag for second, lag in self._lags if second > begin), default=0)

    def gap_age(self, oldest: dict[int, tuple[int, int]], now_ns: int) -> float:
        """Take each symbol's lowest range of missing ids; return how long the oldest of them has been there.

        A range that is filled bit by bit, from whichever end, is the same one.
        """
        before, self._gaps = self._gaps, {}
        for symbol, (first_id, last_id) in oldest.items():
            known_first, known_last, since = before.get(symbol, (first_id, last_id, now_ns))
            same = known_first <= last_id and first_id <= known_last
            self._gaps[symbol] = (first_id, last_id, since if same else now_ns)
        return max((now_ns - since for _, _, since in self._gaps.values()), default=0) / SECOND_NS


def _age(at_ns: int | None, now_ns: int) -> float | None:
    return None if at_ns is None else round(max(0, now_ns - at_ns) / SECOND_NS, 3)
