"""One websocket connection, against a played exchange."""

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop

from services.ingest.binance.messages import STREAMS_MAX
from services.ingest.connection import Connection, backoff_max_s, failures_after
from services.ingest.decimals import Decimals
from services.ingest.decode import FrameDecoder
from services.ingest.websocket import Frames, Websocket
from tests.ingest.played import START, Exchange, Fill, agg_frame


class Client:
    """A connection and what it brought."""

    def __init__(
        self, url: str, silence_ms: int = 15_000, steady: bool = True, age_max_ms: int = 86_400_000, proxy_url: str = ""
    ) -> None:
        self.reads: list[list[bytes]] = []
        self.changes: list[bool] = []
        self.begun: list[str] = []
        self._decoder = FrameDecoder("aggTrade", Decimals({"BTCUSDT": (2, 3)}), lambda *_: None)
        self.connection = Connection(
            "market",
            url,
            silence_ms,
            age_max_ms,
            steady,
            self._received,
            lambda: self.changes.append(self.connection.connected),
            proxy_url,
        )

    def _received(self, connection: Connection, frames: Frames) -> None:
        assert connection is self.connection
        self.reads.append(frames.messages())
        for reply in self._decoder.decode(frames).replies:
            self.begun += connection.take_reply(reply)

    @property
    def frames(self) -> list[bytes]:
        return [frame for read in self.reads for frame in read]

    async def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.01)

    def play(self, story: Callable[["Client"], Awaitable[None]]) -> None:
        """Run the connection while the story goes."""

        async def run() -> None:
            task = asyncio.create_task(self.connection.run())
            try:
                await story(self)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        uvloop.run(run())


def url(exchange: Exchange, scheme: str = "ws") -> str:
    return f"{scheme}://localhost:{exchange.port}/market/stream"


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str, Websocket]]:
    """Return what will have been done to websockets, and when: the other side sees it later, and closer together."""
    acts: list[tuple[float, str, Websocket]] = []

    def noted(name: str, act: Callable[..., None]) -> Callable[..., None]:
        def noted_act(websocket: Websocket, *given: object) -> None:
            acts.append((time.monotonic(), name, websocket))
            act(websocket, *given)

        return noted_act

    for name in ("send", "close"):
        monkeypatch.setattr(Websocket, name, noted(name, getattr(Websocket, name)))
    return acts


def test_names_go_in_batches_that_are_small_and_apart(acts: list[tuple[float, str, Websocket]]) -> None:
    names = [f"s{index}usdt@aggTrade" for index in range(450)]
    with Exchange() as exchange:
        client = Client(url(exchange))
        client.connection.subscribe(names)

        async def story(client: Client) -> None:
            await client.until(lambda: len(exchange.names()) == 450)
            client.connection.unsubscribe(names[:3])
            await client.until(lambda: exchange.names("UNSUBSCRIBE") == names[:3])
            client.connection.subscribe(names[:1])
            await client.until(lambda: exchange.names()[450:] == names[:1])

        client.play(story)
        assert exchange.names()[:450] == names
        assert [len(sent.names) for sent in exchange.sent] == [200, 200, 50, 3, 1]
        sent = [at for at, name, _ in acts if name == "send"]
        assert len(sent) == 5
        assert all(later - earlier > 0.24 for earlier, later in pairwise(sent))


def test_a_name_that_was_dropped_before_it_was_sent_is_never_sent() -> None:
    with Exchange() as exchange:
        client = Client(url(exchange))
        client.connection.subscribe(["a@aggTrade", "b@aggTrade"])
        client.connection.unsubscribe(["a@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(exchange.names)

        client.play(story)
        assert exchange.names() == ["b@aggTrade"]
        assert exchange.names("UNSUBSCRIBE") == []


def test_the_stream_that_would_cost_the_connection_is_not_asked_for() -> None:
    async def story() -> None:
        connection = Connection("market", "ws://x/", 1000, 1000, True, lambda *_: None, lambda: None)
        connection.subscribe(f"{index}@aggTrade" for index in range(STREAMS_MAX + 5))
        assert connection.streams == STREAMS_MAX
        assert connection.counts["streams beyond the limit"] == 5

    asyncio.run(story())


def test_a_broken_connection_comes_back_with_all_its_streams() -> None:
    with Exchange() as exchange:
        client = Client(url(exchange))
        client.connection.subscribe(["a@aggTrade", "b@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(lambda: len(exchange.names()) == 2)
            await asyncio.to_thread(exchange.drop)
            await client.until(lambda: exchange.names(connection=2) == ["a@aggTrade", "b@aggTrade"])

        client.play(story)
        assert client.changes == [True, False, True, False]


def test_silence_of_a_steady_route_is_death_whatever_it_pongs() -> None:
    with Exchange() as exchange:
        client = Client(url(exchange), silence_ms=600)

        async def story(client: Client) -> None:
            await client.until(lambda: client.changes == [True, False, True])

        client.play(story)


def test_a_route_that_may_be_quiet_is_asked_before_it_is_given_up() -> None:
    with Exchange() as exchange:
        client = Client(url(exchange), silence_ms=600, steady=False)

        async def story(client: Client) -> None:
            await client.until(lambda: client.changes == [True])
            await asyncio.sleep(1.3)
            assert client.changes == [True]

        client.play(story)


def test_a_connection_that_replies_to_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ingest.connection.REPLY_TIMEOUT_S", 0.3)

    async def story() -> None:
        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            from websockets.server import ServerProtocol

            protocol = ServerProtocol()
            while data := await reader.read(4096):
                protocol.receive_data(data)
                for event in protocol.events_received():
                    if protocol.state.name == "CONNECTING":
                        protocol.send_response(protocol.accept(event))  # type: ignore[arg-type]
                for out in protocol.data_to_send():
                    writer.write(out)

        server = await asyncio.start_server(mute, "127.0.0.1", 0)
        client = Client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/market/stream")
        client.connection.subscribe(["a@aggTrade"])
        task = asyncio.create_task(client.connection.run())
        await client.until(lambda: client.changes[:3] == [True, False, True])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()

    asyncio.run(story())


def test_an_old_websocket_goes_when_its_successor_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ingest.connection.OVERLAP_S", 0.5)
    with Exchange() as exchange:
        exchange.reply_after_s = 0.2
        client = Client(url(exchange), age_max_ms=1_000)
        client.connection.subscribe(["a@aggTrade", "b@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(lambda: client.connection.counts["renewed"] == 1)
            assert exchange.names(connection=2) == ["a@aggTrade", "b@aggTrade"]
            # Both deliver for a while, then only the new one does.
            assert exchange.open == 2
            await client.until(lambda: exchange.open == 1)
            await client.until(lambda: client.connection.counts["renewed"] == 2)

        client.play(story)
        assert client.changes == [True, False]
        assert client.connection.counts["lost"] == 0


def test_both_are_read_for_two_seconds(acts: list[tuple[float, str, Websocket]]) -> None:
    with Exchange() as exchange:
        client = Client(url(exchange))
        client.connection.subscribe(["a@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(lambda: client.connection.delivered == {"a@aggTrade"})
            client.connection.renew("the test wants it")
            await client.until(lambda: exchange.open == 2)
            await client.until(lambda: exchange.open == 1)

        client.play(story)
    old, new = dict.fromkeys(websocket for _, name, websocket in acts if name == "send")
    subscribed = next(at for at, name, websocket in acts if name == "send" and websocket is new)
    closed = next(at for at, name, websocket in acts if name == "close" and websocket is old)
    assert closed - subscribed > 1.9


def test_who_fails_again_and_again_waits_ever_longer_until_one_has_lived_for_ten_seconds() -> None:
    failures, waits = 0, []
    for _ in range(12):
        failures = failures_after(failures, 2.0)
        waits.append(backoff_max_s(failures))
    assert waits[:5] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert set(waits[5:]) == {10.0}
    assert failures_after(failures, 9.9) == failures + 1
    assert failures_after(failures, 10.1) == 0
    # The exchange allows 300 connections in five minutes.
    assert 300 / (sum(waits) / len(waits) / 2) < 100


def test_a_websocket_without_a_successor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ingest.connection.OVERLAP_S", 0.1)
    monkeypatch.setattr("services.ingest.connection.REPLY_TIMEOUT_S", 0.5)
    with Exchange() as exchange:
        client = Client(url(exchange))
        client.connection.subscribe(["a@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(lambda: client.connection.delivered == {"a@aggTrade"})
            exchange.reply_after_s = 3.0
            client.connection.renew("the test wants it")
            client.connection.renew("the test wants it")
            await client.until(lambda: client.connection.counts["successors lost"] == 2)
            assert client.connection.connected
            exchange.reply_after_s = 0.0
            await client.until(lambda: client.connection.counts["renewed"] == 1)

        client.play(story)
        assert client.changes == [True, False]


def test_a_stream_begins_once_whichever_websocket_delivers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ingest.connection.OVERLAP_S", 0.1)
    with Exchange() as exchange:
        client = Client(url(exchange))
        client.connection.subscribe(["a@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(lambda: client.begun == ["a@aggTrade"])
            client.connection.renew("the test wants it")
            await client.until(lambda: client.connection.counts["renewed"] == 1)
            assert client.begun == ["a@aggTrade"]
            await asyncio.to_thread(exchange.drop)
            await client.until(lambda: client.begun == ["a@aggTrade", "a@aggTrade"])

        client.play(story)


def flooded() -> list[list[bytes]]:
    """Return what a client reads of 300 frames that the exchange says at once, none of which is lost."""
    frames = [agg_frame("BTCUSDT", Fill(trade_id, START)) for trade_id in range(300)]
    with Exchange() as exchange:
        client = Client(url(exchange))

        async def story(client: Client) -> None:
            await client.until(lambda: client.changes)
            # The loop does not read while it is held up here, so the frames wait for it in one piece.
            exchange.say(*frames)
            await client.until(lambda: len(client.frames) == 300)

        client.play(story)
    assert client.frames == [frame.encode() for frame in frames]
    return client.reads


def test_frames_that_arrive_together_are_handed_over_together() -> None:
    assert len(flooded()) < 20


def test_a_flood_is_handed_over_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ingest.websocket.MESSAGES_MAX", 70)
    reads = flooded()
    assert max(map(len, reads)) == 70
    assert all(reads)


def test_a_server_that_refuses_the_handshake_is_tried_again_ever_less_often() -> None:
    with Exchange() as exchange:
        client = Client(f"ws://127.0.0.1:{exchange.port}/nowhere")

        async def story(client: Client) -> None:
            await client.until(lambda: client.connection.counts["lost"] >= 3)

        client.play(story)
        assert client.changes == []


def test_tls_is_checked_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Exchange(tls=context) as exchange:
        stranger = Client(url(exchange, "wss"))

        async def refused(client: Client) -> None:
            await client.until(lambda: client.connection.counts["lost"] >= 1)

        stranger.play(refused)
        assert stranger.changes == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = Client(url(exchange, "wss"))
        trusted.connection.subscribe(["a@aggTrade"])

        async def story(client: Client) -> None:
            await client.until(exchange.names)
            await asyncio.to_thread(exchange.say, "hello")
            await client.until(lambda: b"hello" in client.frames)

        trusted.play(story)
