"""Attach to the engine's snapshots from Python: the comfortable way.

    for topic, message in Snapshots("tcp://127.0.0.1:5556", ["kline.BTCUSDT.1m", TICKERS_TOPIC]):
        ...

Decides which topics a program gets, and knows when messages of a topic were lost on the way. Holds no klines: a message
is a full row, so a loss heals with the next one, and asking again (`unsubscribe`, `subscribe`) makes the engine send
every row of the topic that is not in the database, plus the current one.

A topic that ends in "." is a prefix (`kline.BTCUSDT.` is every interval of one symbol), as is the empty one (all there
is); any other is exact. ZeroMQ itself knows only prefixes, so what else comes along is dropped here.

Whoever would rather use nothing of klagg finds the same in `examples/subscribe.py`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from shared.sockets import QUEUE_MAX, take_address
from shared.wire import (
    HEALTH_TOPIC,
    NOT_DECODED,
    TICKERS_TOPIC,
    Snapshot,
    Tickers,
    WireError,
    decode_snapshot,
    decode_tickers,
)

Health = dict[str, Any]
Message = tuple[str, Snapshot | Tickers | Health]

BURST_MAX = 100
"""Messages taken in a row before other tasks of the event loop get their turn."""
HEARTBEAT_MS = 5_000
"""A connection over which the engine answers no ping for three of these is opened anew."""

_health_decoder = msgspec.msgpack.Decoder(dict[str, Any])


class Continuity:
    """Which messages are missing, told from the numbers that messages carry. No socket, no clock."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        """Messages that never arrived, a topic."""
        self.session = 0
        """The engine's; 0 before its first message."""
        self._sequences: dict[str, tuple[int, int]] = {}

    def observe(self, topic: str, session: int, sequence: int) -> int:
        """Return how many messages of the topic are missing between the last one seen and this one.

        The first message of a topic, and the first of another session, begin the count anew.
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

    def forget(self, topic: str) -> None:
        """Expect nothing of the topics that `topic` stands for: while unsubscribed, messages pass unseen."""
        for known in [known for known in self._sequences if matches(topic, known)]:
            del self._sequences[known]


class _Attachment:
    """What both kinds of iterator share: subscriptions, decoding, and the count of what is lost."""

    _socket: Any

    def __init__(self, topics: str | Iterable[str]) -> None:
        self._topics: set[str] = set()
        self._continuity = Continuity()
        self.refused = 0
        """Messages that are not what their topic promises."""
        self.refused_last = ""
        self.missing = 0
        """How many messages of the same topic were lost right before the one received last."""
        for topic in [topics] if isinstance(topics, str) else topics:
            self.subscribe(topic)

    @property
    def lost(self) -> Counter[str]:
        """Messages lost so far, a topic."""
        return self._continuity.lost

    @property
    def session(self) -> int:
        """The engine's session; 0 before its first message, another one after it restarted."""
        return self._continuity.session

    def subscribe(self, topic: str) -> None:
        """Ask for a topic. Asking for one that is held already changes nothing."""
        if topic not in self._topics:
            self._topics.add(topic)
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def unsubscribe(self, topic: str) -> None:
        """Give a topic up; a few messages of it that are on their way are dropped."""
        if topic in self._topics:
            self._topics.discard(topic)
            self._socket.setsockopt(zmq.UNSUBSCRIBE, topic.encode())
            self._continuity.forget(topic)

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
            return self._continuity.observe(topic, message.session, message.sequence)
        session, sequence = message.get("session"), message.get("sequence")
        if isinstance(session, int) and isinstance(sequence, int):
            return self._continuity.observe(topic, session, sequence)
        return 0


class Snapshots(_Attachment):
    """Iterate over (topic, message), waiting for each; the engine may come and go meanwhile."""

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


class AsyncSnapshots(_Attachment):
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
                # A receive that need not wait does not let anyone else run either.
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
        try:
            return _health_decoder.decode(body)
        except NOT_DECODED as error:
            raise WireError(f"{error} (message begins {body[:40]!r})") from error
    raise WireError(f"unknown topic {topic[:40]!r}")


def connectable(endpoint: str) -> str:
    """Return where to connect to what listens on `endpoint`: "any address" is no address to go to."""
    for anywhere, here in (("//*:", "//127.0.0.1:"), ("//0.0.0.0:", "//127.0.0.1:"), ("//[::]:", "//[::1]:")):
        endpoint = endpoint.replace(anywhere, here)
    return endpoint


def attach(context: Any, endpoint: str) -> Any:
    """Return a SUB socket that is connected, now or whenever the engine appears; it stays so over restarts."""
    socket = context.socket(zmq.SUB)
    # Options first: a connection takes those that were set before it.
    socket.setsockopt(zmq.RCVHWM, QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    take_address(socket, endpoint)
    socket.connect(connectable(endpoint))
    return socket
