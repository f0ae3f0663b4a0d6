"""The exchange's time wrong once, by hours or years: the calendar stays where it is, and no trade is lost."""

import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.processes import Room, running, wait_for, write_config
from harness.truth import ask, differences, settle, unproven
from shared.client import Snapshots
from shared.config import Config, load
from shared.interval import MINUTE_MS
from shared.postgres import database_url
from shared.snapshot import HEALTH_TOPIC, Snapshot

pytestmark = pytest.mark.pipeline

HOUR, DAY = 3_600_000, 86_400_000
WRONG = (HOUR, 6 * HOUR, 30 * DAY, 3_650 * DAY, -HOUR, -6 * HOUR, -3_650 * DAY)
SILENT_MAX_S = 10.0
"""A tenth of a second where the machine has nothing else to do; to open the minutes of ten years takes 48."""


class Listener(threading.Thread):
    """Receives every row that the engine publishes."""

    def __init__(self, config: Config) -> None:
        super().__init__(daemon=True)
        self._config = config
        self.ended = False
        self.ahead_ms = -DAY
        """How far beyond the real time a row began, at most."""
        self.off_ms = 0
        """How far the engine's time was from the real one, at most."""
        self.silent_s = 0.0
        """The longest time without a row since `count_silence`."""
        self._received_at = 0.0
        self.rows = 0
        self.health: dict[str, Any] = {}

    def count_silence(self) -> None:
        """Count from here on: without a feed there is silence."""
        self._received_at, self.silent_s = time.monotonic(), 0.0

    def run(self) -> None:
        with Snapshots(self._config.engine.snapshots, ["kline.", HEALTH_TOPIC]) as snapshots:
            while not self.ended:
                received = snapshots.receive(timeout_ms=100)
                if received is None:
                    continue
                message = received[1]
                if isinstance(message, Snapshot):
                    now_ms, now = time.time_ns() // 1_000_000, time.monotonic()
                    self.silent_s = max(self.silent_s, now - self._received_at)
                    self._received_at, self.rows = now, self.rows + 1
                    self.ahead_ms = max(self.ahead_ms, message.open_time - now_ms)
                    self.off_ms = max(self.off_ms, abs(message.exchange_time - now_ms))
                elif isinstance(message, dict):
                    self.health = message


@pytest.mark.timeout(900)
def test_a_time_that_is_wrong_once_moves_no_calendar_and_loses_no_trade(tmp_path: Path) -> None:
    market = {"symbols": 10, "trades_per_second": 300.0, "history_days": 3, "quirks": False, "weight_limit": 1_000_000}
    path = write_config(tmp_path, simulator=market, engine={"silence_ask_ms": 2_000})
    config = load({"KLAGG_CONFIG": str(path)})
    with running("postgres", "persist", "engine", "simulator", config=path) as rooms:
        listener = Listener(config)
        listener.start()
        wait_for("the exchange", lambda: "listening" in rooms["simulator"].log, 300)
        # The first answer of all is wrong, and so is one while all goes on.
        known = 0
        for wrong in WRONG:
            ask(config, "fault", "POST", kind="time", ms=wrong)
            ingest = Room("ingest", path)
            try:
                wait_for("all symbols", lambda: listener.health.get("symbols") == 10, 400)
                wait_for("the feed", lambda: listener.health.get("connected"), 60)
                wait_for("its first questions", lambda: ask(config, "status")["once"] == [])
                known += 1
                wait_for("the engine's word", lambda: ingest.log.count("the engine knows") == known)  # noqa: B023
                listener.count_silence()
                doubts = ingest.log.count("time not confirmed")
                ask(config, "fault", "POST", kind="event", ms=wrong, symbol="BTCUSDT")
                ask(config, "fault", "POST", kind="time", ms=wrong)
                wait_for("a trade with a wrong time", lambda: ask(config, "status")["once"] == ["time"])
                # A ticker of a wrong time makes ingest ask for the time.
                ask(config, "fault", "POST", kind="event", ms=wrong)
                wait_for("doubt", lambda: ingest.log.count("time not confirmed") > doubts)  # noqa: B023
                assert ask(config, "status")["once"] == []
                seen = listener.rows
                wait_for("rows", lambda: listener.rows > seen + 100)  # noqa: B023
                silent_s = listener.silent_s
                print(f"{wrong}: {listener.rows} rows, at most {silent_s:.2f} s apart")
                assert silent_s < SILENT_MAX_S
            finally:
                assert ingest.stop() == 0, ingest.log
        with running("ingest", config=path):
            wait_for("the feed", lambda: listener.health.get("connected"), 60)
            settle(config, 180)
            found, compared = differences(config)
        listener.ended = True
        listener.join(10)
        assert found[:10] == []
        assert compared > 10 * 15
        assert unproven(config) == []
        with psycopg.connect(database_url(config)) as connection:
            row = connection.execute("SELECT max(extract(epoch FROM open_time) * 1000)::int8 FROM klines").fetchone()
        assert row is not None
        assert row[0] <= time.time_ns() // 1_000_000 + MINUTE_MS
        assert listener.ahead_ms <= 1_000
        assert listener.off_ms < MINUTE_MS
        figures = {name: listener.health[name] for name in ("refused", "beyond_window", "late", "missing_ids")}
        assert (figures["refused"], figures["beyond_window"], figures["missing_ids"]) == (0, 0, 0), figures
        assert "Traceback" not in "".join(room.log for room in rooms.values())
