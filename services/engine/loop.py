"""The engine's loop: poll, drain, then do what a turn hands out. No rule of the domain stands here.

Each turn drains what is there, up to a bound, and does what `Ready` says in its order. A busy engine's turns get longer
and carry more: that is all there is to load.

A crash at any step costs what is not yet in the database; the next engine asks for it by id. On SIGTERM the last dirty
rows are saved before the process ends; if the store is not there for it, they too are fetched by id next time.
"""

import logging
import time
from collections.abc import Iterable
from itertools import islice

import zmq

from services.engine.log_lines import LogLines
from services.engine.snapshots import Message
from services.engine.sockets import EngineSockets
from services.engine.turn import Turns
from services.engine.warm import warm_up
from shared.config import Config
from shared.process import StopSignal
from shared.sockets import send
from shared.tuning import freeze_objects
from shared.wire import AppEvent, Finished, Restored, StoreState, WireError, decode_event, encode

TURN_MESSAGES_MAX = 1_000
"""Events a turn, so that a flood cannot keep the clock from ticking or subscribers from hearing."""
PUBLISHED_AT_ONCE = 1_000
"""Messages, before it is looked which connections do not keep up."""
LAST_BATCH_S = 3.0
"""How long the end waits for the store to take the last rows."""
LOAD_AGAIN_S = 5.0
"""The store says when it comes up; this is for a question that was lost with it, and none that is being answered."""
MORE = zmq.SNDMORE | zmq.NOBLOCK
CAN_READ, CAN_WRITE = int(zmq.POLLIN), int(zmq.POLLOUT)
"""Plain numbers: the flags' own `&` takes longer than to ask the socket."""

log = logging.getLogger(__name__)


class Loop:
    def __init__(self, config: Config, sockets: EngineSockets, stop: StopSignal, asked: bool) -> None:
        """`asked`: the store has been asked for its rows."""
        self._stop = stop
        self._sockets = sockets
        self._events, self._commands = sockets.events, sockets.commands
        self._store, self._publisher = sockets.store, sockets.publisher
        self._snapshot_socket = sockets.publisher.socket
        started_at = time.monotonic()
        warm_up()
        freeze_objects()
        self._turns = Turns(config, sockets.session)
        self._turns.snapshots.figures = self._publisher.figures
        self._load_at = time.monotonic() + LOAD_AGAIN_S if asked else 0.0
        self._undecoded = 0
        log.info(
            "ready in %.1f s; snapshots on %s; waiting for the store and for the exchange's time",
            time.monotonic() - started_at,
            config.engine.snapshots,
        )

    def run(self) -> None:
        """Serve until a signal, then save what is unsaved."""
        poller = zmq.Poller()
        poller.register(self._events, zmq.POLLIN)
        poller.register(self._snapshot_socket, zmq.POLLIN)
        poller.register(self._publisher.changes, zmq.POLLIN)
        poller.register(self._stop.fd, zmq.POLLIN)
        while not self._stop.asked:
            readable = dict(poller.poll(self._turns.wait_ms(time.monotonic_ns())))
            if self._events in readable:
                self._drain(TURN_MESSAGES_MAX)
            self._turn()
            if self._snapshot_socket in readable or self._publisher.changes in readable:
                self._subscriptions()
        self._finish(poller)

    def _drain(self, messages_max: int) -> bool:
        """Apply the events that are there. Return whether there was none."""
        for count in range(messages_max):
            # Not receiving until it fails: to make an exception takes as long as to apply a small batch.
            if not int(self._events.get(zmq.EVENTS)) & CAN_READ:
                return count == 0
            self._apply(self._events.recv(zmq.NOBLOCK))
        return False

    def _apply(self, message: bytes) -> None:
        try:
            event = decode_event(message)
            self._turns.apply(event, time.monotonic_ns())
        except WireError as error:
            self._undecoded += 1
            if self._undecoded == 1:
                log.warning("refused a message that is no event; more of them are only counted: %s", error)
            return
        self._plan_load(event)

    def _turn(self, last: bool = False) -> None:
        """Do what is to be done, in the order of `Ready`."""
        now = time.monotonic_ns()
        ready = self._turns.ready(now, bool(int(self._store.get(zmq.EVENTS)) & CAN_WRITE), last)
        self._publish(ready.snapshots)
        for command in ready.commands:
            send(self._commands, encode(command))  # If nobody is there, whoever comes is told everything.
        for batch in ready.batch:
            if not send(self._store, encode(batch)):
                self._turns.lost(now)
        for line in ready.log:
            log.log(*line)
        waits = not self._turns.engine.started and not last
        if waits and time.monotonic() >= self._load_at and self._sockets.ask_store():
            self._load_at = time.monotonic() + LOAD_AGAIN_S

    def _subscriptions(self) -> None:
        """Take who wants what. What they need to begin with is owed to them, and comes with the next turn."""
        for message in self._publisher.asked(time.monotonic_ns()):
            self._turns.subscription(message)

    def _publish(self, messages: Iterable[Message]) -> None:
        messages = iter(messages)
        while some := list(islice(messages, PUBLISHED_AT_ONCE)):
            # Not send_multipart, which takes three times as long to look at what it is given.
            for topic, body in some:
                self._snapshot_socket.send(topic, MORE)
                self._snapshot_socket.send(body, zmq.NOBLOCK)
            self._publisher.sent(len(some))

    def _plan_load(self, event: AppEvent) -> None:
        """The store is asked at once when it comes up, and again when it has been silent."""
        if isinstance(event, StoreState) and not self._turns.engine.started:
            self._load_at = 0.0
        if isinstance(event, Restored):
            self._load_at = time.monotonic() + LOAD_AGAIN_S

    def _finish(self, poller: zmq.Poller) -> None:
        """Take the events that have arrived, save everything, and say that nothing follows."""
        deadline = time.monotonic() + LAST_BATCH_S
        while time.monotonic() < deadline and not self._drain(TURN_MESSAGES_MAX):
            self._turns.engine.tick(time.monotonic_ns())
        poller.unregister(self._stop.fd)
        poller.unregister(self._snapshot_socket)
        poller.unregister(self._publisher.changes)
        while time.monotonic() < deadline:
            self._turn(last=True)
            if self._turns.is_saved:
                break
            poller.poll(20)
            self._drain(TURN_MESSAGES_MAX)
        engine = self._turns.engine
        if not self._turns.is_saved:
            log.warning(
                "the store did not take the last %d rows: they are fetched by id at the next start",
                engine.saving.unsaved_rows,
            )
        send(self._store, encode(Finished()))
        log.log(*LogLines(engine).figures(time.monotonic_ns()))
