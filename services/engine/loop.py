"""The room's loop: poll, drain, publish, tick, send. No rule of the domain stands here.

The sockets are start.py's. Each turn drains what is there, up to a bound, publishes, then lets the clock tick and sends
what the engine wishes. A busy engine's turns get longer and carry more: that is all there is to load.

A crash at any step costs what is not yet in the database; the next engine asks for it by id. On SIGTERM the last dirty
rows are saved before the process ends; if the store is not there for it, they too are fetched by id next time.
"""

import logging
import time
from collections.abc import Iterable
from itertools import islice

import numpy as np
import zmq

from services.engine.engine import KlineEngine
from services.engine.snapshots import Message, Snapshots
from services.engine.start import Doors
from services.engine.warm import warm_up
from shared.config import Config
from shared.process import StopSignal, spare_garbage_collection
from shared.sockets import send
from shared.wire import AppEvent, FeedState, Finished, Restored, StoreState, WireError, decode_event, encode

TURN_MESSAGES_MAX = 1_000
"""Events a turn, so that a flood cannot keep the clock from ticking or subscribers from hearing."""
PUBLISHED_AT_ONCE = 1_000
"""Messages, before it is looked who is behind."""
LAST_BATCH_S = 3.0
"""How long the end waits for the store to take the last rows."""
LOAD_AGAIN_S = 5.0
"""The store says when it comes up; this is for a question that was lost with it, and none that is being answered."""
FIGURES_S = 60.0
LAG_MS = 2_000
"""Trades that are older when they come are worth a word; half of it is over."""
MORE = zmq.SNDMORE | zmq.NOBLOCK
THERE = int(zmq.POLLIN)  # A plain number: the flag's own `&` takes longer than to ask the socket.

log = logging.getLogger(__name__)


class Loop:
    def __init__(self, config: Config, doors: Doors, stop: StopSignal, asked: bool) -> None:
        """`asked`: the store has been asked for its rows."""
        self._stop = stop
        self._doors = doors
        self._events, self._commands = doors.events, doors.commands
        self._store, self._public = doors.store, doors.public
        self._publisher = doors.public.socket
        started_at = time.monotonic()
        warm_up()
        spare_garbage_collection()
        self._engine = KlineEngine(config.engine, config.exchange.clock_speed, doors.session, config.audit)
        self._snapshots = Snapshots(self._engine, doors.session, config.engine.publish_interval_ms)
        self._snapshots.figures = self._public.figures
        self._load_at = time.monotonic() + LOAD_AGAIN_S if asked else 0.0
        self._figures_at = time.monotonic() + FIGURES_S
        self._undecoded = 0
        self._dropped: set[str] = set()
        self._saturated: set[int] = set()
        self._unsent = 0
        self._connected: bool | None = None
        self._is_behind = False
        self._was_started = False
        self._store_changes = 0
        log.info(
            "ready in %.1f s; snapshots on %s; waiting for the store and for the exchange's time",
            time.monotonic() - started_at,
            config.engine.snapshots,
        )

    def run(self) -> None:
        """Serve until a signal, then save what is unsaved."""
        poller = zmq.Poller()
        poller.register(self._events, zmq.POLLIN)
        poller.register(self._publisher, zmq.POLLIN)
        poller.register(self._public.changes, zmq.POLLIN)
        poller.register(self._stop.fd, zmq.POLLIN)
        while not self._stop.asked:
            ready = dict(poller.poll(self._wait_ms()))
            if self._events in ready:
                self._drain(TURN_MESSAGES_MAX)
            if self._public.changes in ready:
                self._public.count()
            self._turn(self._publisher in ready)
        self._finish(poller)

    def _wait_ms(self) -> int:
        if self._snapshots.owes:
            return 0
        now = time.monotonic_ns()
        engine = self._engine.wait_ms(now)
        snapshots = self._snapshots.wait_ms(now)
        # A poll that rounds down would spin through the last millisecond before a timer.
        return 1 + (snapshots if engine is None else min(engine, snapshots))

    def _drain(self, messages_max: int) -> bool:
        """Apply the events that are there. Return whether there was none."""
        for number in range(messages_max):
            # Not receiving until it fails: to make an exception takes as long as to apply a small batch.
            if not int(self._events.get(zmq.EVENTS)) & THERE:
                return number == 0
            self._apply(self._events.recv(zmq.NOBLOCK))
        return False

    def _apply(self, message: bytes) -> None:
        try:
            event = decode_event(message)
            self._engine.apply(event, time.monotonic_ns())
        except WireError as error:
            self._undecoded += 1
            if self._undecoded == 1:
                log.warning("refused a message that is no event; more of them are only counted: %s", error)
            return
        self._notice(event)

    def _turn(self, subscribed: bool) -> None:
        """Tell everybody what there is to tell: subscribers first, the others can wait for a moment."""
        now = time.monotonic_ns()
        self._publish(self._snapshots.due(now))
        if self._engine.tick(now):
            self._publish(self._snapshots.due(now))
        for command in self._engine.take_commands():
            if not send(self._commands, encode(command)):
                self._unsent += 1  # Nobody is there: whoever comes is told everything.
        if subscribed:
            self._subscriptions(now)
        self._publish(self._snapshots.owed(now))
        if self._engine.saving.due(now):
            self._save(now)
        if not self._engine.started and time.monotonic() >= self._load_at:
            self._load()
        if len(self._engine.dropped) > len(self._dropped):
            self._tell_dropped()
        if self._is_behind != (self._engine.lag_ms > (LAG_MS // 2 if self._is_behind else LAG_MS)):
            self._tell_lag()
        if time.monotonic() >= self._figures_at:
            self._figures_at = time.monotonic() + FIGURES_S
            self._tell_figures()
            self._tell_saturated()

    def _subscriptions(self, now: int) -> None:
        """Take who wants what. What they need to begin with is owed to them."""
        for connection, message in self._public.asked(now):
            if not self._snapshots.subscription(message):
                self._public.close(connection)

    def _publish(self, messages: Iterable[Message]) -> None:
        messages = iter(messages)
        while some := list(islice(messages, PUBLISHED_AT_ONCE)):
            # Not send_multipart, which takes three times as long to look at what it is given.
            for topic, body in some:
                self._publisher.send(topic, MORE)
                self._publisher.send(body, zmq.NOBLOCK)
            self._public.sent(len(some))

    def _save(self, now: int, last: bool = False) -> None:
        if not self._store.poll(0, zmq.POLLOUT):
            self._engine.saving.nobody_there(now)
            return
        batch = self._engine.take_batch(now, last)
        if batch is not None and not send(self._store, encode(batch)):
            self._engine.saving.lost(now)

    def _load(self) -> None:
        if self._doors.ask_store():
            self._load_at = time.monotonic() + LOAD_AGAIN_S

    def _notice(self, event: AppEvent) -> None:
        """Say what has changed, once."""
        if isinstance(event, StoreState) and not self._engine.started:
            self._load_at = 0.0
        if self._engine.store_changes > self._store_changes:
            self._store_changes = self._engine.store_changes
            log.warning("the store was set back, emptied or replaced: all that memory holds is saved again")
        if isinstance(event, Restored):
            self._load_at = time.monotonic() + LOAD_AGAIN_S
        if isinstance(event, FeedState) and event.connected != self._connected:
            self._connected = event.connected
            log.info("the exchange is %s", "connected" if event.connected else "not connected")
        if self._engine.started and not self._was_started:
            self._was_started = True
            log.info("live with %d symbols of the store", len(self._engine.symbols))

    def _tell_figures(self) -> None:
        figures = self._engine.health(time.monotonic_ns())
        told = ("symbols", "applied", "duplicates", "late", "missing_ids", "rows_unsaved", "batches")
        log.info("since start: %s", ", ".join(f"{name} {figures[name]}" for name in told))

    def _tell_lag(self) -> None:
        self._is_behind = not self._is_behind
        if self._is_behind:
            log.warning(
                "%.1f s behind the exchange: there is more to do than this machine can; nothing is lost",
                self._engine.lag_ms / 1_000,
            )
        else:
            log.info("up with the exchange again")

    def _tell_dropped(self) -> None:
        """Say what is not taken, once a kind: the rest is in the figures."""
        for kind in self._engine.dropped.keys() - self._dropped:
            self._dropped.add(kind)
            log.warning("not taken, and counted from here on: %s", kind)

    def _tell_saturated(self) -> None:
        """Say once of which symbols more was traded than the numbers of a kline hold."""
        for symbol in np.flatnonzero(self._engine.book.symbols["saturated"]).tolist():
            if symbol not in self._saturated:
                self._saturated.add(symbol)
                log.warning(
                    "%s: more was traded than a kline's numbers hold; those klines are `saturated` and not final,"
                    " all others go on",
                    self._engine.symbols[symbol],
                )

    def _finish(self, poller: zmq.Poller) -> None:
        """Take the events that have arrived, save everything, and say that nothing follows."""
        deadline = time.monotonic() + LAST_BATCH_S
        while time.monotonic() < deadline and not self._drain(TURN_MESSAGES_MAX):
            self._engine.tick(time.monotonic_ns())
        poller.unregister(self._stop.fd)
        poller.unregister(self._publisher)
        poller.unregister(self._public.changes)
        while time.monotonic() < deadline:
            self._save(time.monotonic_ns(), last=True)
            if not self._engine.saving.under_way and not self._engine.saving.unsaved_rows:
                break
            poller.poll(20)
            self._drain(TURN_MESSAGES_MAX)
        if self._engine.saving.unsaved_rows:
            log.warning(
                "the store did not take the last %d rows: they are fetched by id at the next start",
                self._engine.saving.unsaved_rows,
            )
        send(self._store, encode(Finished()))
        self._tell_figures()
