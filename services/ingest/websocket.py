"""One websocket: what arrives on it, and when it is dead.

picows parses frames in C; the messages of one read are handed over together, or a thousand at a time. Decides nothing
about streams, and knows nothing of what a message says.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable

from picows import WSCloseCode, WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MESSAGE_MAX = 4 * 2**20
"""Bytes of one message: the largest is the ticker of all symbols, some 150 KB."""
CONTROL_MAX = 125
"""Bytes of a control frame, by the protocol (RFC 6455, 5.5)."""

MESSAGES_MAX = 1_000
"""Handed over at once: what has just been copied is still in the processor's cache. A read under flood has ten times as
many."""

logging.getLogger("picows").setLevel(logging.CRITICAL)  # What ends a connection is told by whoever opened it.


class Websocket(WSListener):
    # Each frame looks at some of them: a dictionary would make that a tenth of all that ingest does.
    __slots__ = (
        "_loop",
        "_messages",
        "_parts",
        "_received",
        "_said",
        "_steady",
        "_transport",
        "_url",
        "closed",
        "heard_at",
    )

    def __init__(self, url: str, steady: bool, received: Callable[[list[bytes]], None]) -> None:
        """Be ready to connect. `steady`: only messages count as a sign of life, not pongs."""
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.heard_at = self._loop.time()
        self._url = url
        self._steady = steady
        self._received = received
        self._transport: WSTransport | None = None
        self._messages: list[bytes] = []
        self._parts: list[bytes] = []
        self._said = ""
        """What the exchange said at the end."""

    async def open(self) -> None:
        """Connect. Raises OSError, whatever is the matter."""
        context = ssl.create_default_context() if self._url.startswith("wss:") else None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await ws_connect(
                    lambda: self,
                    self._url,
                    ssl_context=context,
                    websocket_handshake_timeout=OPEN_TIMEOUT_S,
                    enable_auto_pong=False,
                    max_frame_size=MESSAGE_MAX,
                    max_redirects=0,
                )
        except (WSError, TimeoutError, ValueError) as error:
            raise OSError(f"{type(error).__name__} {error}") from error

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.heard_at = self._loop.time()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        # The kind of a frame costs as much as all the rest here, and picows lets no control frame be this long.
        if frame.payload_size > CONTROL_MAX and frame.fin and not self._parts:
            self._messages.append(frame.get_payload_as_bytes())
        else:
            self._take(transport, frame)
        if frame.last_in_buffer or len(self._messages) >= MESSAGES_MAX:
            messages, self._messages = self._messages, []
            if messages or not self._steady:
                self.heard_at = self._loop.time()
            if messages:
                self._hand_over(messages)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.closed.done():
            self.closed.set_result((self._said or "connection lost").strip())

    def send(self, message: bytes) -> None:
        if self._transport is not None and not self.closed.done():
            self._transport.send(WSMsgType.TEXT, message)

    def ping(self) -> None:
        if self._transport is not None and not self.closed.done():
            self._transport.send_ping()

    def close(self) -> None:
        """Say goodbye if there is somebody to say it to, and do not wait for the answer."""
        if self._transport is not None and not self.closed.done():
            self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()
            # What a dead peer never takes would be kept for it until the kernel gives up.
            self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.disconnect, False)

    def _take(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.TEXT or kind == WSMsgType.BINARY or kind == WSMsgType.CONTINUATION:
            self._parts.append(frame.get_payload_as_bytes())
            if frame.fin:
                self._messages.append(b"".join(self._parts))
                self._parts = []
        elif kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.CLOSE:
            self._said = f"closed by the exchange: {frame.get_close_code():d} {frame.get_close_reason() or ''}"
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def _hand_over(self, messages: list[bytes]) -> None:
        try:
            self._received(messages)
        except Exception as error:
            # A mistake of ours must end the process; picows would only end the connection.
            self._loop.call_exception_handler({"message": "a message could not be taken", "exception": error})
