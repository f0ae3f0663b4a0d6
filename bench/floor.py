"""What the machine takes for the way of a trade, with nothing done on it: the same sockets between processes that only
pass on what comes. What klagg takes beside it is klagg's own.

A frame goes by TCP to a process on uvloop, by PUSH to one that polls, by PUB back to where it came from. Ten
milliseconds lie between frames, as between those of the simulator: on an idle machine waking up is most of the way.
"""

import asyncio
import multiprocessing
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import uvloop
import zmq
from numpy.typing import NDArray

FRAMES = 500
SIZE = 200
"""Bytes, about those of an aggregate trade's frame."""
BETWEEN_S = 0.01
WAIT_MS = 5_000
TOPIC = b"frame"


def run() -> NDArray[np.float64]:
    """Return how long each frame took, ms."""
    start = multiprocessing.get_context("spawn")
    with TemporaryDirectory(prefix="klagg-bench-") as folder, socket.create_server(("127.0.0.1", 0)) as server:
        events, public = (f"ipc://{Path(folder, name)}" for name in ("events", "public"))
        rooms = [
            start.Process(target=_ingest, args=(server.getsockname(), events), daemon=True),
            start.Process(target=_engine, args=(events, public), daemon=True),
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
                return _measure(connection, subscriber)
        finally:
            for room in rooms:
                room.kill()
                room.join()
            context.destroy(linger=0)


def _measure(connection: socket.socket, subscriber: "zmq.Socket[bytes]") -> NDArray[np.float64]:
    deadline = time.monotonic() + WAIT_MS / 1_000
    while not subscriber.poll(50):
        connection.sendall(b"?" * SIZE)
        if time.monotonic() > deadline:
            raise RuntimeError("no frame comes back")
    while subscriber.poll(100):
        subscriber.recv_multipart()
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


def _engine(events: str, public: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, publisher = context.socket(zmq.PULL), context.socket(zmq.XPUB)
    pull.bind(events)
    publisher.bind(public)
    poller = zmq.Poller()
    poller.register(pull, zmq.POLLIN)
    while True:
        poller.poll()
        publisher.send_multipart([TOPIC, pull.recv()])
