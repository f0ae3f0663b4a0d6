"""The room's loop: one request at a time, from the engine to the database and back. Blocking is its job.

It waits for the database as long as it takes, at the start and in the middle of a batch: the engine holds everything
else meanwhile, and sends one batch at a time. What a crash costs: nothing. A batch that was committed and not
acknowledged is sent again and overwrites itself; one that was not committed is sent again and counts then.
"""

import logging
import random
import select
import time
from collections.abc import Callable
from typing import TypeVar, assert_never

import psycopg
import zmq

from services.persist import store
from services.persist.aside import Aside, refuses
from services.persist.pgcopy import warm_up
from services.persist.tables import NOT_READY
from shared.config import Config
from shared.kline import PLACED_KLINE
from shared.postgres import database_url, error_text
from shared.process import StopSignal
from shared.sockets import connect, ipc, lock_service
from shared.tuning import lower_priority
from shared.wire import (
    AppEvent,
    DirtyBatch,
    Finished,
    Load,
    Persisted,
    StoreRequest,
    WireError,
    decode_store_request,
    encode,
)

GRACE_S = 3.0
"""After SIGTERM, how long the engine may be silent before it is taken to be gone."""
RETRY_S, RETRY_MAX_S = 0.05, 1.0
RETRY_SHARE = 0.1
"""Of the time that the database has been away for: what was away for a second is found again a tenth later."""
SEND_MAX_MS = 2_000
"""An engine that reads nothing for so long is gone; the next one asks again."""
REASONS_MAX = 5
"""Different ones that are logged while the database is away."""
FIGURES_S = 60.0

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The process was asked to end while it waited for the database."""


def main(config: Config) -> int:
    stop = StopSignal()
    lock = lock_service(config.run_path, "persist")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    loop = Loop(config, context, stop)
    try:
        loop.run()
    except Stopped:
        log.warning("ended without the database: what is unsaved is fetched by id at the next start")
    finally:
        loop.close()
        context.destroy(linger=1_000)
        lock.close()
    return 0


class Loop:
    def __init__(self, config: Config, context: "zmq.Context[zmq.Socket[bytes]]", stop: StopSignal) -> None:
        self._config = config
        self._context = context
        self._stop = stop
        self._connection: store.Connection | None = None
        self._away: set[str] = set()
        """Why the database is away, as far as it was logged; empty if it is not."""
        self._aside = Aside()
        self._session = time.time_ns() // 1_000
        self._engine_session: int | None = None
        self._finished = False
        """The engine has said that nothing follows."""
        self._refused = 0
        self._batches = self._rows = 0
        self._figures_at = time.monotonic() + FIGURES_S

    def run(self) -> None:
        """Serve until a signal, and then until the engine has finished or is gone. Raises Stopped, Unavailable."""
        warm_up()
        state = self._with_database(self._state)
        # Not before the database is there and ours: questions would pile up in the queue.
        self._events = connect(self._context, zmq.PUSH, ipc(self._config.run_path, "events"))
        self._events.setsockopt(zmq.SNDTIMEO, SEND_MAX_MS)
        # Before questions can come: an engine that receives it after its question asks again.
        self._say(state)
        requests = connect(self._context, zmq.PULL, ipc(self._config.run_path, "store"))
        poller = zmq.Poller()
        poller.register(requests, zmq.POLLIN)
        poller.register(self._stop.fd, zmq.POLLIN)
        give_up_at = float("inf")
        while time.monotonic() < give_up_at and not (self._stop.asked and self._finished):
            if self._stop.asked and give_up_at == float("inf"):
                give_up_at = time.monotonic() + GRACE_S
                poller.unregister(self._stop.fd)
            for socket, _ in poller.poll(100 if self._stop.asked else 10_000):
                if socket is requests:
                    self._serve(requests.recv())
                    if self._stop.asked:
                        give_up_at = time.monotonic() + GRACE_S
            if time.monotonic() >= self._figures_at:
                self._figures_at = time.monotonic() + FIGURES_S
                log.info("since start: %d rows in %d batches saved", self._rows, self._batches)
        if not self._finished:
            log.info("the engine may be gone: it has not said that nothing follows")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _serve(self, message: bytes) -> None:
        """Do what the engine asks."""
        try:
            self._execute(decode_store_request(message))
        except WireError as error:
            self._refused += 1
            if self._refused == 1:
                log.warning("refused a message that is no request; more of them are only counted: %s", error)

    def _execute(self, request: StoreRequest) -> None:
        """Raises WireError on rows that are none."""
        self._finished = isinstance(request, Finished)
        match request:
            case Load():
                self._load(request)
            case DirtyBatch():
                self._save(request)
            case Finished():
                pass
            case _:
                assert_never(request)

    def _load(self, request: Load) -> None:
        began = time.monotonic()
        self._engine_session = request.session
        symbols, size = self._with_database(lambda connection: self._tell_all(connection, request))
        log.info("loaded %d symbols, %.0f MB of rows, in %.1f s", symbols, size / 1e6, time.monotonic() - began)

    def _tell_all(self, connection: store.Connection, request: Load) -> tuple[int, int]:
        # A database that goes away in the middle makes us begin again: the engine takes the same rows twice.
        symbols = size = 0
        for part in store.load(connection, request.session, request.rows):
            symbols += len(part.marks)
            size += len(part.rows)
            self._say(part)
        return symbols, size

    def _save(self, batch: DirtyBatch) -> None:
        if self._engine_session not in (None, batch.session):
            log.info("left out a batch of an engine that is gone")
            return
        self._engine_session = batch.session
        try:
            tables, refused = self._with_database(
                lambda connection: self._aside.save(batch, time.monotonic(), lambda part: store.save(connection, part))
            )
        except store.Changed:
            self._say(self._with_database(self._state))
            return
        self._rows += len(batch.rows) // PLACED_KLINE.itemsize
        self._batches += 1
        self._say(Persisted(batch.session, batch.batch, tables, refused))

    def _state(self, connection: store.Connection) -> AppEvent:
        return store.state(connection, self._session)

    def _say(self, event: AppEvent) -> None:
        try:
            self._events.send(encode(event))
        except zmq.Again:
            log.info("the engine does not take its messages")

    def _with_database(self, work: Callable[[store.Connection], Answer]) -> Answer:
        """Do something with the database, again and again until it is there for it.

        Raises Stopped, and what waiting would not help against.
        """
        began, asked_at = time.monotonic(), 0.0
        while True:
            try:
                if self._connection is None:
                    market = self._config.exchange.name
                    self._connection = store.connect(database_url(self._config), self._session, market)
                    if not self._config.database.url:
                        # What is stored may wait for what is live.
                        lower_priority(self._connection.info.backend_pid)
                answer = work(self._connection)
            except NOT_READY as error:
                if isinstance(error, psycopg.Error) and refuses(error):
                    raise
                self._lost(error)
            else:
                if self._away:
                    self._away.clear()
                    log.info("the database is there, after %.1f s", time.monotonic() - began)
                return answer
            if self._stop.asked:
                asked_at = asked_at or time.monotonic()
                if time.monotonic() > asked_at + GRACE_S:
                    raise Stopped
            wait = min(max(RETRY_S, RETRY_SHARE * (time.monotonic() - began)), RETRY_MAX_S)
            select.select([] if self._stop.asked else [self._stop.fd], [], [], random.uniform(wait / 2, wait))

    def _lost(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        reason = error_text(error, self._config.database.url)
        if len(self._away) < REASONS_MAX and reason not in self._away:
            self._away.add(reason)
            log.warning("waiting for the database: %s", reason)
