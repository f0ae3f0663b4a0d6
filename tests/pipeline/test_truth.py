"""The whole system on the generated market: every kline in PostgreSQL equals the simulator's truth."""

import time
from pathlib import Path

import psycopg
import pytest

from harness.processes import running, wait_for, write_config
from harness.truth import ask, differences, settle, unproven
from shared.config import load
from shared.interval import MINUTE_MS
from shared.postgres import database_url

pytestmark = pytest.mark.pipeline

ROOMS = ("postgres", "persist", "engine", "simulator", "ingest")


@pytest.mark.timeout(400)
def test_every_kline_of_100_symbols_equals_the_truth(tmp_path: Path) -> None:
    path = write_config(
        tmp_path,
        simulator={
            "symbols": 100,
            "trades_per_second": 2_000.0,
            "history_days": 35,
            "quirks": False,
            "weight_limit": 1_000_000,
            # All are live shortly before a minute ends.
            "start_time": int(time.time()) // 60 * MINUTE_MS + 35_000,
        },
    )
    config = load({"KLAGG_CONFIG": str(path)})
    with running(*ROOMS, config=path) as rooms:

        def live() -> bool:
            assert all(room.process.poll() is None for room in rooms.values())
            with psycopg.connect(database_url(config)) as connection:
                row = connection.execute("SELECT count(*) FROM symbols WHERE isempty(gaps)").fetchone()
            return row == (100,)

        wait_for("PostgreSQL", lambda: "loaded 0 symbols" in rooms["persist"].log, 60)
        wait_for("all symbols to be live", live, 180, every=0.5)
        # At least one minute begins and ends with everybody live.
        begin = ask(config, "status")["time"]
        end = (begin // MINUTE_MS + 2) * MINUTE_MS + 3_000
        time.sleep((end - begin) / 1000)
        settle(config)
        found, compared = differences(config)
        assert found[:10] == []
        assert compared > 100 * 15 * 20
        assert unproven(config) == []
        assert "Traceback" not in "".join(room.log for room in rooms.values())
