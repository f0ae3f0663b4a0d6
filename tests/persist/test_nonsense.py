"""Requests that can be decoded and make no sense: persist stays, and what they do not name is saved as ever."""

from pathlib import Path
from typing import Any

import msgspec
import zmq
from msgspec.structs import replace

from harness.processes import wait_for
from shared.wire import (
    DirtyBatch,
    Finished,
    Load,
    Restored,
    StorePoint,
    StoreState,
    WireError,
    decode_store_request,
    encode,
)
from tests.nonsense import Nonsense
from tests.persist.test_persist import SESSION, WANTED, system
from tests.persist.test_store import NOW, batch, mark, rows

MESSAGES = 400
OURS = StorePoint("", SESSION, 0)
"""What every store is that has a batch of this session."""


def test_nonsense_ends_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    nonsense = Nonsense(3, lambda: NOW, ["BTCUSDT"], [SESSION])
    with system(tmp_path) as at:
        at.start("postgres")
        persist = at.start("persist")
        wait_for("its first word", lambda: at.engine.of(StoreState))
        at.engine.say(Load(SESSION, WANTED))
        wait_for("the answer", lambda: at.engine.of(Restored))
        at.engine.say(replace(batch(rows(1), [mark("ETHUSDT")]), session=SESSION))
        for number in range(2, MESSAGES):
            kinds: list[type[msgspec.Struct]] = [Load, DirtyBatch, DirtyBatch, DirtyBatch, Finished]
            kind = nonsense.random.choice(kinds)
            message = nonsense.message(kind)
            if nonsense.random.random() < 0.95:
                message = believable(message, number)
            assert at.engine.store.poll(10_000, zmq.POLLOUT)
            at.engine.store.send(message)
        # Whatever session one of them has made its own, an engine that comes says which one is.
        at.engine.say(Load(SESSION, WANTED))
        at.engine.say(replace(batch(rows(3), [mark("ETHUSDT")], MESSAGES), session=SESSION, after=OURS))
        wait_for("the save", lambda: MESSAGES in at.engine.acknowledged(), timeout=60)
        assert persist.process.poll() is None
        assert "Traceback" not in persist.log, persist.log[-3_000:]
        assert len(persist.log) < 20_000
        assert len(at.engine.acknowledged()) > 20
        assert at.query("select count(*) from klines where symbol = 'ETHUSDT'") == [(3,)]
        # What is in the tables now, the engine can read.
        at.engine.say(Load(SESSION + 1, WANTED))
        wait_for("all of it", lambda: [part for part in at.engine.of(Restored) if part.session > SESSION and part.last])


def believable(message: bytes, number: int) -> bytes:
    """Return a request as one that this store waits for."""
    try:
        request: Any = decode_store_request(message)
    except WireError:
        return message
    if isinstance(request, DirtyBatch):
        return encode(replace(request, session=SESSION, batch=number, after=OURS))
    if isinstance(request, Load):
        return encode(replace(request, session=SESSION))
    return message
