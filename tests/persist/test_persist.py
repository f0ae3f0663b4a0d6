"""Persist as a process: a test plays the engine over its real sockets, the database is a real one."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import zmq
from msgspec.structs import replace

from harness.processes import Room, free_port, wait_for, write_config
from shared.config import load
from shared.postgres import database_url
from shared.sockets import bind, ipc
from shared.wire import (
    DirtyBatch,
    Finished,
    Load,
    Persisted,
    Restored,
    StorePoint,
    StoreState,
    decode_event,
    encode,
)
from tests.persist.test_store import NOW, batch, mark, rows

SESSION = 5
NOTHING = StorePoint()
WANTED = [100] * 15


class Engine:
    """The engine, played by the test: it binds what the engine binds."""

    def __init__(self, run_path: Path) -> None:
        run_path.mkdir(parents=True, exist_ok=True)
        self._context = zmq.Context()
        self._events = bind(self._context, zmq.PULL, ipc(run_path, "events"))
        self.store = bind(self._context, zmq.PUSH, ipc(run_path, "store"))
        self.received: list[Any] = []

    def say(self, message: Any) -> None:
        assert self.store.poll(10_000, zmq.POLLOUT), "nobody listens"
        self.store.send(encode(message))

    def of(self, kind: type) -> list[Any]:
        while self._events.poll(0):
            self.received.append(decode_event(self._events.recv()))
        return [event for event in self.received if isinstance(event, kind)]

    def acknowledged(self) -> list[int]:
        return [event.batch for event in self.of(Persisted)]

    def close(self) -> None:
        self._context.destroy(linger=0)


class System:
    def __init__(self, folder: Path, stack: ExitStack, **sections: Any) -> None:
        self.path = write_config(folder, **sections)
        self.config = load({"KLAGG_CONFIG": str(self.path)})
        self._stack = stack
        self.engine = Engine(self.config.run_path)
        stack.callback(self.engine.close)

    def start(self, name: str) -> Room:
        room = Room(name, self.path)
        self._stack.callback(room.stop, signal.SIGKILL)
        return room

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(database_url(self.config)) as connection:
            return connection.execute(sql).fetchall()


@contextmanager
def system(folder: Path, **sections: Any) -> Iterator[System]:
    with ExitStack() as stack:
        yield System(folder, stack, **sections)


def test_batches_are_saved_acknowledged_and_loaded_again(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        at.start("postgres")
        at.start("persist")
        wait_for("the store", lambda: at.engine.of(StoreState))
        at.engine.say(Load(SESSION, WANTED))
        wait_for("an empty answer", lambda: at.engine.of(Restored))
        assert at.engine.of(Restored) == [Restored(SESSION, [], b"", True, 0)]
        for number in range(3):
            at.engine.say(_of(SESSION, number, close=number))
        wait_for("acknowledgements", lambda: at.engine.acknowledged() == [0, 1, 2])
        assert at.query("SELECT close::text FROM klines") == [("0.02",)]
        at.engine.say(Load(SESSION + 1, WANTED))
        first = wait_for("the rows", lambda: at.engine.of(Restored)[1:])[0]
        assert (first.session, first.marks[0].symbol, first.exchange_time) == (SESSION + 1, "BTCUSDT", NOW)


def test_a_batch_of_an_engine_that_is_gone_is_left_out(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        at.start("postgres")
        at.start("persist")
        at.engine.say(_of(SESSION, 1, close=1))
        at.engine.say(Load(SESSION + 1, WANTED))
        at.engine.say(_of(SESSION, 2, close=2))
        (restored,) = wait_for("its answer", lambda: [part for part in at.engine.of(Restored) if part.last])
        at.engine.say(_of(SESSION + 1, 1, restored.point, close=3))
        wait_for("the newer engine's batch", lambda: len(at.engine.of(Persisted)) == 2)
        assert [event.session for event in at.engine.of(Persisted)] == [SESSION, SESSION + 1]
        assert at.query("SELECT close::text FROM klines") == [("0.03",)]


def test_a_database_that_dies_midway_loses_nothing(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        postgres = at.start("postgres")
        persist = at.start("persist")
        for number in range(40):
            at.engine.say(_of(SESSION, number, begin=NOW + number * 60_000, close=number))
            if number in (10, 25):
                wait_for("half of them", lambda: len(at.engine.acknowledged()) > number - 5)  # noqa: B023
                server = int((at.config.postgres_path / "postmaster.pid").read_text().split()[0])
                os.kill(server, signal.SIGKILL)
        wait_for("all batches", lambda: at.engine.acknowledged()[-1:] == [39], timeout=40)
        assert at.engine.acknowledged() == list(range(40))
        assert [row[0] for row in at.query("SELECT close::text FROM klines ORDER BY open_time")] == [
            f"0.{number:02}" for number in range(40)
        ]
        assert postgres.process.poll() is None
        assert persist.process.poll() is None


def test_a_database_that_is_not_there_is_waited_for_in_words(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    with system(tmp_path, database={"url": url}) as at:
        persist = at.start("persist")
        wait_for("a word about it", lambda: "waiting for the database" in persist.log)
        time.sleep(1.0)
        assert persist.log.count("waiting for the database") == 1
        assert persist.process.poll() is None
        assert persist.stop() == 0


def test_sigterm_waits_for_the_last_batch_and_no_longer(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        at.start("postgres")
        persist = at.start("persist")
        wait_for("the store", lambda: at.engine.of(StoreState))
        persist.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        at.engine.say(_of(SESSION, 8, close=8))
        wait_for("the last batch", lambda: at.engine.acknowledged() == [8])
        at.engine.say(Finished())
        assert persist.process.wait(30) == 0
        assert "it has not said" not in persist.log


def test_sigterm_with_a_silent_engine_ends_in_time(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        at.start("postgres")
        persist = at.start("persist")
        wait_for("the store", lambda: at.engine.of(StoreState))
        began = time.monotonic()
        assert persist.stop() == 0
        assert time.monotonic() - began > 2.0
        assert "the engine may be gone: it has not said that nothing follows" in persist.log


def test_messages_that_are_none_are_refused_once_in_words(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        at.start("postgres")
        persist = at.start("persist")
        wait_for("the store", lambda: at.engine.of(StoreState))
        for garbage in (b"", b"\xc1", b"\x81\xa4type\xa5never"):
            at.engine.store.send(garbage)
        at.engine.say(_of(SESSION, 1, close=1))
        wait_for("the good one", lambda: at.engine.acknowledged() == [1])
        assert persist.log.count("refused a message") == 1


def test_a_second_persist_on_the_same_folder_says_so(tmp_path: Path) -> None:
    with system(tmp_path) as at:
        at.start("postgres")
        at.start("persist")
        wait_for("the store", lambda: at.engine.of(StoreState))
        second = at.start("persist")
        assert second.process.wait(20) == 3
        assert "another persist" in second.log


def _of(session: int, number: int, after: StorePoint = NOTHING, **fields: Any) -> DirtyBatch:
    return replace(batch(rows(**fields), [mark()], number), session=session, after=after)
