"""What the machine takes with nothing done on it: what klagg takes beside it is klagg's own.

The way of a trade: a frame goes by TCP to a process on uvloop, by PUSH to one that polls, by PUB back to where it came
from, and nobody looks into it. One at a time, ten milliseconds lie between frames, as between those of the simulator:
on an idle machine waking up is most of the way. In a flood it is the same way up to the one that polls, which says when
it has all. A process that begins: Python, with what klagg's rooms import.
"""

import asyncio
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import uvloop
import zmq
from numpy.typing import NDArray

from harness.figures import cpu_seconds, memory_mib

FRAMES = 500
SIZE = 250
"""Bytes, about those of an aggregate trade's frame."""
BETWEEN_S = 0.01
WAIT_MS = 5_000
FLOOD_FRAMES = 8_000_000
FLOOD_WAIT_MS = 60_000
AT_ONCE = 1_000
"""Frames written at once in a flood."""
TOPIC = b"frame"
PROCESS = "import sys, msgspec, numba, numpy, uvloop, zmq; print(flush=True); sys.stdin.read()"


class Flood(NamedTuple):
    frames_per_s: float
    cpu_s_a_million: float
    """Of the two processes, for a million frames."""


def run() -> NDArray[np.float64]:
    """Return how long each frame took, ms."""
    with _rooms(_pass_on) as (connection, subscriber, _):
        return _measure(connection, subscriber)


def flood() -> Flood:
    """Return how many frames go by in a second, and what they cost."""
    with _rooms(_count) as (connection, subscriber, pids):
        _attach(connection, subscriber)
        before, began = sum(map(cpu_seconds, pids)), time.monotonic()
        for _ in range(FLOOD_FRAMES // AT_ONCE):
            connection.sendall(b"x" * (SIZE * AT_ONCE))
        said = b""
        while said != b"all":
            if not subscriber.poll(FLOOD_WAIT_MS):
                raise RuntimeError("the flood does not arrive")
            said = subscriber.recv_multipart()[1]
        elapsed, spent = time.monotonic() - began, sum(map(cpu_seconds, pids)) - before
        return Flood(FLOOD_FRAMES / elapsed, spent / FLOOD_FRAMES * 1e6)


def process() -> float:
    """Return after how many seconds a process has begun."""
    began = time.monotonic()
    with _process() as child:
        _begun(child)
        return time.monotonic() - began


def memory(processes: int) -> float:
    """Return the MiB of so many processes that have begun; a page that several share counts once in all."""
    children = [_process() for _ in range(processes)]
    try:
        for child in children:
            _begun(child)
        return sum(memory_mib(child.pid) for child in children)
    finally:
        for child in children:
            child.communicate()


def _process() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _begun(child: "subprocess.Popen[bytes]") -> None:
    if child.stdout is None or not child.stdout.readline():
        raise RuntimeError("a process does not begin")


@contextmanager
def _rooms(
    engine: Callable[[str, str], None],
) -> Iterator[tuple[socket.socket, "zmq.Socket[bytes]", list[int]]]:
    """Have the two processes: the connection to the first, a subscriber of the second, and their ids."""
    start = multiprocessing.get_context("spawn")
    with TemporaryDirectory(prefix="klagg-bench-") as folder, socket.create_server(("127.0.0.1", 0)) as server:
        events, public = (f"ipc://{Path(folder, name)}" for name in ("events", "public"))
        rooms = [
            start.Process(target=_ingest, args=(server.getsockname(), events), daemon=True),
            start.Process(target=engine, args=(events, public), daemon=True),
        ]
        for room in rooms:
            room.start()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            subscriber = context.socket(zmq.SUB)
            subscriber.setsockopt(zmq.SUBSCRIBE, TOPIC)
            subscriber.connect(public)
            connection, _ = server.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection, subscriber, [room.pid or 0 for room in rooms]
        finally:
            for room in rooms:
                room.kill()
                room.join()
            context.destroy(linger=0)


def _attach(connection: socket.socket, subscriber: "zmq.Socket[bytes]") -> None:
    """Send frames until one comes back, and take all that do: the subscription has arrived."""
    deadline = time.monotonic() + WAIT_MS / 1_000
    while not subscriber.poll(50):
        connection.sendall(b"?" * SIZE)
        if time.monotonic() > deadline:
            raise RuntimeError("no frame comes back")
    while subscriber.poll(100):
        subscriber.recv_multipart()


def _measure(connection: socket.socket, subscriber: "zmq.Socket[bytes]") -> NDArray[np.float64]:
    _attach(connection, subscriber)
    took = []
    for _ in range(FRAMES):
        time.sleep(BETWEEN_S)
        began = time.monotonic_ns()
        connection.sendall(b"x" * SIZE)
        if not subscriber.poll(WAIT_MS):
            raise RuntimeError("a frame does not come back")
        subscriber.recv_multipart()
        took.append((time.monotonic_ns() - began) / 1e6)
    return np.array(took)


def _ingest(address: tuple[str, int], events: str) -> None:
    push = zmq.Context().socket(zmq.PUSH)
    push.connect(events)

    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            push.send(data)

    async def read() -> None:
        await asyncio.get_running_loop().create_connection(Reader, *address)
        await asyncio.Event().wait()

    uvloop.run(read())


def _pass_on(events: str, public: str) -> None:
    pull, publisher = _engine_sockets(events, public)
    poller = zmq.Poller()
    poller.register(pull, zmq.POLLIN)
    while True:
        poller.poll()
        publisher.send_multipart([TOPIC, pull.recv()])


def _count(events: str, public: str) -> None:
    """Say that each of the first frames came, and when all of the flood have."""
    pull, publisher = _engine_sockets(events, public)
    counted = 0
    while True:
        message = pull.recv()
        if message[:1] == b"?":
            publisher.send_multipart([TOPIC, b"one"])
            message = message.lstrip(b"?")
        counted += len(message)
        if counted >= FLOOD_FRAMES * SIZE:
            publisher.send_multipart([TOPIC, b"all"])


def _engine_sockets(events: str, public: str) -> tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, publisher = context.socket(zmq.PULL), context.socket(zmq.XPUB)
    pull.bind(events)
    publisher.bind(public)
    return pull, publisher
