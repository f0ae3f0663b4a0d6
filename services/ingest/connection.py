"""One websocket connection to the exchange, kept open for ever.

Decides when a connection is dead, how long to wait for the next, and when which stream names are sent. Knows nothing
of what data frames say: all frames of one TCP read are handed over at once, and whoever reads them hands back the
exchange's replies.

The websocket itself is the Sans-I/O `ClientProtocol`, fed from an `asyncio.Protocol`. A crash here costs the trades
until the next connection, which the engine sees by their ids and asks for.
"""

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterable
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from services.ingest.binance import NAMES_MAX, STREAMS_MAX, Reply, control_message

PACE_S = 0.25
"""Between two control messages: the fastest pace that was never punished (protocol §1.3)."""
OPEN_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 10.0
"""A connection that does not answer a control message for this long is taken for dead."""
CLOSE_TIMEOUT_S = 2.0
BACKOFF_S = 0.25
BACKOFF_MAX_S = 10.0
"""Full jitter below it makes five seconds on average: far from the 300 connections in 5 minutes that are allowed."""
STABLE_S = 10.0
"""A connection that lived this long makes the next one wait no longer than the first."""
MESSAGE_MAX = 4 * 2**20
"""Bytes of one message: the largest is the ticker of all symbols, some 150 KB."""

log = logging.getLogger(__name__)


class Connection:
    def __init__(
        self,
        route: str,
        url: str,
        silence_ms: int,
        steady: bool,
        received: Callable[["Connection", list[bytes]], None],
        changed: Callable[[], None],
    ) -> None:
        """Connect to `url`. `received` gets frames; `changed` is called when `connected` became something else.

        `steady`: the route always has something to say, so that silence of its data is death, whatever else works. A
        route that may be quiet is asked with a ping.
        """
        self.route = route
        self.connected = False
        self.counts: Counter[str] = Counter()
        self._url = url
        self._silence_s = silence_ms / 1000
        self._steady = steady
        self._received = received
        self._changed = changed
        self._wanted: dict[str, None] = {}
        self._asked: dict[str, None] = {}
        """Names that were sent over this connection, ..."""
        self._answered: set[str] = set()
        """... and those of them that the exchange has replied to."""
        self._unanswered: dict[int, tuple[str, list[str], float]] = {}
        self._number = 0
        self._wake = asyncio.Event()
        self._reply = asyncio.Event()

    def subscribe(self, streams: Iterable[str]) -> None:
        """Want streams from now on, over this connection and every one after it."""
        for stream in streams:
            if len(self._wanted) >= STREAMS_MAX and stream not in self._wanted:
                # One more would cost the whole connection.
                self.counts["streams beyond the limit"] += 1
            else:
                self._wanted[stream] = None
        self._wake.set()

    def unsubscribe(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._wanted.pop(stream, None)
        self._wake.set()
        self._reply.set()
        self._reply.clear()

    @property
    def streams(self) -> int:
        return len(self._wanted)

    def replied(self, reply: Reply) -> None:
        """Take the exchange's reply to a control message."""
        number = -1 if reply.number is None else reply.number
        method, names, _ = self._unanswered.pop(number, ("something", [], 0.0))
        if reply.error:
            self.counts["refused by the exchange"] += 1
            log.error("%s: %s of %d streams refused: %s", self.route, method, len(names), reply.error)
        if method == "SUBSCRIBE":
            self._answered.update(names)
            self._reply.set()
            self._reply.clear()

    async def delivers(self, stream: str) -> None:
        """Wait until the exchange sends a stream over a live connection, or nobody wants it any more."""
        while stream in self._wanted and stream not in self._answered:
            await self._reply.wait()

    async def run(self) -> None:
        """Keep a connection open until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            why = await self._live()
            lived = loop.time() - began
            failures = 0 if lived >= STABLE_S else failures + 1
            delay = random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failures, 10)))
            if failures <= 1:
                log.warning("%s: %s; connecting again", self.route, why)
            self.counts["lost"] += 1
            await asyncio.sleep(delay)

    async def _live(self) -> str:
        """Open a connection and serve it until its end; return what ended it."""
        loop = asyncio.get_running_loop()
        wire = _Wire(self._url, self._steady, lambda frames: self._received(self, frames))
        try:
            uri = wire.protocol.uri
            context = ssl.create_default_context() if uri.secure else None
            try:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await loop.create_connection(lambda: wire, uri.host, uri.port, ssl=context)
                    await wire.opened
            except (OSError, TimeoutError, InvalidHandshake) as error:
                return f"cannot connect to {self._url}: {type(error).__name__} {error}"
            return await self._serve(wire)
        finally:
            wire.close()

    async def _serve(self, wire: "_Wire") -> str:
        self._asked = {}
        self._unanswered = {}
        self.connected = True
        log.info("%s: connected to %s", self.route, self._url)
        self._changed()
        subscriber = asyncio.create_task(self._keep_subscribed(wire))
        try:
            return await self._watch(wire)
        finally:
            subscriber.cancel()
            self._answered.clear()
            self.connected = False
            self._changed()

    async def _watch(self, wire: "_Wire") -> str:
        """Wait for the end of a connection, or for the silence that is one."""
        loop = asyncio.get_running_loop()
        pinged_at = 0.0
        while not wire.closed.done():
            now = loop.time()
            quiet = now - wire.heard_at
            if quiet >= self._silence_s:
                return f"silent for {quiet:.1f} s"
            oldest = min((at for _, _, at in self._unanswered.values()), default=now)
            if now - oldest >= REPLY_TIMEOUT_S:
                return f"no reply to a control message for {now - oldest:.1f} s"
            if not self._steady and quiet >= self._silence_s / 2 and pinged_at <= wire.heard_at:
                pinged_at = now
                wire.ping()
            await asyncio.wait([wire.closed], timeout=min(self._silence_s - quiet, self._silence_s / 4, 2.0))
        return wire.closed.result()

    async def _keep_subscribed(self, wire: "_Wire") -> None:
        """Bring what was asked of this connection in line with what is wanted, a few names at a time."""
        while True:
            # Cleared first: a change during the pause below must not be slept over.
            self._wake.clear()
            surplus = [stream for stream in self._asked if stream not in self._wanted][:NAMES_MAX]
            missing = [stream for stream in self._wanted if stream not in self._asked][:NAMES_MAX]
            if surplus:
                self._control(wire, "UNSUBSCRIBE", surplus)
                for stream in surplus:
                    del self._asked[stream]
                    self._answered.discard(stream)
            elif missing:
                self._control(wire, "SUBSCRIBE", missing)
                self._asked |= dict.fromkeys(missing)
            else:
                await self._wake.wait()
                continue
            await asyncio.sleep(PACE_S)

    def _control(self, wire: "_Wire", method: str, streams: list[str]) -> None:
        self._number += 1
        self._unanswered[self._number] = (method, streams, asyncio.get_running_loop().time())
        wire.send(control_message(method, streams, self._number))


class _Wire(asyncio.Protocol):
    """Bytes of one TCP connection, and the frames in them."""

    def __init__(self, url: str, steady: bool, received: Callable[[list[bytes]], None]) -> None:
        loop = asyncio.get_running_loop()
        self.protocol = ClientProtocol(parse_uri(url), max_size=MESSAGE_MAX)
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self.heard_at = loop.time()
        self._loop = loop
        self._steady = steady
        self._received = received
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.protocol.send_request(self.protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        frames: list[bytes] = []
        for event in self.protocol.events_received():
            if isinstance(event, Frame):
                self._take(event, frames)
            elif isinstance(event, Response):
                self._open()
        self._flush()
        if frames or not self._steady:
            self.heard_at = self._loop.time()
        if frames:
            self._received(frames)

    def eof_received(self) -> None:
        self.protocol.receive_eof()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        said = self.protocol.close_rcvd
        why = f"closed by the exchange: {said.code} {said.reason}" if said else f"connection lost {error or ''}"
        if not self.opened.done():
            self.opened.set_exception(OSError(why))
        if not self.closed.done():
            self.closed.set_result(why.strip())

    def send(self, message: bytes) -> None:
        if self.protocol.state is State.OPEN:
            self.protocol.send_text(message)
            self._flush()

    def ping(self) -> None:
        if self.protocol.state is State.OPEN:
            self.protocol.send_ping(b"")
            self._flush()

    def close(self) -> None:
        """Say goodbye if there is somebody to say it to, and do not wait for the answer."""
        if self.opened.done() and not self.opened.cancelled():
            self.opened.exception()
        if self._transport is not None and not self._transport.is_closing():
            if self.protocol.state is State.OPEN:
                self.protocol.send_close(1000)
                self._flush()
            self._transport.close()
            # What a dead peer never takes would be kept for it until the kernel gives up.
            self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def _open(self) -> None:
        if not self.opened.done():
            if self.protocol.handshake_exc is not None:
                self.opened.set_exception(self.protocol.handshake_exc)
            else:
                self.opened.set_result(None)
        self.heard_at = self._loop.time()

    def _take(self, frame: Frame, frames: list[bytes]) -> None:
        if frame.opcode is Opcode.TEXT or frame.opcode is Opcode.BINARY:
            if frame.fin:
                frames.append(frame.data)  # type: ignore[arg-type]
            else:
                self._parts = [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
            if frame.fin:
                frames.append(b"".join(self._parts))
                self._parts = []

    def _flush(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        for data in self.protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                # The end of the websocket is the end of the connection; TLS knows no half-closed one.
                self._transport.close()
                return
