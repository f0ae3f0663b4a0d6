"""Ingest alone: from frames on a socket to pushed batches, under flood.

A process of its own writes prepared websocket frames of aggregate trades as fast as they are taken. Measured is the
CPU time of this process a trade: reading, parsing, exact numbers, memory of recent trades, encoding, ZeroMQ.
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

from services.ingest import exact, recent
from services.ingest.frames import FrameReader
from services.ingest.outbox import Outbox
from services.ingest.recent import Recent
from services.ingest.symbols import Decimals
from services.ingest.websocket import Websocket
from services.simulator.frames import text_header
from shared.kline import TRADE

TRADES = 400_000
RUNS = 5
SYMBOLS = 500
_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def run(tls: bool = False) -> dict[str, Any]:
    """Return CPU ns a trade, and trades/s: medians of the runs and their extremes."""
    exact.warm_up()
    recent.warm_up()
    with tempfile.TemporaryDirectory(prefix="klagg-bench-") as folder:
        certificate = _certificate(Path(folder)) if tls else None
        if certificate is not None:
            os.environ["SSL_CERT_FILE"] = str(certificate)
        results = [uvloop.run(_once(certificate)) for _ in range(RUNS + 1)][1:]
    costs, rates, sizes = (sorted(column) for column in zip(*results, strict=True))
    return {
        "cpu ns a trade": {"median": round(median(costs)), "least": round(costs[0]), "most": round(costs[-1])},
        "trades/s": {"median": round(median(rates)), "least": round(rates[0]), "most": round(rates[-1])},
        "trades a batch": round(median(sizes)),
    }


async def _once(certificate: Path | None) -> tuple[float, float, float]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    process = get_context("fork").Process(target=_flood, args=(listener, certificate), daemon=True)
    process.start()
    listener.close()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sink, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    sink.bind("inproc://sink")
    push.connect("inproc://sink")
    names = [f"S{symbol}USDT" for symbol in range(SYMBOLS)]
    reader, memory, outbox = FrameReader("aggTrade", Decimals(dict.fromkeys(names, (2, 3))), lambda *_: None), Recent(), Outbox(push)
    memory.begins(names)
    seen = batches = 0
    done = asyncio.Event()

    def received(messages: list[bytes]) -> None:
        nonlocal seen, batches
        read = reader.read(messages)
        if read.trades is not None:
            seen += len(read.trades.rows) // TRADE.itemsize
            batches += 1
            memory.add(read.trades)
            outbox.send(read.trades)
            sink.recv(zmq.NOBLOCK)
        if seen >= TRADES:
            done.set()

    scheme, host = ("wss", "localhost") if certificate else ("ws", "127.0.0.1")
    websocket = Websocket(f"{scheme}://{host}:{port}/", True, received)
    await websocket.open()
    cpu, began = time.process_time_ns(), time.monotonic_ns()
    await asyncio.wait_for(done.wait(), 120)
    spent, elapsed = time.process_time_ns() - cpu, time.monotonic_ns() - began
    websocket.close()
    process.join(10)
    context.destroy(linger=0)
    return spent / seen, seen / elapsed * 1e9, seen / batches


def _flood(listener: socket.socket, certificate: Path | None) -> None:
    connection, _ = listener.accept()
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
    dice = np.random.default_rng(1)
    weights = 1.0 / np.arange(1, SYMBOLS + 1)
    symbols = dice.choice(SYMBOLS, TRADES, p=weights / weights.sum()).tolist()
    frames = []
    for number, symbol in enumerate(symbols):
        text = (
            b'{"stream":"s%dusdt@aggTrade","data":{"e":"aggTrade","E":1790000000123,"a":%d,"s":"S%dUSDT","p":"%d.%02d",'
            b'"q":"%d.%03d","nq":"1.000","f":%d,"l":%d,"T":1790000000100,"m":true,"st":1}}'
        ) % (symbol, number, symbol, 50_000 + number % 97, number % 100, number % 9, number % 1_000, number, number + 1)
        frames.append(text_header(len(text)) + text)
    connection.sendall(b"".join(frames))
    connection.recv(1)


def _certificate(folder: Path) -> Path:
    path = folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key.pem"), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (folder / "key.pem").read_bytes())
    return path
