"""Bytes of one TCP connection, and the websocket messages in them.

The websocket is the Sans-I/O `ClientProtocol`, fed from an `asyncio.Protocol`: all messages of one TCP read are handed
over at once. Decides nothing about streams, and knows nothing of what a message says.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MESSAGE_MAX = 4 * 2**20
"""Bytes of one message: the largest is the ticker of all symbols, some 150 KB."""


class Websocket(asyncio.Protocol):
    def __init__(self, url: str, steady: bool, received: Callable[[list[bytes]], None]) -> None:
        """Be ready to connect. `steady`: only messages count as a sign of life, not pongs."""
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

    async def open(self) -> None:
        """Connect. Raises OSError, TimeoutError, InvalidHandshake."""
        uri = self.protocol.uri
        context = ssl.create_default_context() if uri.secure else None
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await self._loop.create_connection(lambda: self, uri.host, uri.port, ssl=context)
            await self.opened

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
                self._opened()
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

    def _opened(self) -> None:
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
