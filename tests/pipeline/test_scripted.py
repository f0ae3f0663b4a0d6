"""The rooms beside a scripted exchange that is none of ours: what it does is reported, and nothing false is final."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest

from harness.processes import RECORDINGS, free_port, running, wait_for, write_config
from harness.truth import unproven
from shared.client import Snapshots
from shared.config import Config, load
from shared.interval import MINUTE_MS
from shared.postgres import database_url
from shared.snapshot import HEALTH_TOPIC

SCRIPT = RECORDINGS.parent / "cases" / "fake_exchange.py"
SHIFTED = """
import runpy, sys, time
shift, sys.argv = float(sys.argv[1]), sys.argv[2:]
real = time.time
time.time = lambda: real() + shift
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BEGIN_S = 46
"""Second of its minute at which the exchange begins: what takes until a minute's end does not take long."""
START_MAX_S = 300.0
"""What is compiled once for a machine may have to be compiled before."""
SOON_S = 100.0
"""More than a minute: what was too late for one minute's end comes to the next one's."""
ROW = "open, high, low, close, volume, trade_count"

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not SCRIPT.exists(), reason="no cases beside the checkout"),
]


class Exchange:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/"

    def get(self, path: str, **parameters: object) -> Any:
        with urllib.request.urlopen(f"{self._url}{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)

    def do(self, symbol: str, do: str, **parameters: object) -> None:
        self.get("ctl", symbol=symbol, do=do, **parameters)

    def minutes(self, symbol: str) -> dict[int, tuple[Decimal, ...]]:
        """Return its own klines, by their open times."""
        rows = self.get("fapi/v1/klines", symbol=symbol, interval="1m", limit=1_000)
        return {row[0]: tuple(map(Decimal, (*row[1:6], row[8]))) for row in rows}


@contextmanager
def scripted(port: int) -> Iterator[Exchange]:
    shift = (BEGIN_S - time.time()) % 60
    process = subprocess.Popen([sys.executable, "-c", SHIFTED, str(shift), str(SCRIPT), str(port)])
    try:
        yield Exchange(port)
    finally:
        process.kill()
        process.wait()


class Rows:
    """The minutes in the database."""

    def __init__(self, config: Config) -> None:
        self._url = database_url(config)

    def of(self, symbol: str) -> dict[int, dict[str, Any]]:
        query = (
            "SELECT (extract(epoch FROM open_time) * 1000)::int8, closed, final, unexplained, source, revision,"
            f" {ROW} FROM klines WHERE symbol = %s AND interval = '1m'"
        )
        with psycopg.connect(self._url) as connection:
            cursor = connection.execute(query, [symbol])
            names = ("closed", "final", "unexplained", "source", "revision")
            return {row[0]: dict(zip(names, row[1:6], strict=True)) | {"values": row[6:]} for row in cursor}


@pytest.mark.timeout(600)
def test_what_a_scripted_exchange_does_is_reported_and_nothing_false_is_final(tmp_path: Path) -> None:
    port = free_port()
    engine = {"save_interval_ms": 500, "gap_retry_ms": 1_000, "symbols_max": 10}
    path = write_config(tmp_path, simulator={"port": port}, engine=engine)
    config = load({"KLAGG_CONFIG": str(path)})
    health: dict[str, Any] = {}
    with running("postgres", "persist", "engine", "ingest", config=path) as rooms:
        wait_for("the rooms", lambda: "ready in" in rooms["engine"].log, START_MAX_S)
        wait_for("ingest", lambda: "waiting for the exchange" in rooms["ingest"].log, START_MAX_S)
        with scripted(port) as exchange, Snapshots(config.engine.snapshots, HEALTH_TOPIC) as snapshots:

            def reported(**least: int) -> bool:
                received = snapshots.receive(timeout_ms=100)
                if received is not None and isinstance(received[1], dict):
                    health.update(received[1])
                return all(health.get(name, 0) >= least_value for name, least_value in least.items())

            wait_for("both symbols", lambda: reported(symbols=2), START_MAX_S)
            rows = Rows(config)
            first = min(exchange.minutes("BBBUSDT"))
            # Listed again: ids begin with 0, in a minute that has trades of the former ones too.
            exchange.do("BBBUSDT", "relist", seconds=1, first=0)
            wait_for("ids that restart", lambda: reported(contradictions=1), SOON_S)
            began = max(exchange.minutes("BBBUSDT"))
            wait_for("a final minute", lambda: rows.of("AAAUSDT").get(first, {}).get("final"), SOON_S)
            late = max(exchange.minutes("AAAUSDT")) - MINUTE_MS
            before = wait_for("a final minute", lambda: finals(rows.of("AAAUSDT")).get(late), SOON_S)
            # Back by no more than into that minute.
            exchange.do("AAAUSDT", "late", ms=MINUTE_MS - 5_000)
            wait_for("a final that is taken back", lambda: reported(withdrawn=1), SOON_S)
            after = wait_for(
                "it to be final again",
                lambda: {r: k for r, k in finals(rows.of("AAAUSDT")).items() if k["revision"] > before["revision"]},
                SOON_S,
            )
            assert all(row["values"] == exchange.minutes("AAAUSDT")[time] for time, row in after.items())
            restarted = wait_for("the exchange's own minute", lambda: finals(rows.of("BBBUSDT")).get(began), SOON_S)
            assert restarted["source"] == "exchange"
            assert restarted["values"] == exchange.minutes("BBBUSDT")[began]
            # Trades that nobody gets, and ids that there are not: missing, and what they touch is not final.
            exchange.do("AAAUSDT", "trim", n=5)
            exchange.do("BBBUSDT", "burn", n=10)
            wait_for("what is missing", lambda: reported(missing_ids=15), SOON_S)
            contradictions = health["contradictions"]
            exchange.do("BBBUSDT", "again")
            wait_for("a used id", lambda: reported(contradictions=contradictions + 1), SOON_S)
            for symbol in ("AAAUSDT", "BBBUSDT"):
                official = exchange.minutes(symbol)
                wrong = {time: row for time, row in finals(rows.of(symbol)).items() if row["values"] != official[time]}
                assert not wrong, (symbol, wrong, official)
            assert [difference for difference in unproven(config) if "are missing" not in difference] == []
        assert "Traceback" not in "".join(room.log for room in rooms.values())


def finals(rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {time: row for time, row in rows.items() if row["final"]}
