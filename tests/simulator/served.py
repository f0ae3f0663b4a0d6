"""The simulator as the process that it is, and its clients: HTTP by urllib, websockets by the `websockets` library."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from websockets.sync.client import ClientConnection, connect

from harness.processes import Room, free_port, wait_for, write_config
from services.simulator.frames import Chunk
from services.simulator.market.generated import GeneratedMarket

NOON = 1_790_164_800_000
"""2026-09-23 12:00:00 UTC, a Wednesday."""
LATE_IN_A_MINUTE = NOON + 50_000


def made(**changes: Any) -> GeneratedMarket:
    """Return a small market without a process around it."""
    settings: dict[str, Any] = {
        "seed": 1,
        "symbols": 20,
        "trades_per_second": 300.0,
        "history_days": 3,
        "listing_interval_s": 0.0,
        "quirks": True,
        "start": LATE_IN_A_MINUTE,
    }
    return GeneratedMarket(**(settings | changes))


def left(market: GeneratedMarket, now: int, wanted: set[str]) -> Iterator[Chunk]:
    """Let a market go on and yield what left it on the streams that are wanted, each for itself."""
    for chunk in market.advance(now, wanted):
        yield from (single for single in chunk.apart() if single.stream in wanted)


class Served:
    """A running simulator."""

    def __init__(self, port: int, room: Room) -> None:
        self.port = port
        self.room = room

    def ask(self, path: str, headers: dict[str, str] | None = None, **parameters: Any) -> tuple[int, Any, Any]:
        """GET a path; return (status, content, headers)."""
        address = f"http://127.0.0.1:{self.port}{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=headers or {}), timeout=20) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null"), error.headers

    def get(self, path: str, **parameters: Any) -> Any:
        status, content, _ = self.ask(path, **parameters)
        assert status == 200, content
        return content

    def post(self, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method="POST")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def socket(self, path: str) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}{quote(path, safe='/?=@!&')}", open_timeout=10, max_size=None)

    def status(self) -> Any:
        return self.get("/simulator/status")


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Served]:
    port = free_port()
    values = {"port": port, "symbols": 20, "trades_per_second": 300.0, "history_days": 3, "listing_interval_s": 0.0}
    room = Room("simulator", write_config(folder, simulator=values | settings))
    try:
        simulator = Served(port, room)

        def answers() -> bool:
            assert room.process.poll() is None, room.log
            try:
                return bool(simulator.get("/fapi/v1/time"))
            except (urllib.error.URLError, ConnectionError):
                return False

        wait_for("the simulator", answers)
        yield simulator
    finally:
        assert room.stop() == 0, room.log


def subscribe(socket: ClientConnection, *streams: str, request_id: int = 1) -> list[Any]:
    """Subscribe and wait for the reply; return the data that came before it."""
    socket.send(json.dumps({"method": "SUBSCRIBE", "params": list(streams), "id": request_id}))
    before: list[Any] = []
    while True:
        message = json.loads(socket.recv(10))
        if message.get("id") == request_id:
            assert message == {"result": None, "id": request_id}
            return before
        before.append(message)


def collect(socket: ClientConnection, seconds: float, enough: int = 10**9) -> list[Any]:
    """Return the messages that arrive within some time, or until there are enough."""
    messages: list[Any] = []
    deadline = time.monotonic() + seconds
    while len(messages) < enough and (left := deadline - time.monotonic()) > 0:
        try:
            messages.append(json.loads(socket.recv(left)))
        except TimeoutError:
            break
    return messages
