"""What a websocket brings, however its bytes are cut up, and what ends it: beside a server that writes what it gets."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import pytest
import uvloop
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from services.ingest.websocket import MESSAGE_MAX, READ_MAX, Frames, Websocket

SIZES = (0, 1, 124, 125, 126, 127, 300, 65_535, 65_536, READ_MAX, READ_MAX + 1)
"""Of messages: around the lengths that are spelled otherwise, and that exceed one read."""


class Exchange:
    """Shakes hands, writes what it is given in pieces of any size, and knows what it was sent."""

    def __init__(self) -> None:
        self._websocket = ServerProtocol()
        self.frames_received: list[Frame] = []
        self.writer: asyncio.StreamWriter

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                self._websocket.receive_data(data)
                for event in self._websocket.events_received():
                    if isinstance(event, Request):
                        self._websocket.send_response(self._websocket.accept(event))
                        writer.write(b"".join(self._websocket.data_to_send()))
                    else:
                        assert isinstance(event, Frame)
                        self.frames_received.append(event)

    async def write(self, data: bytes, cuts: list[int]) -> None:
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self.writer.write(data[begin:end])
            await self.writer.drain()
            await asyncio.sleep(0)


def frame(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


def play(
    data: bytes, cuts: list[int], until: Callable[[list[bytes], Exchange, Websocket], bool]
) -> tuple[list[bytes], Exchange, Websocket]:
    """Let a server write and a websocket read until something is true; return what was read, and by whom."""
    messages: list[bytes] = []

    def received(frames: Frames) -> None:
        assert len(frames.spans)
        messages.extend(frames.messages())

    async def run() -> tuple[list[bytes], Exchange, Websocket]:
        exchange = Exchange()
        server = await asyncio.start_server(exchange.serve, "127.0.0.1", 0)
        async with server:
            websocket = Websocket(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", True, received)
            await websocket.open()
            with suppress(ConnectionError):  # Who reads a mistake does not read on.
                await exchange.write(data, cuts)
            async with asyncio.timeout(20):
                while not until(messages, exchange, websocket):
                    await asyncio.sleep(0.002)
            websocket.close()
            async with asyncio.timeout(20):
                await websocket.closed
            exchange.writer.close()
        return messages, exchange, websocket

    return uvloop.run(run())


def test_every_message_comes_once_however_it_is_cut_and_whatever_lies_between() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(30):
        data, expected, pings = b"", [], []
        for _ in range(dice.randrange(1, 40)):
            message = dice.randbytes(dice.choice(SIZES[:7] if dice.random() < 0.9 else SIZES))
            kind = dice.randrange(10)
            if kind == 0:
                pings.append(message[:125])
                data += frame(Opcode.PING, message[:125])
            elif kind == 1:
                data += frame(Opcode.PONG, message[:125])
            elif kind == 2:
                data += frame(Opcode.BINARY, message)
            elif kind == 3:
                cut = dice.randrange(len(message) + 1)
                data += frame(Opcode.TEXT, message[:cut], fin=False)
                if dice.random() < 0.5:
                    pings.append(b"within")
                    data += frame(Opcode.PING, b"within")
                data += frame(Opcode.CONT, message[cut:])
            else:
                data += frame(Opcode.TEXT, message)
            if kind > 1:
                expected.append(message)
        cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice([0, 1, 5, 60])))
        messages, exchange, _ = play(
            data,
            cuts,
            lambda messages, exchange, _, e=expected, p=pings: (
                len(messages) >= len(e) and len(exchange.frames_received) >= len(p)
            ),  # type: ignore[misc]
        )
        assert messages == expected
        pongs = [bytes(each.data) for each in exchange.frames_received if each.opcode is Opcode.PONG]
        assert pongs == pings


TOO_LARGE = "over size limit|too big|exceeds"
MISTAKES = {
    "a masked frame": (b"\x81\x82abcd" + bytes(2), "incorrect masking"),
    "a piece of nothing": (frame(Opcode.CONT, b"of nothing"), "unexpected continuation"),
    "a message within another": (
        frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.TEXT, b"whole"),
        "expected a continuation",
    ),
    "a second beginning": (
        frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.TEXT, b"b", fin=False),
        "expected a continuation",
    ),
    "reserved bits": (b"\xc1\x01a", "reserved bits"),
    "an unknown kind": (b"\x83\x01a", "invalid opcode"),
    "one byte too large": (b"\x81\x7f" + (MESSAGE_MAX + 1).to_bytes(8, "big"), TOO_LARGE),
    "larger than can be": (b"\x81\x7f" + b"\xff" * 8, TOO_LARGE),
    "pieces that are too large": (
        frame(Opcode.TEXT, b"a" * MESSAGE_MAX, fin=False) + frame(Opcode.CONT, b"a"),
        TOO_LARGE,
    ),
    "a close": (frame(Opcode.CLOSE, Close(1008, "bye").serialize()), "closed by the exchange: 1008 bye"),
    "a close without a reason": (frame(Opcode.CLOSE, b""), "closed by the exchange: 1005"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_message_ends_the_websocket_and_says_why(mistake: str) -> None:
    what, why = MISTAKES[mistake]
    data = frame(Opcode.TEXT, b"before") + what + frame(Opcode.TEXT, b"after")
    for cuts in ([], list(range(1, min(len(data), 60)))):
        messages, _, websocket = play(data, cuts, lambda _, __, websocket: websocket.closed.done())
        assert messages == [b"before"]
        said = websocket.closed.result()
        assert any(part in said for part in why.split("|")), said


def test_the_largest_message_fits() -> None:
    data = frame(Opcode.TEXT, b"x" * MESSAGE_MAX) + frame(Opcode.TEXT, b"after")
    messages, _, _ = play(frame(Opcode.TEXT, b"y") + data, [], lambda messages, *_: len(messages) == 3)
    assert [len(message) for message in messages] == [1, MESSAGE_MAX, 5]
