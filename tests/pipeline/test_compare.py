"""`klagg verify --against-exchange` on the whole system: silent on what is so, and exact about a minute that is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from harness.processes import running, wait_for, write_config
from harness.truth import settle, unproven
from shared.config import Config, load
from shared.interval import MINUTE_MS
from shared.postgres import database_url

pytestmark = pytest.mark.pipeline

SYMBOLS = 4


def compare(path: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "verify", "--against-exchange", *arguments],
        env=os.environ | {"KLAGG_CONFIG": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_minute_that_the_exchange_has_otherwise_is_named(tmp_path: Path) -> None:
    start = int(time.time()) // 60 * MINUTE_MS + 50_000
    simulator = {"symbols": SYMBOLS, "trades_per_second": 100.0, "quirks": False, "start_time": start}
    path = write_config(tmp_path, simulator=simulator)
    config = load({"KLAGG_CONFIG": str(path)})
    with running("postgres", "persist", "engine", "simulator", "ingest", config=path):

        def minutes() -> bool:
            with psycopg.connect(database_url(config)) as connection:
                row = connection.execute(
                    "SELECT count(*) FROM klines WHERE interval = '1m' AND source = 'trades' AND final"
                ).fetchone()
            return row is not None and row[0] >= SYMBOLS

        wait_for("a minute of each symbol", lambda: _there(config) and minutes(), 200, every=0.5)
        settle(config)
        code, text = compare(path)
        assert code == 0, text
        assert text.count(" ok ") == SYMBOLS
        assert " matched" in text
        assert unproven(config) == []
        with psycopg.connect(database_url(config)) as connection:
            # In all intervals alike: the tables alone cannot show it.
            symbol, moment = connection.execute(
                "SELECT symbol, open_time FROM klines WHERE interval = '1m' AND source = 'trades' AND final"
                " AND trade_count > 0 ORDER BY open_time, symbol LIMIT 1"
            ).fetchall()[0]
            connection.execute(
                "UPDATE klines SET volume = volume + 1, quote_volume = quote_volume + high, high = high + 1,"
                " trade_count = trade_count + 1 WHERE symbol = %s AND open_time <= %s AND close_time >= %s",
                [symbol, moment, moment],
            )
        code, text = compare(path, "--symbols", symbol)
        assert code == 1, text
        assert f"{symbol} 1m {moment:%Y-%m-%dT%H:%M}" in text
        assert "volume" in text


def _there(config: Config) -> bool:
    try:
        with psycopg.connect(database_url(config)) as connection:
            connection.execute("SELECT FROM klines LIMIT 1")
    except psycopg.Error:
        return False
    return True
