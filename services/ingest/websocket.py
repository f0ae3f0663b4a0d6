"""One websocket: what arrives on it, and when it is dead.

Nearly all that the exchange sends is whole messages of text. Compiled code finds them where the socket has put them,
and all messages of one read are handed over together, without being copied. A frame is *plain* if it is text, whole,
unmasked, and no longer than a message may be (RFC 6455, 5.2). Everything else is left to websockets' Sans-I/O protocol:
the handshake, control frames, messages in fragments, and errors. Decides nothing about streams, and knows nothing of
what a message says.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.ingest import proxy
from shared.arrays import Bytes, Integers
from shared.compiled import compiled, fixed

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MESSAGE_MAX = 4 * 2**20
"""Bytes of one message: the largest is the ticker of all symbols, some 150 KB."""
READ_MAX = 256 * 1024
"""Bytes of one read, some thousand trades: few enough to be in the processor's cache when they are scanned."""
MESSAGES_MAX = 1_000
"""Handed over in one call."""
HEADERS_END = b"\r\n\r\n"
HEADERS_MAX = 16_384
"""Bytes of the exchange's answer to the handshake; it has some 200."""
NOTHING_PLAIN = -1
HEADER_MAX = 10
"""Bytes of the longest header of a frame that is not masked."""
_FINAL_TEXT, _MASKED = 0x81, 0x80
_IN_TWO_BYTES, _IN_EIGHT_BYTES = 126, 127
"""Values of the header's second byte that say that the length follows it, in so many bytes."""
_SIZE_MAX = 1 << 62
"""A frame that says it is longer is too long as well."""


class Frames(NamedTuple):
    """Messages that arrived together. They are valid until more is read."""

    text: NDArray[np.uint8]
    """The messages, among other bytes. A reader may write behind a message, if it restores what was there."""
    spans: NDArray[np.int64]
    """int64[n, 2]: where each message begins and ends in the text."""

    def message(self, index: int) -> bytes:
        begin, end = self.spans[index].tolist()
        return self.text[begin:end].tobytes()

    def messages(self) -> list[bytes]:
        return [self.message(index) for index in range(len(self.spans))]


def frames_of(messages: list[bytes]) -> Frames:
    """Return messages as if they had arrived together."""
    sizes = np.array([len(message) for message in messages], np.int64)
    spans = np.empty((len(messages), 2), np.int64)
    spans[:, 1] = np.cumsum(sizes + 1) - 1
    spans[:, 0] = spans[:, 1] - sizes
    return Frames(np.frombuffer(bytearray(b"\n".join([*messages, b""])), np.uint8), spans)


class Websocket(asyncio.BufferedProtocol):
    def __init__(self, url: str, steady: bool, received: Callable[[Frames], None], proxy_url: str = "") -> None:
        """Prepare to connect; `received` gets messages. `steady`: a pong does not count as a sign of life."""
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.alive_at = self._loop.time()
        self._url = url
        self._proxy_url = proxy_url
        self._steady = steady
        self._received = received
        self._protocol: ClientProtocol
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[str] = self._loop.create_future()
        """Why it could not be opened; empty if it was."""
        self._is_open = False
        self._close_reason = ""
        """What the exchange gave as the reason."""

        self._bytes = np.frombuffer(bytearray(MESSAGE_MAX + HEADER_MAX + READ_MAX + 1), np.uint8)
        self._view = self._bytes.data
        self._begin, self._end = 0, 0
        """Of the bytes that have arrived and were not handed over yet."""
        self._spans = np.empty((MESSAGES_MAX, 2), np.int64)
        self._find = fixed(find_plain, self._bytes, 0, 0, self._spans, 0)
        self._left_to_protocol = 0
        """How many of the next bytes belong to a frame that the protocol reads."""
        self._fragments: list[bytes] = []
        """Of a message whose last fragment is still to come."""

    async def open(self) -> None:
        """Connect. Raises OSError, whatever the reason."""
        try:
            uri = parse_uri(self._url)
        except InvalidURI as error:
            raise OSError(str(error)) from error
        self._protocol = ClientProtocol(uri, max_size=MESSAGE_MAX)
        context = ssl.create_default_context() if uri.secure else None
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            if self._proxy_url:
                tunnel = await proxy.tunnel(self._proxy_url, uri.host, uri.port)
                name = uri.host if context is not None else None
                await self._loop.create_connection(lambda: self, sock=tunnel, ssl=context, server_hostname=name)
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
            self._read_handshake()
        if self._is_open:
            if not self._steady:
                self.alive_at = self._loop.time()
            self._deliver()
        elif self._opened.done():
            self._end = 0  # What arrives after the close is dropped.

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        if not self._opened.done():
            self._opened.set_result(f"connection lost {exc or ''}".strip())
        if not self.closed.done():
            self.closed.set_result((self._close_reason or "connection lost").strip())

    def send(self, message: bytes) -> None:
        if self._is_open:
            self._protocol.send_text(message)
            self._flush()

    def ping(self) -> None:
        if self._is_open:
            self._protocol.send_ping(b"")
            self._flush()

    def close(self) -> None:
        """Send a close frame if the websocket is open, and close without waiting for the answer."""
        if self._transport is None or self.closed.done():
            return
        if self._is_open:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
        self._transport.close()
        # A dead peer takes nothing: without this, the socket would stay until the kernel gives up.
        self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def _read_handshake(self) -> None:
        """Give the protocol the answer to its request, without what follows it."""
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
        self.alive_at = self._loop.time()
        if self._protocol.state is State.OPEN:
            self._is_open = True
            self._opened.set_result("")
        else:
            status = answer[: answer.find(b"\r\n")].decode("ascii", "replace")
            self._opened.set_result(f"{status}: {self._protocol.handshake_exc or 'no websocket'}")
            self.close()

    def _deliver(self) -> None:
        """Hand over all messages that have arrived whole."""
        while self._begin < self._end and self._is_open:
            if not self._left_to_protocol:
                # Between the fragments of a message, no frame is a whole message.
                size_max = NOTHING_PLAIN if self._fragments else MESSAGE_MAX
                count, self._begin, self._left_to_protocol = self._find(
                    self._bytes, self._begin, self._end, self._spans, size_max
                )
                if count:
                    self._hand_over(Frames(self._bytes, self._spans[:count]))
                elif not self._left_to_protocol:
                    break
            if self._left_to_protocol:
                self._feed_protocol()
        rest = self._end - self._begin
        if rest and self._begin:
            self._bytes[:rest] = self._bytes[self._begin : self._end].copy()
        self._begin, self._end = 0, rest

    def _feed_protocol(self) -> None:
        """Give the protocol what has arrived of its frame."""
        size = min(self._left_to_protocol, self._end - self._begin)
        self._protocol.receive_data(self._view[self._begin : self._begin + size].tobytes())
        self._begin += size
        self._left_to_protocol -= size
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.CLOSE:
                close = self._protocol.close_rcvd or Close(CloseCode.NO_STATUS_RCVD, "")
                self._close_reason = f"closed by the exchange: {close.code:d} {close.reason}"
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._fragments.append(bytes(event.data))
                if event.fin:
                    message, self._fragments = b"".join(self._fragments), []
                    self._hand_over(frames_of([message]))
        if self._protocol.parser_exc is not None and not self._close_reason:
            self._close_reason = f"not a websocket any more: {self._protocol.parser_exc}"
        self._flush()

    def _flush(self) -> None:
        """Send what the protocol has to send, and close the socket once the protocol is done."""
        if self._transport is not None:
            self._transport.writelines([data for data in self._protocol.data_to_send() if data])
            if self._protocol.state in (State.CLOSING, State.CLOSED):
                self._is_open = False
                self._transport.close()

    def _hand_over(self, frames: Frames) -> None:
        self.alive_at = self._loop.time()
        try:
            self._received(frames)
        except Exception as error:
            # Our own bug must end the process, not the connection.
            self._loop.call_exception_handler({"message": "a message could not be taken", "exception": error})


def warm_up() -> None:
    """Compile, or load what was compiled: the first frames must not wait for it."""
    find_plain(np.zeros(1, np.uint8), 0, 0, np.zeros((1, 2), np.int64), 0)


@compiled
def find_plain(text: Bytes, begin: int, end: int, spans: Integers, size_max: int) -> tuple[int, int, int]:
    """Find the messages of the plain frames that stand whole in [begin, end), up to the first frame that does not.

    Return (how many messages, where that first frame begins, its bytes if it is not plain, else 0). text: uint8[];
    spans: int64[n, 2], for up to n messages; size_max: bytes of the largest message that is plain.
    """
    count = 0
    while count < len(spans):
        header, size = _measure(text, begin, end)
        if header == 0:
            break
        if text[begin] != _FINAL_TEXT or text[begin + 1] >= _MASKED or size > size_max:
            return count, begin, header + size
        if begin + header + size > end:
            break
        spans[count, 0] = begin + header
        begin += header + size
        spans[count, 1] = begin
        count += 1
    return count, begin, 0


@compiled
def _measure(text: Bytes, begin: int, end: int) -> tuple[int, int]:
    """Return the bytes of a frame's header and of its content; (0, 0) while the header has not arrived whole."""
    if end - begin < 2:
        return 0, 0
    size = text[begin + 1] & 0x7F
    header = 2 if size < _IN_TWO_BYTES else 4 if size < _IN_EIGHT_BYTES else HEADER_MAX
    if end - begin < header:
        return 0, 0
    if header > 2:
        size = 0
        for at in range(begin + 2, begin + header):
            size = size << 8 | text[at]
    return header, size if 0 <= size < _SIZE_MAX else _SIZE_MAX
