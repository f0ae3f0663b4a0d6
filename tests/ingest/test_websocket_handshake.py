"""Answers to the websocket's handshake that are none: refused, and tried again ever less often."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import uvloop

from services.ingest import websocket
from services.ingest.websocket import Websocket
from tests.ingest.test_connection import Client

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        writer.write(b"X-More: and more\r\n" * 1_000)
        await writer.drain()


async def endless_line(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"H" * 100_000)
        await writer.drain()


async def dripping_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nX-More: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def large_and_whole(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-More: and more\r\n" * 200_000 + b"\r\n")
    await writer.drain()


async def long_line_within(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nX-More: " + b"x" * 15_000 + b"\r\n\r\n")
    await writer.drain()


async def many_lines_within(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + b"A: b\r\n" * 2_000 + b"\r\n")
    await writer.drain()


async def no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff\x00" * 4_000 + b"\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    "answer",
    [
        endless_headers,
        endless_line,
        dripping_headers,
        large_and_whole,
        long_line_within,
        many_lines_within,
        no_http,
    ],
)
def test_a_handshake_that_is_none_costs_a_pause_and_no_restart(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "OPEN_TIMEOUT_S", 0.5)
    opened: list[float] = []
    ours: list[dict[str, object]] = []

    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            opened.append(time.monotonic())
            with suppress(OSError, RuntimeError):  # uvloop's word for a transport that is closed.
                await answer(writer)
                await reader.read()
            writer.close()

        # As ingest's own loop does it: what a callback raises ends the process.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: ours.append(context))
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        running = asyncio.create_task(client.connection.run())
        await client.until(lambda: client.connection.counts["lost"] >= 4)
        assert not running.done()
        assert client.changes == []
        assert ours == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()

    uvloop.run(story())
    assert len(opened) <= 6


def test_an_answer_to_the_handshake_without_an_end_is_refused() -> None:
    async def story() -> None:
        async def write_endlessly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
            with suppress(ConnectionError):
                while True:
                    writer.write(b"X-More: and more\r\n" * 1_000)
                    await writer.drain()

        server = await asyncio.start_server(write_endlessly, "127.0.0.1", 0)
        refused = Websocket(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", True, lambda _: None)
        with pytest.raises(OSError, match="more than 16384 bytes"):
            await refused.open()
        server.close()

    uvloop.run(story())
