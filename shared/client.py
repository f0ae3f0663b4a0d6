"""Subscribe to the engine's snapshots from Python.

    for topic, message in Snapshots("tcp://127.0.0.1:5556", ["kline.BTCUSDT.1m", TICKERS_TOPIC]):
        ...

Decides which topics a program gets, and counts messages of a topic that were lost on the way. Holds no klines: a
message is a whole row, so that the next one makes up for a loss, and a new subscription (`unsubscribe`, `subscribe`)
makes the engine send every row of the topic that is not in the database, and the current one.

A topic that ends in "." is a prefix (`kline.BTCUSDT.` is every interval of one symbol), as is the empty one (all there
is); any other is exact. ZeroMQ itself has only prefixes, so that other topics come too, and are dropped here.

`examples/subscribe.py` does the same without anything of klagg.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any

import zmq
import zmq.asyncio

from shared.snapshot import (
    HEALTH_TOPIC,
    TICKERS_TOPIC,
    Snapshot,
    Tickers,
    WireError,
    decode_health,
    decode_snapshot,
    decode_tickers,
)
from shared.sockets import QUEUE_MAX, set_address_family

Health = dict[str, Any]
Message = tuple[str, Snapshot | Tickers | Health]

BURST_MAX = 100
"""Messages taken in a row before other tasks of the event loop run."""
HEARTBEAT_MS = 5_000
"""A connection on which the engine answers no ping for three times as long is opened again."""


class SequenceTracker:
    """Which messages are missing, by the sequence numbers of those that came. No socket, no clock."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        """By topic: messages that never arrived."""
        self.session = 0
        """The engine's; 0 before its first message."""
        self._sequences: dict[str, tuple[int, int]] = {}

    def observe(self, topic: str, session: int, sequence: int) -> int:
        """Return how many messages of the topic are missing between the last one seen and this one.

        The first message of a topic, and the first of another session, begin a new sequence.
        """
        self.session = session
        before = self._sequences.get(topic)
        self._sequences[topic] = (session, sequence)
        if before is None or before[0] != session:
            return 0
        missing = max(0, sequence - before[1] - 1)
        if missing:
            self.lost[topic] += missing
        return missing

    def remove(self, topic: str) -> None:
        """Forget the topics that `topic` covers: messages that come while it is not subscribed are no loss."""
        for known in [known for known in self._sequences if matches(topic, known)]:
            del self._sequences[known]


class _Subscriber:
    """What both kinds of iterator share: subscriptions, decoding, and the count of losses."""

    _socket: Any

    def __init__(self, topics: str | Iterable[str]) -> None:
        self._topics: set[str] = set()
        self._sequences = SequenceTracker()
        self.refused = 0
        """Messages that could not be decoded."""
        self.refused_last = ""
        self.missing = 0
        """How many messages of the same topic were lost right before the one received last."""
        for topic in [topics] if isinstance(topics, str) else topics:
            self.subscribe(topic)

    @property
    def lost(self) -> Counter[str]:
        """By topic: messages lost so far."""
        return self._sequences.lost

    @property
    def session(self) -> int:
        """The engine's session; 0 before its first message, another one after it restarted."""
        return self._sequences.session

    def subscribe(self, topic: str) -> None:
        """Subscribe a topic, if it is not subscribed yet."""
        if topic not in self._topics:
            self._topics.add(topic)
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def unsubscribe(self, topic: str) -> None:
        """Unsubscribe a topic; messages of it that are still on their way are dropped."""
        if topic in self._topics:
            self._topics.discard(topic)
            self._socket.setsockopt(zmq.UNSUBSCRIBE, topic.encode())
            self._sequences.remove(topic)

    def close(self) -> None:
        self._socket.close(linger=0)

    def _read(self, frames: list[bytes]) -> Message | None:
        try:
            topic, body = frames
            name = topic.decode()
            if not any(matches(wanted, name) for wanted in self._topics):
                return None
            message = decode(name, body)
        except ValueError as error:
            self.refused += 1
            self.refused_last = str(error)
            return None
        self.missing = self._missing(name, message)
        return name, message

    def _missing(self, topic: str, message: Snapshot | Tickers | Health) -> int:
        if not isinstance(message, dict):
            return self._sequences.observe(topic, message.session, message.sequence)
        session, sequence = message.get("session"), message.get("sequence")
        if isinstance(session, int) and isinstance(sequence, int):
            return self._sequences.observe(topic, session, sequence)
        return 0


class Snapshots(_Subscriber):
    """Iterate over (topic, message), waiting for each; the engine may be restarted meanwhile."""

    def __init__(self, endpoint: str, topics: str | Iterable[str]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = attach(self._context, endpoint)
        super().__init__(topics)

    def receive(self, timeout_ms: int | None = None) -> Message | None:
        """Wait for a message and return it; None if none came in time."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while True:
            left = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
            if not self._socket.poll(left):
                return None
            message = self._read(self._socket.recv_multipart())
            if message is not None:
                return message

    def __iter__(self) -> Iterator[Message]:
        while True:
            message = self.receive()
            if message is not None:
                yield message

    def close(self) -> None:
        super().close()
        self._context.term()

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()


class AsyncSnapshots(_Subscriber):
    """The same for asyncio: `async for topic, message in AsyncSnapshots(...)`."""

    def __init__(self, endpoint: str, topics: str | Iterable[str]) -> None:
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = attach(self._context, endpoint)
        super().__init__(topics)

    async def __aiter__(self) -> AsyncIterator[Message]:
        in_a_row = 0
        while True:
            message = self._read(await self._socket.recv_multipart())
            in_a_row += 1
            if in_a_row >= BURST_MAX:
                # A receive that does not have to wait lets no other task run.
                in_a_row = 0
                await asyncio.sleep(0)
            if message is not None:
                yield message

    def close(self) -> None:
        super().close()
        self._context.term()

    async def __aenter__(self) -> "AsyncSnapshots":
        return self

    async def __aexit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()


def matches(wanted: str, topic: str) -> bool:
    """Say whether a subscription, exact or a prefix ending in ".", covers a topic."""
    return topic == wanted or ((not wanted or wanted.endswith(".")) and topic.startswith(wanted))


def decode(topic: str, body: bytes) -> Snapshot | Tickers | Health:
    """Decode a message by its topic. Raises WireError."""
    if topic.startswith("kline."):
        return decode_snapshot(body)
    if topic == TICKERS_TOPIC:
        return decode_tickers(body)
    if topic == HEALTH_TOPIC:
        return decode_health(body)
    raise WireError(f"unknown topic {topic[:40]!r}")


def connectable(endpoint: str) -> str:
    """Return the endpoint to connect to where `endpoint` is listened on: any address becomes this machine's."""
    for anywhere, here in (("//*:", "//127.0.0.1:"), ("//0.0.0.0:", "//127.0.0.1:"), ("//[::]:", "//[::1]:")):
        endpoint = endpoint.replace(anywhere, here)
    return endpoint


def attach(context: Any, endpoint: str) -> Any:
    """Return a SUB socket that connects as soon as the engine is there, and again after each of its restarts."""
    socket = context.socket(zmq.SUB)
    # Options first: they count only for connections that are made later.
    socket.setsockopt(zmq.RCVHWM, QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    set_address_family(socket, endpoint)
    socket.connect(connectable(endpoint))
    return socket
