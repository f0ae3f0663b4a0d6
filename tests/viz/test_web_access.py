"""Which requests are served: by name, by the number of connections, and by how long one was idle."""

import asyncio
import socket
import time
import urllib.request

import aiohttp
import pytest
from aiohttp import web

from services.viz.web import ConnectionLimit
from shared.http_access import AllowedHosts
from tests.viz.conftest import System
from tests.viz.test_web import get

IDLE = 2_000


@pytest.mark.parametrize(
    ("name", "is_served"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("192.168.1.5", True),
        ("::1", True),
        ("fe80::1", True),
        (socket.gethostname(), True),
        ("klagg.example.org", True),
        ("KLAGG.example.org.", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_a_server_for_all_answers_to_addresses_and_to_names_that_are_its_own(name: str, is_served: bool) -> None:
    assert (AllowedHosts("viz", "0.0.0.0", ["klagg.example.org"]).refused(name) == "") == is_served


def test_a_server_for_this_machine_alone_answers_to_nothing_else_unless_it_is_named() -> None:
    names = AllowedHosts("viz", "127.0.0.1", ["klagg.example.org"])
    assert [name for name in ("localhost", "::1", "192.168.1.5", socket.gethostname()) if names.refused(name)] == [
        "192.168.1.5",
        socket.gethostname(),
    ]
    assert not names.refused("klagg.example.org")


def test_a_strangers_name_is_refused_by_the_page_that_all_may_see(system: System) -> None:
    system.settings = {"host": "0.0.0.0", "allowed_hosts": ["klagg.example.org"]}
    system.start_viz()
    assert get(system, "/health", {"Host": f"evil.example:{system.port}"})[0] == 403
    assert get(system, "/", {"Host": f"evil.example:{system.port}"})[0] == 403
    assert get(system, "/health", {"Host": "["})[0] == 403
    for name in ("klagg.example.org", "10.1.2.3", f"{socket.gethostname()}:{system.port}"):
        assert get(system, "/health", {"Host": name})[0] == 200


def test_idle_connections_are_closed_for_others_and_busy_ones_stay() -> None:
    async def play() -> None:
        answering, go_on, busy = asyncio.Event(), asyncio.Event(), set[object]()

        async def answer(request: web.BaseRequest) -> web.Response:
            busy.add(request.protocol)
            answering.set()
            await go_on.wait()
            return web.Response(text="here")

        server = web.Server(answer)
        limit = ConnectionLimit(server, busy, connections_max=3)
        listening = await asyncio.get_running_loop().create_server(limit, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as session:
            first = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/"))
            await answering.wait()
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            for reader, _ in idle[:3]:
                assert await asyncio.wait_for(reader.read(), 10) == b""
            for index in range(2):
                answering.clear()
                idle[3 + index][1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await answering.wait()
            reader, _ = await asyncio.open_connection("127.0.0.1", port)
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 503 Too many connections")
            assert limit.closed == 4
            go_on.set()
            assert await (await first).text() == "here"
        for _, writer in idle:
            writer.close()
        listening.close()
        await server.shutdown()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_half_a_request_and_none_are_closed_after_ten_seconds(system: System) -> None:
    system.start_viz()
    began = time.monotonic()
    halves = [socket.create_connection(("127.0.0.1", system.port)) for _ in range(3)]
    halves[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-")
    halves[1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for half in halves:
        half.settimeout(60)
        while half.recv(65_536):
            pass
        half.close()
    assert 8 < time.monotonic() - began < 15


def test_the_page_answers_within_a_second_beside_2000_idle_connections(system: System) -> None:
    system.start_viz()
    idle = [socket.create_connection(("127.0.0.1", system.port)) for _ in range(IDLE)]
    try:
        for path in ("/", "/app.js", "/health", "/healthz") * 5:
            began = time.monotonic()
            with urllib.request.urlopen(f"http://{system.address}{path}", timeout=5) as response:
                assert response.status == 200
            assert time.monotonic() - began < 1.0
    finally:
        for connection in idle:
            connection.close()
