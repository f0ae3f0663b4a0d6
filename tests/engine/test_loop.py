"""The engine as a process: a test plays ingest, the store and a subscriber over its real sockets."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import zmq

from harness.processes import Room, wait_for, write_config
from services.engine.loop import LOAD_AGAIN_S
from shared.config import Config, load
from shared.interval import INTERVAL_NAMES, MINUTE_MS
from shared.snapshot import HEALTH_TOPIC, decode_snapshot
from shared.sockets import bind, connect, ipc
from shared.wire import (
    AddSymbol,
    DirtyBatch,
    FeedState,
    FetchTrades,
    Finished,
    Load,
    Persisted,
    Restored,
    StoreState,
    Subscribe,
    decode_command,
    decode_store_request,
    encode,
    placed_rows,
)
from tests.engine.played import Trade, batch

NOW = 1_790_000_000_000 // MINUTE_MS * MINUTE_MS + 20_000
BEGIN = NOW - 20_000


class Neighbours:
    """Ingest, persist and a subscriber, played by the test."""

    def __init__(self, config: Config, room: Room) -> None:
        self.room = room
        self.started_ns = time.monotonic_ns()
        self._context = zmq.Context()
        self.events = connect(self._context, zmq.PUSH, ipc(config.run_path, "events"))
        self._commands = connect(self._context, zmq.PULL, ipc(config.run_path, "commands"))
        self.store = connect(self._context, zmq.PULL, ipc(config.run_path, "store"))
        self.subscriber = connect(self._context, zmq.SUB, config.engine.snapshots)
        self.commands: list[Any] = []
        self.requests: list[Any] = []
        self.rows: list[Any] = []

    def say(self, *events: Any) -> None:
        for event in events:
            self.events.send(encode(event))

    def listen(self) -> None:
        while self._commands.poll(0):
            self.commands.append(decode_command(self._commands.recv()))
        while self.store.poll(0):
            self.requests.append(decode_store_request(self.store.recv()))
        while self.subscriber.poll(0):
            _, body = self.subscriber.recv_multipart()
            self.rows.append(decode_snapshot(body))

    def wait(self, what: str, ask: Any, timeout: float = 20.0) -> Any:
        def listen_and_ask() -> Any:
            self.listen()
            return ask()

        return wait_for(what, listen_and_ask, timeout, every=0.01)

    def of(self, kind: type) -> list[Any]:
        self.listen()
        return [message for message in self.commands + self.requests if isinstance(message, kind)]

    def feed(self, session: int = 1) -> FeedState:
        return FeedState(session, True, NOW, NOW, self.started_ns)

    def start(self) -> None:
        """Bring the engine to life with an empty store and one symbol without history."""
        (load,) = self.wait("the question for the store's rows", lambda: self.of(Load))
        self.say(StoreState(5), Restored(load.session, [], b"", True, 0), self.feed())
        # The first engine of a version compiles, after it has asked.
        self.wait("the first words to ingest", lambda: self.of(Subscribe), timeout=60.0)
        assert self.of(Subscribe)[0] == Subscribe([], complete=True, engine=load.session)
        self.say(AddSymbol("BTCUSDT", 2, 3, "btcusdt@aggTrade", [], BEGIN, NOW))
        self.wait("the subscription", lambda: self.of(FetchTrades))

    def acknowledge_until(self, last_id: int) -> DirtyBatch:
        """Take batches until one has an id, and acknowledge all but that."""

        def newest() -> DirtyBatch | None:
            batch: DirtyBatch | None = self.of(DirtyBatch)[-1] if self.of(DirtyBatch) else None
            if batch is None or batch.marks[0].last_id == last_id:
                return batch
            self.say(Persisted(batch.session, batch.batch))
            return None

        return cast(DirtyBatch, self.wait(f"a batch with id {last_id}", newest))

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def engine(folder: Path, **settings: Any) -> Iterator[Neighbours]:
    path = write_config(folder, engine={"save_interval_ms": 50, **_snapshots(folder), **settings})
    config = load({"KLAGG_CONFIG": str(path)})
    room = Room("engine", path)
    neighbours = Neighbours(config, room)
    try:
        yield neighbours
    finally:
        neighbours.close()
        # Its end is the subject of some tests; the others do not wait for a store that is gone.
        room.stop(signal.SIGKILL)


def _snapshots(folder: Path) -> dict[str, str]:
    return {"snapshots": f"ipc://{folder}/snapshots.ipc"}


def trade(trade_id: int, price: int = 100) -> Trade:
    return Trade(trade_id, NOW - 1_000 + trade_id, price, 7)


def test_trades_go_in_and_snapshots_and_batches_come_out(tmp_path: Path) -> None:
    with engine(tmp_path) as played:
        played.start()
        played.subscriber.setsockopt(zmq.SUBSCRIBE, b"kline.BTCUSDT.1m")
        played.say(batch([trade(0), trade(1, 120)], event_time=NOW))
        rows = played.wait("a snapshot", lambda: played.rows)
        assert rows[-1].close == "1.20"
        first = played.acknowledge_until(1)
        assert len(placed_rows(first.rows)) == len(INTERVAL_NAMES)
        before = len(played.of(DirtyBatch))
        played.say(Persisted(first.session, first.batch), batch([trade(2)], event_time=NOW))
        second = played.wait("another batch", lambda: played.of(DirtyBatch)[before:])[0]
        assert second.marks[0].last_id == 2
        # Unacknowledged, and persist comes back without it: the same rows are sent again.
        played.say(StoreState(6))
        third = played.wait("the lost batch again", lambda: played.of(DirtyBatch)[before + 1 :])[0]
        assert {tuple(row.item()[:2]) for row in placed_rows(third.rows)} == {
            tuple(row.item()[:2]) for row in placed_rows(second.rows)
        }


def test_sigterm_saves_the_last_rows_and_says_that_nothing_follows(tmp_path: Path) -> None:
    with engine(tmp_path, save_interval_ms=60_000) as played:
        played.start()
        played.say(batch([trade(trade_id) for trade_id in range(50)], event_time=NOW))
        played.subscriber.setsockopt(zmq.SUBSCRIBE, b"kline.BTCUSDT.1m")
        played.wait("the trades to be applied", lambda: played.rows)
        played.say(*(batch([trade(trade_id)], event_time=NOW) for trade_id in range(50, 60)))
        time.sleep(0.1)
        played.room.process.send_signal(signal.SIGTERM)
        last = played.wait("the last batch", lambda: played.of(DirtyBatch))[-1]
        assert last.marks[0].last_id == 59
        assert played.of(Finished) == []
        played.say(Persisted(last.session, last.batch))
        played.wait("the end", lambda: played.of(Finished))
        assert played.room.process.wait(30) == 0


def test_sigterm_without_a_store_ends_in_time_and_says_what_is_unsaved(tmp_path: Path) -> None:
    with engine(tmp_path, save_interval_ms=60_000) as played:
        played.start()
        played.say(batch([trade(0)], event_time=NOW))
        played.subscriber.setsockopt(zmq.SUBSCRIBE, b"kline.BTCUSDT.1m")
        played.wait("the trade to be applied", lambda: played.rows)
        assert played.room.stop() == 0
        assert "the store did not take the last 15 rows" in played.room.log


def test_messages_that_are_none_are_refused_once_in_words_and_change_nothing(tmp_path: Path) -> None:
    with engine(tmp_path) as played:
        played.start()
        played.subscriber.setsockopt(zmq.SUBSCRIBE, b"kline.BTCUSDT.1m")
        for message in (b"", b"\xc1\xff", b"\x81\xa4type\xa6nobody", encode(batch([trade(0)]))[:-3]):
            played.events.send(message)
        odd = batch([trade(0)])
        played.say(type(odd)(odd.instruments, odd.rows[:-1]))
        played.say(batch([trade(0)], event_time=NOW))
        assert played.wait("a snapshot", lambda: played.rows)[-1].trade_count == 1
        assert played.room.log.count("refused a message") == 1


def test_trades_that_come_late_are_worth_a_word_until_they_do_not(tmp_path: Path) -> None:
    with engine(tmp_path) as played:
        played.start()
        for trade_id in range(3):
            played.say(batch([trade(trade_id)], event_time=NOW - 5_000))
        played.wait("the warning", lambda: "s behind the exchange" in played.room.log)
        # An event that is ahead of the clock that we measured is no lag.
        played.say(batch([trade(3)], event_time=NOW + 60_000))
        played.wait("the all-clear", lambda: "up with the exchange again" in played.room.log)
        assert played.room.log.count("behind the exchange") == 1


def test_no_batch_is_made_while_nobody_is_there_to_take_it(tmp_path: Path) -> None:
    with engine(tmp_path, save_rows=10) as played:
        played.start()
        played.say(batch([trade(0)], event_time=NOW))
        first = played.acknowledge_until(0)
        played.store.close()
        time.sleep(0.2)
        played.say(Persisted(first.session, first.batch))
        played.subscriber.setsockopt(zmq.SUBSCRIBE, HEALTH_TOPIC.encode())

        def batches() -> int:
            while True:
                topic, body = played.subscriber.recv_multipart()
                if topic == HEALTH_TOPIC.encode():
                    return int(msgpack.unpackb(body)["batches"])

        before = batches()
        assert before == first.batch
        for trade_id in range(1, 300):
            played.say(batch([trade(trade_id)], event_time=NOW))
            time.sleep(0.005)
        assert batches() == before


def test_a_store_that_answers_slowly_is_not_asked_again_meanwhile(tmp_path: Path) -> None:
    with engine(tmp_path) as played:
        (load,) = played.wait("the question for the store's rows", lambda: played.of(Load))
        played.say(StoreState(5))
        played.wait("the question to the store that came up", lambda: len(played.of(Load)) == 2)
        for _ in range(2):
            time.sleep(LOAD_AGAIN_S * 0.7)
            played.say(Restored(load.session, [], b"", False, 0))
        time.sleep(LOAD_AGAIN_S * 0.7)
        assert len(played.of(Load)) == 2
        played.wait("another question, after silence", lambda: len(played.of(Load)) == 3)


def test_a_gap_is_asked_for_at_once(tmp_path: Path) -> None:
    with engine(tmp_path) as played:
        played.start()
        played.say(batch([], covered=[(0, 9)]), batch([trade(10)], event_time=NOW))
        time.sleep(1.2)
        played.say(batch([trade(15)], event_time=NOW))
        wanted = FetchTrades("BTCUSDT", 11, 14, to_time=int(trade(15).time))
        played.wait("the question for the missing ids", lambda: wanted in played.of(FetchTrades))


def test_two_engines_on_one_folder_and_a_taken_port_say_so(tmp_path: Path) -> None:
    with engine(tmp_path) as played:
        played.start()
        second = Room("engine", tmp_path / "klagg.toml")
        assert second.process.wait(20) == 3
        assert "another engine" in second.log
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        context = zmq.Context()
        taken = bind(context, zmq.XPUB, "tcp://127.0.0.1:*")
        endpoint = taken.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        third = Room("engine", write_config(elsewhere, engine={"snapshots": endpoint}))
        assert third.process.wait(20) == 3
        assert f"cannot listen on {endpoint}" in third.log
        context.destroy(linger=0)


@pytest.mark.parametrize("flood", [3_000])
def test_a_flood_of_single_trades_is_applied_to_the_last_one(tmp_path: Path, flood: int) -> None:
    with engine(tmp_path) as played:
        played.start()
        played.subscriber.setsockopt(zmq.SUBSCRIBE, b"kline.BTCUSDT.1m")
        for trade_id in range(flood):
            played.say(batch([trade(trade_id)], event_time=NOW))
        played.wait("the last trade", lambda: played.rows and played.rows[-1].trade_count == flood)
        assert played.rows[-1].id_count == flood
