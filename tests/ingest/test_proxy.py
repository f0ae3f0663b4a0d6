"""Through the proxy that the environment names: to an exchange with a name that nobody but the proxy knows."""

import asyncio
import base64
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import uvloop

from harness.processes import Room, free_port, wait_for, write_config
from services.ingest.binance.endpoints import venue_of
from services.ingest.proxy import proxy_of
from services.ingest.rate_limit import WeightBudget
from services.ingest.rest import Priority, Rest, RestError
from shared.config import Config, SimulatorConfig
from shared.process import Unavailable
from shared.wire import AddSymbol, Subscribe
from tests.ingest.played import START, Engine, Exchange, Fill, agg_frame
from tests.ingest.test_connection import Client

NAME = "exchange.test"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Proxy:
    """An HTTP proxy: CONNECT, and GET of a whole address. Every name leads to this machine."""

    def __init__(self, key: str = "") -> None:
        self.port = free_port()
        self.asked: list[str] = []
        """First lines of what was asked."""
        self.refused = 0
        self.refuses = False
        self._key = f"Basic {base64.b64encode(key.encode()).decode()}" if key else ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._relay, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first = head.split("\r\n")[0]
            self.asked.append(first)
            if self.refuses or (self._key and f"Proxy-Authorization: {self._key}" not in head):
                self.refused += 1
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            method, target, _ = first.split(" ")
            address = target if method == "CONNECT" else target.split("/")[2]
            to, onward = await asyncio.open_connection("127.0.0.1", int(address.split(":")[1]))
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                # One question a connection.
                head = head.replace(f"http://{address}", "", 1).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
                onward.write(head.encode())
            await asyncio.gather(_pass_on(reader, onward), _pass_on(to, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def test_the_environment_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    rest, socket = "https://fapi.binance.com/fapi/v1", "wss://fstream.binance.com/market/stream"
    assert proxy_of(rest) == proxy_of(socket) == ""
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    assert proxy_of(rest) == proxy_of(socket) == "http://all:1"
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@safe:2")
    assert proxy_of(rest) == proxy_of(socket) == "http://user:word@safe:2"
    assert proxy_of("http://exchange.test:9/") == "http://all:1"
    monkeypatch.setenv("http_proxy", "plain:3")
    assert proxy_of("http://exchange.test:9/") == proxy_of("ws://exchange.test:9/") == "http://plain:3"
    for local in ("http://127.0.0.1:9080", "ws://localhost:9080/x", "http://[::1]:9080", "wss://127.7.7.7"):
        assert proxy_of(local) == ""
    monkeypatch.setenv("NO_PROXY", "example.com,.binance.com")
    assert proxy_of(rest) == proxy_of(socket) == ""
    assert proxy_of("https://binance.org") == "http://user:word@safe:2"
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_of("https://binance.org") == ""


@pytest.mark.parametrize(
    "named", ["socks5://there:1080", "https://there:443", "http://", "http://there:port", "ftp://x"]
)
def test_a_proxy_that_cannot_be_used_is_refused_in_words_without_its_password(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", named.replace("://", "://me:secret@"))
    with pytest.raises(Unavailable, match="has to be http://host:port") as caught:
        proxy_of("https://fapi.binance.com")
    assert "secret" not in str(caught.value)


def test_a_room_reaches_an_exchange_that_only_the_proxy_knows(exchange: Exchange, tmp_path: Path, proxy: Proxy) -> None:
    config = write_config(tmp_path, exchange={"backfill_rows": 59}, simulator={"host": NAME, "port": exchange.port})
    with Engine(config) as engine:
        room = Room("ingest", config, HTTP_PROXY=f"http://127.0.0.1:{proxy.port}", NO_PROXY="elsewhere.test")
        try:
            engine.connected()
            engine.ask(Subscribe([], complete=True))
            assert engine.wait(AddSymbol).symbol == "BTCUSDT"
            engine.ask(Subscribe(["btcusdt@aggTrade"]))
            wait_for("the subscription", lambda: "btcusdt@aggTrade" in exchange.names())
        finally:
            assert room.stop() == 0, room.log
    assert f"CONNECT {NAME}:{exchange.port} HTTP/1.1" in proxy.asked
    assert f"GET http://{NAME}:{exchange.port}/fapi/v1/time HTTP/1.1" in proxy.asked


def test_an_exchange_on_this_machine_is_asked_directly(exchange: Exchange, tmp_path: Path, proxy: Proxy) -> None:
    config = write_config(tmp_path, simulator={"port": exchange.port})
    named = f"http://127.0.0.1:{proxy.port}"
    with Engine(config) as engine:
        room = Room("ingest", config, HTTP_PROXY=named, HTTPS_PROXY=named, ALL_PROXY=named)
        try:
            engine.connected()
        finally:
            assert room.stop() == 0, room.log
    assert proxy.asked == []


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exchange]:
    """Give an exchange that proves its name."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Exchange(tls=context) as exchange:
        yield exchange


def test_a_secure_websocket_goes_through_a_proxy_that_wants_a_password(secure: Exchange) -> None:
    with Proxy("me:se cret") as proxy:
        url = f"wss://{NAME}:{secure.port}/market/stream"
        client = Client(url, proxy_url=f"http://me:se%20cret@127.0.0.1:{proxy.port}")
        client.connection.subscribe(["btcusdt@aggTrade"])
        frame = agg_frame("BTCUSDT", Fill(1, START))

        async def story(client: Client) -> None:
            await client.until(secure.names)
            await asyncio.to_thread(secure.say, frame)
            await client.until(lambda: frame.encode() in client.frames)

        client.play(story)
        assert proxy.asked == [f"CONNECT {NAME}:{secure.port} HTTP/1.1"]
        stranger = Client(url, proxy_url=f"http://127.0.0.1:{proxy.port}")

        async def refused(client: Client) -> None:
            await client.until(lambda: client.connection.counts["lost"] >= 2)

        stranger.play(refused)
        assert proxy.refused >= 2
        assert stranger.changes == []


def test_rest_goes_through_a_proxy_and_its_refusal_is_an_error(proxy: Proxy, secure: Exchange) -> None:
    venue = venue_of(Config(simulator=SimulatorConfig(host=NAME, port=secure.port)))

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            rest = Rest(
                session, venue, WeightBudget(2400, 1.0), lambda: START, lambda _: None, f"http://127.0.0.1:{proxy.port}"
            )
            proxy.refuses = True
            with pytest.raises(RestError):
                await rest.get(venue.time(), Priority.METADATA, attempts_max=1)

    uvloop.run(run())
    assert proxy.asked == [f"GET http://{NAME}:{secure.port}/fapi/v1/time HTTP/1.1"]
    assert secure.asked == []
