"""Attaching to the snapshots: by the Python client, and by the examples as they are, copied elsewhere."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.processes import ROOT, free_port, wait_for
from shared.client import AsyncSnapshots, SequenceTracker, Snapshots, connectable, matches
from shared.snapshot import HEALTH_TOPIC, TICKERS_TOPIC, Snapshot, Tickers
from tests.viz.played import PlayedEngine, made_up


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def test_subscribing_brings_the_unsaved_rows_and_then_every_change(endpoint: str) -> None:
    rows = made_up("BTCUSDT", "1m", 3)
    with (
        PlayedEngine(endpoint, sends_health=False, unsaved={"kline.BTCUSDT.1m": rows}) as engine,
        Snapshots(endpoint, ["kline.BTCUSDT.1m"]) as snapshots,
    ):
        received = [snapshots.receive(10_000) for _ in rows]
        messages = [message for _, message in filter(None, received) if isinstance(message, Snapshot)]
        assert [message.open_time for message in messages] == [row.open_time for row in rows]
        engine.publish(rows[-1])
        topic, message = snapshots.receive(10_000) or ("", None)
        assert topic == "kline.BTCUSDT.1m"
        assert isinstance(message, Snapshot)
        assert message.close == rows[-1].close
        assert snapshots.lost.total() == 0


def test_every_kind_of_message_arrives_decoded(endpoint: str) -> None:
    topics = ["kline.BTCUSDT.", TICKERS_TOPIC, HEALTH_TOPIC]
    unsaved = {"kline.BTCUSDT.3m": made_up("BTCUSDT", "3m", 1)}
    with PlayedEngine(endpoint, unsaved=unsaved) as engine, Snapshots(endpoint, topics) as snapshots:
        engine.figures = {"BTCUSDT": ("2.00", "1.00")}
        kinds: dict[str, type] = {}
        for topic, message in snapshots:
            kinds[topic] = type(message)
            if len(kinds) == 3:
                break
        assert kinds == {"kline.BTCUSDT.3m": Snapshot, TICKERS_TOPIC: Tickers, HEALTH_TOPIC: dict}


def test_a_lost_message_is_counted_for_its_topic(endpoint: str) -> None:
    row = made_up("BTCUSDT", "1m", 1)[0]
    with PlayedEngine(endpoint, sends_health=False) as engine, Snapshots(endpoint, "kline.BTCUSDT.1m") as snapshots:
        wait_for("the subscription", lambda: "kline.BTCUSDT.1m" in engine.held)
        engine.publish(row)
        assert snapshots.receive(10_000)
        engine.publish(row, lose=3)
        assert snapshots.receive(10_000)
        assert snapshots.missing == 3
        assert snapshots.lost == {"kline.BTCUSDT.1m": 3}


def test_a_topic_is_exact_although_zeromq_matches_prefixes(endpoint: str) -> None:
    with PlayedEngine(endpoint, sends_health=False) as engine, Snapshots(endpoint, "kline.BTCUSDT.1") as snapshots:
        wait_for("the subscription", lambda: "kline.BTCUSDT.1" in engine.held)
        for interval in ("1m", "1h", "1d", "1w", "1M"):
            engine.publish(made_up("BTCUSDT", interval, 1)[0])
        assert snapshots.receive(300) is None
        snapshots.subscribe("kline.BTCUSDT.1m")
        wait_for("the second subscription", lambda: "kline.BTCUSDT.1m" in engine.held)
        engine.publish(made_up("BTCUSDT", "1h", 1)[0])
        engine.publish(made_up("BTCUSDT", "1m", 1)[0])
        topic, _ = snapshots.receive(10_000) or ("", None)
        assert topic == "kline.BTCUSDT.1m"


def test_a_restarted_engine_is_found_again_and_loses_nothing_by_count(endpoint: str) -> None:
    row = made_up("BTCUSDT", "1m", 1)[0]
    with Snapshots(endpoint, "kline.BTCUSDT.1m") as snapshots:
        for session in (1, 2):
            with PlayedEngine(endpoint, session, sends_health=False, unsaved={"kline.BTCUSDT.1m": [row]}):
                assert snapshots.receive(10_000)
                assert snapshots.session == session
        assert snapshots.lost.total() == 0


def test_what_passed_while_a_topic_was_given_up_is_not_lost(endpoint: str) -> None:
    row = made_up("BTCUSDT", "1m", 1)[0]
    with PlayedEngine(endpoint, sends_health=False) as engine, Snapshots(endpoint, "kline.BTCUSDT.1m") as snapshots:
        wait_for("the subscription", lambda: engine.held)
        engine.publish(row)
        assert snapshots.receive(10_000)
        snapshots.unsubscribe("kline.BTCUSDT.1m")
        wait_for("the end of the subscription", lambda: not engine.held)
        engine.publish(row, lose=5)
        snapshots.subscribe("kline.BTCUSDT.1m")
        wait_for("the subscription", lambda: engine.held)
        engine.publish(row)
        assert snapshots.receive(10_000)
        assert snapshots.lost.total() == 0


def test_garbage_is_refused_and_counted(endpoint: str) -> None:
    with PlayedEngine(endpoint, sends_health=False) as engine, Snapshots(endpoint, "") as snapshots:
        wait_for("the subscription", lambda: "" in engine.held)
        for topic in ("kline.BTCUSDT.1m", TICKERS_TOPIC, HEALTH_TOPIC, "weather"):
            engine.publish_raw(topic, b"\xc1 is never msgpack")
        engine.publish(made_up("BTCUSDT", "1m", 1)[0])
        assert snapshots.receive(10_000)
        assert snapshots.refused == 4
        assert "weather" in snapshots.refused_last


def test_the_async_client_yields_the_same(endpoint: str) -> None:
    rows = made_up("BTCUSDT", "1m", 5)

    async def first(count: int) -> list[int]:
        opened: list[int] = []
        async with AsyncSnapshots(endpoint, ["kline.BTCUSDT.1m"]) as snapshots:
            async for _, message in snapshots:
                assert isinstance(message, Snapshot)
                opened.append(message.open_time)
                if len(opened) == count:
                    break
        return opened

    with PlayedEngine(endpoint, sends_health=False) as engine:
        engine.unsaved["kline.BTCUSDT.1m"] = rows
        assert asyncio.run(asyncio.wait_for(first(5), 20)) == [row.open_time for row in rows]


@given(st.lists(st.booleans(), max_size=50))
def test_the_losses_counted_are_the_messages_that_did_not_arrive(arrives: list[bool]) -> None:
    sequences = SequenceTracker()
    seen = [sequence for sequence, arrived in enumerate(arrives) if arrived]
    for sequence in seen:
        sequences.observe("kline.A.1m", 7, sequence)
    between = seen[-1] - seen[0] + 1 - len(seen) if seen else 0
    assert sequences.lost.total() == between


def test_subscriptions_are_exact_or_end_in_a_point() -> None:
    assert matches("kline.A.1m", "kline.A.1m")
    assert not matches("kline.A.1", "kline.A.1m")
    assert matches("kline.A.", "kline.A.1m")
    assert not matches("kline.A.", "kline.AB.1m")
    assert matches("", "anything")


def test_an_engine_that_listens_everywhere_is_found_on_this_machine() -> None:
    assert connectable("tcp://*:5556") == connectable("tcp://0.0.0.0:5556") == "tcp://127.0.0.1:5556"
    assert connectable("tcp://10.0.0.5:5556") == "tcp://10.0.0.5:5556"


class Example:
    """An example running as a process, and the lines it has printed."""

    def __init__(self, *command: str, cwd: Path) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def line(self, holds: Callable[[str], bool]) -> str:
        return wait_for(f"a line among {self.lines}", lambda: next((line for line in self.lines if holds(line)), None))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._reader.join(10)


def check_example(example: Example, engine: PlayedEngine) -> None:
    topic = "kline.BTCUSDT.1h"
    rows = engine.unsaved[topic]
    try:
        first = example.line(lambda line: f"C {rows[0].close}" in line)
        assert "final" in first
        assert "from trades" in first
        assert " open " in example.line(lambda line: f"C {rows[1].close}" in line)
        engine.publish(rows[1], lose=2)
        assert example.line(lambda line: "2 messages lost" in line)
    finally:
        example.stop()


def test_the_python_example_attaches_with_nothing_of_klagg(endpoint: str, tmp_path: Path) -> None:
    source = (ROOT / "examples" / "subscribe.py").read_text(encoding="utf-8")
    assert not any(
        line.startswith(("import", "from")) and ("shared" in line or "services" in line) for line in source.splitlines()
    )
    shutil.copy(ROOT / "examples" / "subscribe.py", tmp_path)
    with PlayedEngine(endpoint, sends_health=False) as engine:
        engine.unsaved["kline.BTCUSDT.1h"] = made_up("BTCUSDT", "1h", 2)
        check_example(Example(sys.executable, "subscribe.py", endpoint, "BTCUSDT", "1h", cwd=tmp_path), engine)


def test_the_python_example_ends_without_a_word_when_nobody_reads_it_any_more(endpoint: str) -> None:
    command = [sys.executable, "examples/subscribe.py", endpoint, "BTCUSDT", "1h"]
    with PlayedEngine(endpoint, sends_health=False) as engine:
        engine.unsaved["kline.BTCUSDT.1h"] = made_up("BTCUSDT", "1h", 2)
        example = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert example.stdout
            example.stdout.readline()
            example.stdout.close()
            assert example.stderr
            assert example.stderr.read() == b""
            assert example.wait(60) == 0
        finally:
            example.kill()
            example.wait()


def test_the_node_example_attaches_with_nothing_of_klagg(endpoint: str) -> None:
    folder = Path(os.environ.get("KLAGG_TEST_NODE_MODULES", "nowhere"))
    node = shutil.which("node")
    if node is None or not (folder / "node_modules" / "zeromq").is_dir():
        pytest.skip(
            "needs node, and KLAGG_TEST_NODE_MODULES naming a folder with zeromq and @msgpack/msgpack installed"
        )
    copy = folder / f"subscribe-{time.monotonic_ns()}.mjs"
    shutil.copy(ROOT / "examples" / "subscribe.mjs", copy)
    try:
        with PlayedEngine(endpoint, sends_health=False) as engine:
            engine.unsaved["kline.BTCUSDT.1h"] = made_up("BTCUSDT", "1h", 2)
            check_example(Example(node, copy.name, endpoint, "BTCUSDT", "1h", cwd=folder), engine)
    finally:
        copy.unlink()
