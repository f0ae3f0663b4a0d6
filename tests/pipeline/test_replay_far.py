"""Recordings with years between their trades, and with trades of long ago: gaps are reported, and nowhere final."""

import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from harness.processes import RECORDINGS, running, wait_for
from shared.config import load
from shared.postgres import database_url
from tests.pipeline.test_replay import MINUTE_MS, ended, exported, read_rows

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"there are no recordings in {RECORDINGS}"),
]

DAY_MS = 86_400_000
EARLY, LATE = (int(datetime(year, 5, 6, 7, tzinfo=UTC).timestamp() * 1000) for year in (2019, 2024))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kr") as folder:
        yield Path(folder)


def frame(symbol: str, trade_id: int, time: int, left: int = 0) -> tuple[int, str]:
    """Return when a trade left the exchange, and its frame."""
    data = {"e": "trade", "E": left or time + 1, "T": time, "s": symbol, "t": trade_id, "p": f"{100 + trade_id % 7}.5"}
    data |= {"q": "0.25", "X": "MARKET", "m": trade_id % 2 == 0}
    return left or time, json.dumps({"stream": f"{symbol.lower()}@trade", "data": data})


def write(path: Path, frames: list[tuple[int, str]]) -> Path:
    path.write_text("\n".join(text for _, text in sorted(frames, key=lambda frame: frame[0])))
    return path


def test_years_in_which_nothing_was_recorded_are_skipped_and_logged(folder: Path) -> None:
    """Ids of ETHUSDT go on after them, those of BTCUSDT do not; OLDUSDT is traded before alone, NEWUSDT after."""
    ids = {"ETHUSDT": (1, 61), "BTCUSDT": (1, 900_001), "OLDUSDT": (5, 0), "NEWUSDT": (0, 7)}
    trades = [
        (symbol, first + n, begin + n * 5_000)
        for symbol, firsts in ids.items()
        for first, begin in zip(firsts, (EARLY, LATE), strict=True)
        for n in range(60 if first else 0)
    ]
    file = write(folder / "far.jsonl", [frame(*trade) for trade in trades])
    results = []
    for speed in (1_000, 10_000):
        target = Path(tempfile.mkdtemp(dir=folder))
        code, said = ended(target, file, stream="trade", speed=speed, more=["--first-day=ETHUSDT=2017-08-17"])
        assert code == 4, said
        assert "nothing was recorded from 2019-05-06T07:04:55.001Z to 2024-05-06T07:00:00.001Z, 1826 days" in said
        assert "BTCUSDT lacks ids 61 to 900000" in said
        assert "in 1 holes" in said
        results.append(exported(target))
    assert results[0] == results[1]
    assert results[0]["skipped.csv"].decode().splitlines()[1:] == [f"{EARLY + 295_001},{LATE + 1}"]
    for symbol in ids:
        counts: dict[int, int] = {}
        for minute in (time // MINUTE_MS * MINUTE_MS for name, _, time in trades if name == symbol):
            counts[minute] = counts.get(minute, 0) + 1
        rows = read_rows(target / "export" / symbol / f"{symbol}-1m.csv")
        assert {time: row.trade_count for time, row in rows.items()} == counts, symbol


def test_a_kline_that_lacks_a_trade_from_long_ago_is_not_final_in_the_database(folder: Path) -> None:
    times = [EARLY + n * MINUTE_MS for n in range(150)]
    frames = [frame("ETHUSDT", trade_id, time) for trade_id, time in enumerate(times, 1)]
    frames += [frame("ETHUSDT", 151, EARLY + 10 * MINUTE_MS + 30_000, times[-1] + 5)]
    frames += [frame("ETHUSDT", trade_id, times[-1] + 3 * MINUTE_MS + trade_id) for trade_id in range(152, 160)]
    frames += [frame("ETHUSDT", 160, EARLY + 20 * MINUTE_MS, times[-1] + 3 * MINUTE_MS + 200)]
    kept = folder / "kept"
    code, said = ended(folder, write(folder / "old.jsonl", frames), stream="trade", more=["--keep", str(kept)])
    assert code == 4, said
    for trade_id, minute in ((151, "07:10"), (160, "07:20")):
        assert f"ETHUSDT lacks ids {trade_id} to {trade_id}: 2019-05-06T{minute}" in said
        assert f"its kline, of 2019-05-06T{minute}:00.000Z, was over: it lacks it" in said
    config = kept / "klagg.toml"
    with running("postgres", config=config) as rooms:
        wait_for("the database", lambda: rooms["postgres"].log.count("is ready in") == 2)
        with psycopg.connect(database_url(load({"KLAGG_CONFIG": str(config)}))) as connection:
            found = connection.execute(
                "SELECT (extract(epoch FROM open_time) * 1000)::int8, final FROM klines WHERE interval = '1m'"
            ).fetchall()
    final = {(time - EARLY) // MINUTE_MS: is_final for time, is_final in found}
    assert (final[9], final[10], final[20]) == (True, False, False)
