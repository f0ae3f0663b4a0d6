"""One websocket: what arrives on it, and when it is dead.

What the exchange sends all day, whole messages of text, is found by compiled code where the socket has put it, and all
of one read are handed over together. Everything else is the business of websockets' Sans-I/O protocol: the handshake,
control frames, messages in pieces, and mistakes. Decides nothing about streams, and knows nothing of what a message
says.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

import numpy as np
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.ingest import proxy
from services.ingest.framing import HEADER_MAX, Frames, find_plain, frames_of
from shared.compiled import fixed

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MESSAGE_MAX = 4 * 2**20
"""Bytes of one message: the largest is the ticker of all symbols, some 150 KB."""
READ_MAX = 256 * 1024
"""Bytes of one read, some thousand trades: so few that they are in the processor's cache when they are scanned."""
MESSAGES_MAX = 1_000
"""Handed over at once."""
HEADERS_END = b"\r\n\r\n"
HEADERS_MAX = 16_384
"""Bytes of the exchange's answer to the handshake; it has some 200."""
NOTHING_PLAIN = -1


class Websocket(asyncio.BufferedProtocol):
    def __init__(self, url: str, steady: bool, received: Callable[[Frames], None], through: str = "") -> None:
        """Be ready to connect. `steady`: only messages count as a sign of life, not pongs. `through`: a proxy's URL."""
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.heard_at = self._loop.time()
        self._url = url
        self._through = through
        self._steady = steady
        self._received = received
        self._protocol: ClientProtocol
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[str] = self._loop.create_future()
        """Why it could not be opened; empty if it is open."""
        self._is_open = False
        self._said = ""
        """What the exchange said at the end."""

        self._bytes = np.frombuffer(bytearray(MESSAGE_MAX + HEADER_MAX + READ_MAX + 1), np.uint8)
        self._view = self._bytes.data
        self._begin, self._end = 0, 0
        """Of what has arrived and was not taken yet."""
        self._spans = np.empty((MESSAGES_MAX, 2), np.int64)
        self._find = fixed(find_plain, self._bytes, 0, 0, self._spans, 0)
        self._theirs = 0
        """So many bytes are of a frame that the protocol reads."""
        self._parts: list[bytes] = []
        """Of a message in pieces."""

    async def open(self) -> None:
        """Connect. Raises OSError, whatever is the matter."""
        try:
            uri = parse_uri(self._url)
        except InvalidURI as error:
            raise OSError(str(error)) from error
        self._protocol = ClientProtocol(uri, max_size=MESSAGE_MAX)
        context = ssl.create_default_context() if uri.secure else None
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            if self._through:
                way = await proxy.tunnel(self._through, uri.host, uri.port)
                name = uri.host if context is not None else None
                await self._loop.create_connection(lambda: self, sock=way, ssl=context, server_hostname=name)
            else:
                await self._loop.create_connection(lambda: self, uri.host, uri.port, ssl=context)
            why = await self._opened
        if why:
            raise OSError(why)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._end : self._end + READ_MAX]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if not self._opened.done():
            self._shake_hands()
        if self._is_open:
            if not self._steady:
                self.heard_at = self._loop.time()
            self._take()
        elif self._opened.done():
            self._end = 0  # Whoever has said goodbye listens no more.

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        if not self._opened.done():
            self._opened.set_result(f"connection lost {exc or ''}".strip())
        if not self.closed.done():
            self.closed.set_result((self._said or "connection lost").strip())

    def send(self, message: bytes) -> None:
        if self._is_open:
            self._protocol.send_text(message)
            self._flush()

    def ping(self) -> None:
        if self._is_open:
            self._protocol.send_ping(b"")
            self._flush()

    def close(self) -> None:
        """Say goodbye if there is somebody to say it to, and do not wait for the answer."""
        if self._transport is None or self.closed.done():
            return
        if self._is_open:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
        self._transport.close()
        # What a dead peer never takes would be kept for it until the kernel gives up.
        self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def _shake_hands(self) -> None:
        """Let the protocol read the answer to its request, and not what follows."""
        answer = self._view[: self._end].tobytes()
        size = answer.find(HEADERS_END) + len(HEADERS_END)
        if size < len(HEADERS_END) and self._end <= HEADERS_MAX:
            return
        if not len(HEADERS_END) <= size <= HEADERS_MAX:
            self._opened.set_result(f"an answer to the handshake of more than {HEADERS_MAX} bytes")
            self.close()
            return
        self._protocol.receive_data(answer[:size])
        self._protocol.events_received()
        self._begin = size
        self.heard_at = self._loop.time()
        if self._protocol.state is State.OPEN:
            self._is_open = True
            self._opened.set_result("")
        else:
            status = answer[: answer.find(b"\r\n")].decode("ascii", "replace")
            self._opened.set_result(f"{status}: {self._protocol.handshake_exc or 'no websocket'}")
            self.close()

    def _take(self) -> None:
        """Hand over all messages that are whole."""
        while self._begin < self._end and self._is_open:
            if not self._theirs:
                # Within a message in pieces, no frame is whole.
                size_max = NOTHING_PLAIN if self._parts else MESSAGE_MAX
                count, self._begin, self._theirs = self._find(
                    self._bytes, self._begin, self._end, self._spans, size_max
                )
                if count:
                    self._hand_over(Frames(self._bytes, self._spans[:count]))
                elif not self._theirs:
                    break
            if self._theirs:
                self._let_read()
        rest = self._end - self._begin
        if rest and self._begin:
            self._bytes[:rest] = self._bytes[self._begin : self._end].copy()
        self._begin, self._end = 0, rest

    def _let_read(self) -> None:
        """Let the protocol read what there is of a frame."""
        size = min(self._theirs, self._end - self._begin)
        self._protocol.receive_data(self._view[self._begin : self._begin + size].tobytes())
        self._begin += size
        self._theirs -= size
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.CLOSE:
                close = self._protocol.close_rcvd or Close(CloseCode.NO_STATUS_RCVD, "")
                self._said = f"closed by the exchange: {close.code:d} {close.reason}"
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._parts.append(bytes(event.data))
                if event.fin:
                    message, self._parts = b"".join(self._parts), []
                    self._hand_over(frames_of([message]))
        if self._protocol.parser_exc is not None and not self._said:
            self._said = f"not a websocket any more: {self._protocol.parser_exc}"
        self._flush()

    def _flush(self) -> None:
        """Send what the protocol wants to; one that has nothing more to say is closed."""
        if self._transport is not None:
            self._transport.writelines([data for data in self._protocol.data_to_send() if data])
            if self._protocol.state in (State.CLOSING, State.CLOSED):
                self._is_open = False
                self._transport.close()

    def _hand_over(self, frames: Frames) -> None:
        self.heard_at = self._loop.time()
        try:
            self._received(frames)
        except Exception as error:
            # A mistake of ours must end the process, not the connection.
            self._loop.call_exception_handler({"message": "a message could not be taken", "exception": error})
