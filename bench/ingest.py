"""Ingest alone: from frames on a socket to pushed batches, under flood and in small reads.

A process of its own writes prepared websocket frames of aggregate trades, all at once or a few at a time. Measured is
the CPU time of this process a trade: reading, parsing, exact numbers, memory of recent trades, encoding, ZeroMQ. What
each step takes of it is measured without a socket, on the same frames.
"""

import asyncio
import base64
import hashlib
import os
import socket
import ssl
import subprocess
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop
import zmq

from harness.figures import spread
from services.ingest import decimals, decode, recent
from services.ingest.decimals import Decimals
from services.ingest.decode import FrameDecoder
from services.ingest.outbox import Outbox
from services.ingest.recent import Recent
from services.ingest.websocket import Frames, Websocket, frames_of
from services.simulator.frames import text_header
from shared.wire import Trades

TRADES = 400_000
READS = 4_000
"""Of a few trades each: a pause lies between them."""
PAUSE_S = 0.0002
RUNS = 5
SYMBOLS = 500
NAMES = [f"S{symbol}USDT" for symbol in range(SYMBOLS)]
_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def run(tls: bool = False, size: int = 0) -> dict[str, Any]:
    """Return CPU ns a trade, and trades/s: medians of the runs and their extremes.

    `size`: how many trades are written at once, with a pause after them; 0 for all.
    """
    _warm_up()
    trades = min(TRADES, READS * size) if size else TRADES
    framed = [text_header(len(text)) + text for text in _texts(trades)]
    chunks = [b"".join(framed[at : at + (size or trades)]) for at in range(0, trades, size or trades)]
    with tempfile.TemporaryDirectory(prefix="klagg-bench-") as folder:
        certificate = _certificate(Path(folder)) if tls else None
        if certificate is not None:
            os.environ["SSL_CERT_FILE"] = str(certificate)
        bare = [uvloop.run(_once(certificate, chunks, trades, True))[0] for _ in range(RUNS + 1)][1:]
        results = [uvloop.run(_once(certificate, chunks, trades, False)) for _ in range(RUNS + 1)][1:]
    costs, rates, sizes = zip(*results, strict=True)
    return {
        "cpu ns a trade": spread(costs),
        "socket and parser alone": spread(bare),
        "trades/s": spread(rates),
        "trades a batch": round(median(sizes), 1),
    }


def steps(size: int) -> dict[str, dict[str, float]]:
    """Return CPU ns that each step takes for a read of `size` trades, without a socket."""
    _warm_up()
    path = _Path()
    texts = _texts(max(10_000, size))
    reads = [frames_of(texts[at : at + size]) for at in range(0, len(texts), size)]
    costs: dict[str, list[float]] = {"read": [], "remember": [], "encode and push": []}
    for run in range(RUNS + 1):
        clock = time.process_time_ns
        began = clock()
        batches = [path.decoder.decode(read).trades for read in reads]
        read_at = clock()
        for batch in batches:
            assert batch is not None
            path.memory.add(batch)
        remembered_at = clock()
        for batch in batches:
            assert batch is not None
            path.push(batch)
        spent = (read_at - began, remembered_at - read_at, clock() - remembered_at)
        for column, cost in zip(costs.values(), spent, strict=True):
            if run:
                column.append(cost / len(reads))
    path.context.destroy(linger=0)
    return {step: spread(column) for step, column in costs.items()}


def _warm_up() -> None:
    decimals.warm_up()
    decode.warm_up("aggTrade")
    recent.warm_up()


class _Path:
    """What a read goes through, with somebody at its end who takes it."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sink, push = self.context.socket(zmq.PULL), self.context.socket(zmq.PUSH)
        self._sink.bind("inproc://sink")
        push.connect("inproc://sink")
        self.decoder = FrameDecoder("aggTrade", Decimals(dict.fromkeys(NAMES, (2, 3))), lambda *_: None)
        self.decoder.expect(NAMES)
        self.memory, self._outbox = Recent(), Outbox(push)
        self.memory.streams_began(NAMES)

    def push(self, batch: Trades) -> None:
        self._outbox.send(batch)
        self._sink.recv(zmq.NOBLOCK)


async def _once(certificate: Path | None, chunks: list[bytes], trades: int, bare: bool) -> tuple[float, float, float]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    process = get_context("fork").Process(target=_flood, args=(listener, certificate, chunks), daemon=True)
    process.start()
    listener.close()
    path = _Path()
    seen = reads = 0
    done = asyncio.Event()

    def received(messages: Frames) -> None:
        nonlocal seen, reads
        reads += 1
        seen += len(messages.spans)
        if not bare:
            batch = path.decoder.decode(messages).trades
            assert batch is not None
            path.memory.add(batch)
            path.push(batch)
        if seen >= trades:
            done.set()

    scheme, host = ("wss", "localhost") if certificate else ("ws", "127.0.0.1")
    websocket = Websocket(f"{scheme}://{host}:{port}/", True, received)
    await websocket.open()
    cpu, began = time.process_time_ns(), time.monotonic_ns()
    await asyncio.wait_for(done.wait(), 120)
    spent, elapsed = time.process_time_ns() - cpu, time.monotonic_ns() - began
    websocket.close()
    process.join(10)
    path.context.destroy(linger=0)
    return spent / seen, seen / elapsed * 1e9, seen / reads


def _texts(trades: int) -> list[bytes]:
    """Return frames of aggregate trades, as the exchange writes them."""
    dice = np.random.default_rng(1)
    weights = 1.0 / np.arange(1, SYMBOLS + 1)
    symbols = dice.choice(SYMBOLS, trades, p=weights / weights.sum()).tolist()
    return [
        (
            b'{"stream":"s%dusdt@aggTrade","data":{"e":"aggTrade","E":1790000000123,"a":%d,"s":"S%dUSDT","p":"%d.%02d",'
            b'"q":"%d.%03d","nq":"1.000","f":%d,"l":%d,"T":1790000000100,"m":true,"st":1}}'
        )
        % (symbol, index, symbol, 50_000 + index % 97, index % 100, index % 9, index % 1_000, index, index + 1)
        for index, symbol in enumerate(symbols)
    ]


def _flood(listener: socket.socket, certificate: Path | None, chunks: list[bytes]) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate)
        connection = context.wrap_socket(connection, server_side=True)
    request = connection.recv(65_536)
    (key,) = [
        line.split(b":")[1].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    ]
    accept = base64.b64encode(hashlib.sha1(key + _KEY).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )
    for chunk in chunks:
        connection.sendall(chunk)
        time.sleep(PAUSE_S)
    connection.recv(1)


def _certificate(folder: Path) -> Path:
    path = folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key.pem"), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (folder / "key.pem").read_bytes())
    return path
