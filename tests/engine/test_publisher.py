"""The snapshots' socket against those who misuse it: the real engine, and the real socket where time is the subject."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import zmq

from harness.processes import ROOT, free_port, wait_for
from services.engine import publisher
from services.engine.publisher import ASKED_BYTES_MAX, GREETING_MAX_MS, MESSAGE_BYTES_MAX, PREFIXES_BYTES_MAX, Publisher
from shared.sockets import connect
from shared.wire import AddSymbol
from tests.engine.played import batch
from tests.engine.test_loop import BEGIN, NOW, Neighbours, engine, trade
from tests.hostile import Peer

SYMBOLS = 100
DESCRIPTORS = 512


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def played(tmp_path: Path, port: int) -> Iterator[Neighbours]:
    with engine(tmp_path, snapshots=f"tcp://127.0.0.1:{port}", save_interval_ms=60_000) as played:
        played.start()
        for index in range(SYMBOLS):
            played.say(AddSymbol(f"S{index}USDT", 2, 3, f"s{index}usdt@aggTrade", [], BEGIN, NOW))
            played.say(batch([trade(0)], symbol=f"S{index}USDT", event_time=NOW))
        played.subscriber.setsockopt(zmq.SUBSCRIBE, b"kline.BTCUSDT.1m")
        yield played


def still_serves(played: Neighbours) -> None:
    """Trades still go in and come out, on the connection that was there before."""
    before = played.rows[-1].trade_count if played.rows else 0
    played.say(batch([trade(before)], event_time=NOW))
    row = played.wait("the trade", lambda: [row for row in played.rows if row.trade_count > before])[-1]
    assert row.session == played.rows[0].session
    assert played.room.process.poll() is None
    assert "Traceback" not in played.room.log


def health(port: int) -> dict[str, Any]:
    subscriber = connect(zmq.Context.instance(), zmq.SUB, f"tcp://127.0.0.1:{port}")
    try:
        subscriber.setsockopt(zmq.SUBSCRIBE, b"engine.health")
        assert subscriber.poll(20_000)
        figures: dict[str, Any] = msgpack.unpackb(subscriber.recv_multipart()[1])
    finally:
        subscriber.close(linger=0)
    return figures


class Taken(NamedTuple):
    """Time of a process, ns, of all its threads."""

    running: int
    waiting: int
    """For a core, while others ran."""


def taken(pid: int) -> Taken:
    """Return what a process has had of the machine. Raises OSError where the kernel does not say."""
    threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return Taken(*(sum(int(thread[column]) for thread in threads) for column in (0, 1)))


ATTACK = """
import sys
from tests.hostile import Peer
peer = Peer(int(sys.argv[1]))
peer.subscribe(*[sys.argv[2].encode()] * 10_000)
for _ in range(100):
    if peer.ended():
        break
"""


@pytest.mark.parametrize("prefix", ["kline.", "", "kline.S1"])
def test_who_subscribes_ten_thousand_times_keeps_nobody_waiting(played: Neighbours, port: int, prefix: str) -> None:
    for index in range(SYMBOLS, 500):
        played.say(AddSymbol(f"S{index}USDT", 2, 3, f"s{index}usdt@aggTrade", [], BEGIN, NOW))
        played.say(batch([trade(0)], symbol=f"S{index}USDT", event_time=NOW))
    for _ in range(50):
        still_serves(played)
    pids = (played.room.process.pid, os.getpid())
    attacker = subprocess.Popen([sys.executable, "-c", ATTACK, str(port), prefix], cwd=ROOT)
    longest = 0.0
    while attacker.poll() is None:
        asked, before = time.monotonic_ns(), [taken(pid) for pid in pids]
        still_serves(played)
        standstill, after = time.monotonic_ns() - asked, [taken(pid) for pid in pids]
        # What others take of the machine is not the engine's: either it worked, or it was not let.
        waited = sum(now.waiting - then.waiting for now, then in zip(after, before, strict=True))
        longest = max(longest, standstill - waited, after[0].running - before[0].running)
    assert longest < 100e6
    assert attacker.returncode == 0


def test_a_message_that_is_too_long_ends_its_connection_only(played: Neighbours, port: int) -> None:
    still_serves(played)
    good, bad = Peer(port), Peer(port)
    good.subscribe(b"x" * (MESSAGE_BYTES_MAX - 1))
    bad.subscribe(b"x" * MESSAGE_BYTES_MAX)
    wait_for("the end of the connection", bad.ended)
    assert not good.ended()
    still_serves(played)


def test_who_floods_with_subscriptions_is_closed_and_what_it_held_is_forgotten(played: Neighbours, port: int) -> None:
    still_serves(played)
    peer = Peer(port)
    with suppress(OSError):  # It is closed before it has said all.
        for index in range(20 * ASKED_BYTES_MAX // 1_000):
            peer.subscribe(b"%0999d" % index)
    wait_for("its end", peer.ended)
    still_serves(played)
    wait_for("the end of its subscriptions", lambda: health(port)["subscriptions"] < 10)
    # Who gets its descriptor while there is something of it to read is taken for it, and comes again.
    assert health(port)["connections_closed"] in (1, 2)


def test_odd_messages_are_counted_and_break_nothing(played: Neighbours, port: int) -> None:
    still_serves(played)
    peer = Peer(port)
    peer.send(b"", b"\x02kline.", b"\xff\xfe", b"\x00never", b"\x01", b"\x01\x00", b"\x01\xff\xff", b"\x00\xff")
    wait_for("all to be counted", lambda: health(port)["odd_subscriptions"] == 5)
    still_serves(played)
    assert not peer.ended()


def test_more_connections_than_descriptors_end_nobody_else(played: Neighbours, port: int) -> None:
    still_serves(played)
    played.close()
    resource.prlimit(played.room.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(DESCRIPTORS + 100)]
    # With no descriptor left, a neighbour that comes over the internal sockets ended the engine.
    for _ in range(20):
        again = connect(zmq.Context.instance(), zmq.PUSH, f"ipc://{played.room.log_path.parent}/data/run/events.ipc")
        time.sleep(0.02)
        again.close(linger=0)
    assert played.room.process.poll() is None, played.room.log[-1000:]
    # Who says nothing is sent away, and then there is space again.
    assert health(port)["connections"] <= DESCRIPTORS
    wait_for("room", lambda: health(port)["connections"] < 5, GREETING_MAX_MS / 1_000 + 20)
    for each in idle:
        each.close()


def resident() -> int:
    """Return this process's memory, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


def test_two_hundred_who_take_nothing_cost_no_memory_and_nobody_else_a_message() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = free_port()
    door = Publisher(context, f"tcp://127.0.0.1:{port}")
    stalled = [Peer(port) for _ in range(200)]
    reader = connect(context, zmq.SUB, f"tcp://127.0.0.1:{port}")
    reader.setsockopt(zmq.SUBSCRIBE, b"")
    for peer in stalled:
        peer.subscribe(b"")
    subscriptions: list[bytes] = []

    def all_are_there() -> bool:
        door.count()
        subscriptions.extend(door.asked(0))
        return len(subscriptions) == len(stalled) + 1

    wait_for("the subscriptions", all_are_there)
    before, most, read = resident(), 0, 0
    for index in range(60):
        for _ in range(1_000):
            door.socket.send_multipart([b"kline.BTCUSDT.1m", index.to_bytes(4, "big") + bytes(300)], zmq.NOBLOCK)
        door.sent(1_000)
        door.count()
        most = max(most, resident())
        while read < (index + 1) * 1_000:
            assert reader.poll(10_000)
            reader.recv_multipart()
            read += 1
    assert most - before < 100
    assert door.figures["connections_closed"] > 100
    for peer in stalled:
        peer.socket.close()
    context.destroy(linger=0)


@pytest.mark.parametrize("traffic", [False, True])
def test_who_takes_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch, traffic: bool) -> None:
    shorter = {zmq.HEARTBEAT_IVL: 60_000 if traffic else 200, zmq.HEARTBEAT_TIMEOUT: 400, zmq.TCP_MAXRT: 1_000}
    monkeypatch.setattr(publisher, "OPTIONS", publisher.OPTIONS | shorter)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = free_port()
    door = Publisher(context, f"tcp://127.0.0.1:{port}")
    peer = Peer(port)
    peer.subscribe(b"")
    wait_for("the subscription", lambda: door.asked(0))

    def gone() -> bool:
        for _ in range(1_000 if traffic else 0):
            door.socket.send(bytes(1_000), zmq.NOBLOCK)
        door.count()
        return door.figures["connections"] == 0

    door.count()
    assert door.figures["connections"] == 1
    wait_for("its end", gone, 60)
    context.destroy(linger=0)


def test_the_newest_beyond_the_bound_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CONNECTIONS_MAX", 3)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = free_port()
    door = Publisher(context, f"tcp://127.0.0.1:{port}")
    peers = []
    for index in range(6):
        peers.append(Peer(port))

        def counted(index: int = index) -> bool:
            door.count()
            return sum(door.figures.values()) == index + 1

        wait_for("the connection to be counted", counted)
    assert [peer.ended() for peer in peers] == [False] * 3 + [True] * 3
    peers[0].socket.close()

    def connections() -> int:
        door.count()
        return door.figures["connections"]

    wait_for("the end to be counted", lambda: connections() == 2)
    peers.append(Peer(port))
    wait_for("the next", lambda: connections() == 3)
    assert not peers[-1].ended()
    context.destroy(linger=0)


def test_who_gives_up_what_others_subscribe_takes_it_from_nobody(played: Neighbours, port: int) -> None:
    still_serves(played)
    peer = Peer(port)
    peer.send(b"\x00kline.BTCUSDT.1m", b"\x00kline.", b"\x00")
    wait_for("all to be counted", lambda: health(port)["odd_subscriptions"] >= 2)
    still_serves(played)
    assert not peer.ended()


def test_who_takes_all_the_space_for_subscriptions_gives_it_up_to_who_needs_a_little(
    played: Neighbours, port: int
) -> None:
    still_serves(played)
    free = PREFIXES_BYTES_MAX - len(b"kline.BTCUSDT.1m")
    peers = [Peer(port), Peer(port)]
    sizes = [1_000] * (free // 1_000) + [free % 1_000]
    for index, size in enumerate(sizes):
        peers[index % 5 == 0].subscribe(f"{index:0{size}}".encode())
    # Of these two each holds what the other does: to end one of them leaves as many.
    wait_for("space for one who needs a little", lambda: health(port)["subscriptions"])
    assert health(port)["connections_closed"] == 1
    assert [peer.ended() for peer in peers] == [True, False]
    still_serves(played)


def test_what_one_of_two_gives_up_the_other_still_gets(port: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = Publisher(context, f"tcp://127.0.0.1:{port}")
    first, second = Peer(port), Peer(port)
    said: list[bytes] = []

    def has_said(*messages: bytes) -> bool:
        said.extend(door.asked(0))
        return all(said.count(message) >= list(messages).count(message) for message in messages)

    first.subscribe(b"a", b"both", b"both")
    second.subscribe(b"both")
    wait_for("both", lambda: has_said(*[b"\x01both"] * 3, b"\x01a"))
    first.send(b"\x00both", b"\x00both", b"\x00a")
    wait_for("the first to give up", lambda: has_said(b"\x00a"))
    assert b"\x00both" not in said
    second.socket.close()
    wait_for("the end of the second", lambda: has_said(b"\x00both"))
    third = Peer(port)
    third.subscribe(b"a", b"both")
    wait_for("the third", lambda: has_said(*[b"\x01both"] * 4, *[b"\x01a"] * 2))
    assert (said.count(b"\x00a"), said.count(b"\x00both"), said.count(b"")) == (1, 1, 1)
    context.destroy(linger=0)


def test_subscriptions_of_all_connections_are_bounded(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(publisher, "HELD_MAX", 1_000)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = Publisher(context, f"tcp://127.0.0.1:{port}")
    few, many = Peer(port), Peer(port)
    few.subscribe(*(b"%d" % index for index in range(500)))
    many.subscribe(*(b"%d" % index for index in range(600)))
    wait_for("the end of one", lambda: door.asked(0) is not None and door.figures["connections_closed"] == 1)
    wait_for("it to notice", many.ended)
    assert not few.ended()
    context.destroy(linger=0)


@pytest.mark.parametrize(
    "greeting", [b"\x01\x00", b"\xff" + bytes(8) + b"\x7f\x01\x02\x00\x00"], ids=["ZMTP 1", "ZMTP 2"]
)
def test_who_uses_a_protocol_in_which_subscribers_cannot_be_told_apart_is_closed(port: int, greeting: bytes) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = Publisher(context, f"tcp://127.0.0.1:{port}")
    old = socket.create_connection(("127.0.0.1", port), timeout=10)
    with suppress(OSError):
        old.sendall(greeting + b"\x00\x02\x01k")
        while old.recv(100):
            pass
    assert not door.asked(0)
    peer = Peer(port)
    peer.subscribe(b"k")
    wait_for("one who can be", lambda: door.asked(0) == [b"\x01k"])
    context.destroy(linger=0)
