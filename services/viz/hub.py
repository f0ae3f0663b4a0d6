"""Which viewer watches which topic, and what is queued for each viewer.

Decides which topics are subscribed at the engine, what is encoded, and what a slow viewer loses. Reads no socket, no
database and no clock: `now` is seconds of any steady clock, and a viewer that something was queued for is woken by a
function.

The rules:

1. A topic is subscribed while at least one viewer watches it. Its live klines are kept meanwhile, for those who come
   later: the engine sends what is not yet in the database to a new subscription only.
2. A message is encoded once, when the first viewer is ready for it, for all who watch its topic.
3. A viewer's outbox holds the newest version of each thing, so that a slow viewer skips versions and nothing else. An
   outbox that is full all the same drops its oldest kline, counts it, and its viewer gets the history again.
4. A viewer's history is read after the first live row of its topic, because that row proves that the engine has sent
   everything unsaved: what is not in the database by then is live. It is read again whenever that proof is
   lost: another session of the engine, a lost message, a database that was unavailable.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from services.viz.rows import Row, merge_history, row_of
from services.viz.status import TRADES_SILENT_S, Status
from shared.snapshot import Snapshot, Tickers, kline_topic

OUTBOX_MAX = 256
"""Messages queued for a viewer; a new subscription brings at most the klines that are not saved yet, usually 1 or 2."""
LIVE_ROWS_MAX = 1_000
"""Live klines kept a topic, enough for 16 hours of 1m klines without a database."""
VIEWERS_MAX = 500
"""Open pages; more than this at once is a mistake or an attack."""
STATUS_S = 0.5
"""How often viewers are sent the status."""
RESYNC_MIN_S = 5.0
"""A topic that loses messages again and again is asked for again no more often than this."""

NO_FIGURES = ("",) * 5
"""In place of the 24 h figures of a ticker."""

Key = tuple[str, int]

_encode = msgspec.json.Encoder().encode


class Message:
    """Something for viewers, encoded on first use and once for all of them."""

    __slots__ = ("_body", "_text")

    def __init__(self, body: Any) -> None:
        self._body = body
        self._text: bytes | None = None

    @property
    def text(self) -> bytes:
        if self._text is None:
            self._text = _encode(self._body)
            self._body = None
        return self._text


class Viewer:
    """One page. `wake` is called when something was queued, `want_history` when its history must be read."""

    def __init__(self, wake: Callable[[], None], want_history: Callable[[], None]) -> None:
        self.wake = wake
        self.want_history = want_history
        self.topic = ""
        self.symbol = ""
        self.interval = ""
        self.watch = 0
        """Counts its changes of topic, so that a history that was read for an earlier one is recognized."""
        self.has_history = False
        """Its history was queued: live rows may follow."""
        self.skipped = 0
        """Versions replaced by newer ones before they could be sent."""
        self.dropped = 0
        """Klines dropped from a full outbox."""
        self._outbox: dict[Key, Message] = {}

    def put(self, key: Key, message: Message) -> bool:
        """Queue a message, which replaces an older one of the same key. Return False if another one was dropped."""
        if key in self._outbox:
            self.skipped += 1
        self._outbox[key] = message
        kept = True
        if len(self._outbox) > OUTBOX_MAX:
            oldest = next((known for known in self._outbox if known[0] == "kline"), next(iter(self._outbox)))
            del self._outbox[oldest]
            self.dropped += 1
            kept = False
        self.wake()
        return kept

    def holds(self, key: Key) -> bool:
        return key in self._outbox

    def discard(self, *kinds: str) -> None:
        for key in [key for key in self._outbox if key[0] in kinds]:
            del self._outbox[key]

    def take(self) -> list[bytes]:
        """Return all queued messages, oldest first, and empty the queue."""
        messages, self._outbox = list(self._outbox.values()), {}
        return [message.text for message in messages]


class Topic:
    def __init__(self, symbol: str, interval: str) -> None:
        self.symbol = symbol
        self.interval = interval
        self.viewers: set[Viewer] = set()
        self.rows: dict[int, Row] = {}
        """Live klines by open time."""
        self.live = False
        """A row has come since the topic was last subscribed."""
        self.asked_at = float("-inf")

    def keep(self, row: Row) -> None:
        self.rows[row.open_time] = row
        if len(self.rows) > LIVE_ROWS_MAX:
            del self.rows[min(self.rows)]


class Hub:
    """Viewers, topics, and the last figures of all symbols.

    `subscribe` and `unsubscribe` are called with a kline topic that is wanted from the engine, or no longer.
    """

    def __init__(
        self, subscribe: Callable[[str], None], unsubscribe: Callable[[str], None], save_interval_s: float = 5.0
    ) -> None:
        """`save_interval_s`: how often the engine means to save."""
        self._save_interval_s = save_interval_s
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self.viewers: set[Viewer] = set()
        self.topics: dict[str, Topic] = {}
        self.health: dict[str, Any] = {}
        self.seen_at = float("-inf")
        self._health_at = 0.0
        self.session = 0
        self.restarts = 0
        """How often the engine's session has changed."""
        self.status_at = float("-inf")
        self.exchange_time = 0
        self.refused = 0
        """Tickers whose columns differ in length."""
        self.undecoded = 0
        """Messages of the engine that could not be decoded, and ..."""
        self.lost = 0
        """... those that never arrived, as `AsyncSnapshots` counts them."""
        self.skipped = 0
        self.dropped = 0
        """By viewers who have left."""
        self.database = ""
        """Why there is no database; empty if there is one."""
        self._tickers: dict[str, tuple[Any, ...]] = {}
        self._tickers_live = False
        self._tickers_full = Message({})
        self._status_message: Message | None = None

    # Viewers.

    def join(self, viewer: Viewer) -> bool:
        """Add a viewer and queue the status and the tickers for it. Return False if there are too many."""
        if len(self.viewers) >= VIEWERS_MAX:
            return False
        self.viewers.add(viewer)
        if self._status_message is not None:
            viewer.put(("status", 0), self._status_message)
        if self._tickers:
            viewer.put(("tickers", 0), self._tickers_full)
        return True

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer, if it is still there."""
        if viewer in self.viewers:
            self.viewers.discard(viewer)
            self._unwatch(viewer)
            self.skipped += viewer.skipped
            self.dropped += viewer.dropped

    def watch(self, viewer: Viewer, symbol: str, interval: str) -> None:
        """Let a viewer watch another topic; its live rows come after its history, which `put_history` queues."""
        name = kline_topic(symbol, interval)
        if name == viewer.topic:
            viewer.want_history()
            return
        self._unwatch(viewer)
        viewer.topic, viewer.symbol, viewer.interval = name, symbol, interval
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(symbol, interval)
            self._subscribe(name)
        topic.viewers.add(viewer)
        if topic.live:
            viewer.want_history()

    def _unwatch(self, viewer: Viewer) -> None:
        viewer.watch += 1
        viewer.has_history = False
        viewer.discard("kline", "history")
        topic = self.topics.get(viewer.topic)
        if topic is not None:
            topic.viewers.discard(viewer)
            if not topic.viewers:
                del self.topics[viewer.topic]
                self._unsubscribe(viewer.topic)
        viewer.topic = ""

    def put_history(self, viewer: Viewer, watch: int, saved: Iterable[Row] | None) -> bool:
        """Queue a viewer's history: the saved rows (None: no database) merged with the live ones.

        `watch`: the viewer's own when the history was requested; return False, and do nothing, if it has changed.
        """
        topic = self.topics.get(viewer.topic)
        if watch != viewer.watch or topic is None:
            return False
        rows = merge_history(saved or (), topic.rows.values())
        viewer.discard("kline")
        viewer.has_history = True
        body = {
            "kind": "history",
            "symbol": topic.symbol,
            "interval": topic.interval,
            "rows": rows,
            "saved": saved is not None,
            "live": topic.live,
        }
        viewer.put(("history", 0), Message(body))
        return True

    # Messages of the engine.

    def snapshot(self, snapshot: Snapshot, now: float) -> None:
        """Take a live row of a topic."""
        self._note_message(snapshot.session, snapshot.exchange_time, now)
        topic = self.topics.get(kline_topic(snapshot.symbol, snapshot.interval))
        if topic is None:
            return  # It was sent before the topic was unsubscribed.
        row = row_of(snapshot)
        topic.keep(row)
        body = {"kind": "kline", "symbol": topic.symbol, "interval": topic.interval, "row": row}
        message = Message(body)
        for viewer in topic.viewers:
            if viewer.has_history and not viewer.put(("kline", row.open_time), message):
                viewer.want_history()
        if not topic.live:
            topic.live = True
            for viewer in topic.viewers:
                viewer.want_history()

    def tickers(self, tickers: Tickers, now: float) -> None:
        """Take the figures of all symbols; viewers get those that changed."""
        self._note_message(tickers.session, tickers.exchange_time, now)
        try:
            columns = zip(
                tickers.last,
                tickers.open_24h,
                tickers.high_24h,
                tickers.low_24h,
                tickers.volume_24h,
                tickers.quote_volume_24h,
                tickers.active,
                strict=True,
            )
            figures = {name: (*entry, False) for name, entry in zip(tickers.symbols, columns, strict=True)}
        except ValueError:
            self.refused += 1
            return
        self._publish_tickers(self._with_waiting(figures), live=True)

    def saved_symbols(self, last: dict[str, str]) -> None:
        """Take the symbols that the database has, with their last price, for as long as the engine sends no tickers."""
        if not self._tickers_live:
            figures = {symbol: (price, *NO_FIGURES, True, False) for symbol, price in last.items()}
            self._publish_tickers(self._with_waiting(figures), live=False)

    def _with_waiting(self, figures: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """Return figures, and empty ones for symbols that trade and wait for their history."""
        waiting = self.health.get("waiting")
        names = waiting if isinstance(waiting, list) else []
        return figures | {name: ("", *NO_FIGURES, True, True) for name in names if not figures.get(name, ("",))[0]}

    def _publish_tickers(self, figures: dict[str, tuple[Any, ...]], live: bool) -> None:
        before, self._tickers = self._tickers, figures
        whole = live != self._tickers_live or not before.keys() <= figures.keys()
        self._tickers_live = live
        changed = {symbol: entry for symbol, entry in figures.items() if before.get(symbol) != entry}
        base = {"kind": "tickers", "live": live, "listed": bool(self.health.get("listed"))}
        self._tickers_full = Message(base | {"whole": True, "symbols": figures})
        message = self._tickers_full if whole else Message(base | {"whole": False, "symbols": changed})
        for viewer in self.viewers:
            # A viewer that was not sent the last changes yet gets all figures instead.
            is_slow = viewer.holds(("tickers", 0))
            viewer.put(("tickers", 0), self._tickers_full if is_slow else message)

    def engine_health(self, figures: dict[str, Any], now: float) -> None:
        """Take the engine's health; if it changes the reasons of health, viewers are sent the status at once."""
        before = self.status(now)
        waiting_changed = figures.get("waiting") != self.health.get("waiting")
        self._take_session(figures.get("session", self.session))
        self.health = figures
        self.seen_at = self._health_at = now
        if waiting_changed:
            # The engine has no figures of these symbols, and its next tickers may come late.
            known = {name: entry for name, entry in self._tickers.items() if not entry[-1]}
            self._publish_tickers(self._with_waiting(known), self._tickers_live)
        after = self.status(now)
        if after.reasons() != before.reasons() or _is_quiet(before) != _is_quiet(after):
            self.send_status(now)

    def note_lost(self, name: str, now: float) -> bool:
        """Note that messages of a topic were lost. Return whether to subscribe the topic again."""
        topic = self.topics.get(name)
        if topic is None or now < topic.asked_at + RESYNC_MIN_S:
            return False
        topic.asked_at = now
        topic.live = False
        return True

    def _note_message(self, session: int, exchange_time: int, now: float) -> None:
        self.seen_at = now
        self.exchange_time = exchange_time
        self._take_session(session)

    def _take_session(self, session: int) -> None:
        if session != self.session:
            self.restarts += self.session != 0
            self.session = session
            for topic in self.topics.values():
                topic.rows.clear()
                topic.live = False

    # Status.

    def set_database(self, reason: str) -> None:
        """Take why the database does not answer, empty if it does. When it answers again, histories are read again."""
        back = self.database and not reason
        self.database = reason
        if back:
            for viewer in self.viewers:
                if viewer.topic:
                    viewer.want_history()

    def status(self, now: float) -> Status:
        """Return what is known of the engine and the database."""
        age_s = None if self.seen_at == float("-inf") else max(0.0, now - self.seen_at)
        return Status(self.health, max(0.0, now - self._health_at), age_s, self.database, self._save_interval_s)

    def send_status(self, now: float) -> None:
        """Queue the status for every viewer. It is due every `STATUS_S`, so that a viewer notices its absence."""
        self.status_at = now
        self._status_message = Message({"kind": "status", **self.status(now).message()})
        for viewer in self.viewers:
            viewer.put(("status", 0), self._status_message)

    def symbols(self) -> dict[str, tuple[Any, ...]]:
        """Return last, open, high, low, volume, quote volume of 24 h, `active` and `waiting`, by symbol."""
        return self._tickers

    def figures(self, now: float) -> dict[str, Any]:
        """Return the figures of health."""
        status = self.status(now)
        restarts = self.health.get("restarts")
        return {
            "engine": {
                "state": status.engine,
                "seen_ms_ago": None if self.seen_at == float("-inf") else round((now - self.seen_at) * 1000),
                "exchange_time": self.exchange_time,
                "session": self.session,
                "health": {name: value for name, value in self.health.items() if name != "waiting"},
            },
            **status.figures(),
            "restarts": {"engine": self.restarts} | (restarts if isinstance(restarts, dict) else {}),
            "database": {"ok": not self.database, "error": self.database},
            "viewers": len(self.viewers),
            "topics": len(self.topics),
            "skipped": self.skipped + sum(viewer.skipped for viewer in self.viewers),
            "dropped": self.dropped + sum(viewer.dropped for viewer in self.viewers),
            "refused": self.refused + self.undecoded,
            "lost": self.lost,
        }


def _is_quiet(status: Status) -> bool:
    age = status.age("trade_age_s")
    return age is None or age > TRADES_SILENT_S
