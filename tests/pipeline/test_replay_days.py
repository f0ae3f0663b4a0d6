"""Days with few trades: a replay jumps over pauses, and makes every kline of them, on the exchange's grid."""

import csv
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from harness.processes import recording, unpacked
from tests.pipeline.test_replay import MINUTE_MS, Row, ended, read_rows

pytestmark = pytest.mark.pipeline

DAY_MS = 86_400_000
BEGIN = datetime(2021, 3, 1, tzinfo=UTC)
DAYS = 6
FIRST_DAYS = {"BTCUSDT": "2017-08-17", "SOLUSDT": "2020-08-11", "XRPUSDT": "2018-05-04"}
"""Three symbols on three grids."""
HOURS = (1, 5, 11, 20)
"""When a day's trades are: its open, its high, its low and its close."""


def official(files: str, symbol: str, interval: str) -> dict[int, list[Decimal]]:
    """Return the exchange's own klines: open time to open, high, low, close and volume."""
    lines = unpacked(recording(files.format(symbol=symbol, interval=interval))).decode().splitlines()
    return {
        int(datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp() * 1000): [
            Decimal(row[name]) for name in ("open", "high", "low", "close", "volume")
        ]
        for row in csv.DictReader(lines)
        if (row.get("symbol", symbol), row.get("interval", interval)) == (symbol, interval)
    }


def trades_of(files: str, symbol: str) -> Iterator[tuple[int, str]]:
    """Yield (time, frame) of four trades a day that make up the exchange's own day."""
    begin = int(BEGIN.timestamp() * 1000)
    days = official(files, symbol, "1d")
    for day in range(DAYS):
        *prices, volume = days[begin + day * DAY_MS]
        part = (volume / 4).quantize(Decimal("0.01"))
        for index, (hour, price) in enumerate(zip(HOURS, prices, strict=True)):
            quantity = volume - 3 * part if index == 3 else part
            time = begin + day * DAY_MS + hour * 3_600_000
            data = {"e": "trade", "E": time + 1, "T": time, "s": symbol, "t": 4 * day + index, "p": str(price)}
            data |= {"q": str(quantity), "X": "MARKET", "m": True}
            yield time, json.dumps({"stream": f"{symbol.lower()}@trade", "data": data})


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kr") as folder:
        yield Path(folder)


@pytest.fixture(scope="module", params=["spot-3symbols-1d-and-3d.csv", "spot-{symbol}-{interval}.csv.gz"])
def files(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def export(folder: Path, files: str) -> Path:
    """What a replay writes at a speed at which it would take hours to wait for all of its pauses."""
    target = Path(tempfile.mkdtemp(dir=folder))
    file = target / "days.jsonl"
    trades = sorted(trade for symbol in FIRST_DAYS for trade in trades_of(files, symbol))
    file.write_text("\n".join(frame for _, frame in trades))
    first_days = [f"--first-day={symbol}={day}" for symbol, day in FIRST_DAYS.items()]
    code, said = ended(target, file, stream="trade", speed=100, more=first_days)
    assert code == 0, said
    assert "count from their first day here" not in said
    return target / "export"


@pytest.mark.parametrize("symbol", FIRST_DAYS)
def test_3d_klines_are_the_exchanges_own_where_the_first_day_is_said(export: Path, files: str, symbol: str) -> None:
    ours, exchanges = read_rows(export / symbol / f"{symbol}-3d.csv"), official(files, symbol, "3d")
    begin = int(BEGIN.timestamp() * 1000)
    whole = [time for time in exchanges if begin <= time < begin + (DAYS - 3) * DAY_MS]
    assert len(whole) >= 1
    for time in whole:
        row = ours[time]
        assert [row.open, row.high, row.low, row.close, row.volume] == exchanges[time]
    assert set(ours) <= set(exchanges)


@pytest.mark.parametrize("symbol", FIRST_DAYS)
def test_every_minute_of_a_pause_is_a_flat_kline(export: Path, symbol: str) -> None:
    rows = read_rows(export / symbol / f"{symbol}-1m.csv")
    traded = [row for row in rows.values() if row.trade_count]
    assert len(traded) == 4 * DAYS
    assert list(rows) == list(range(traded[0].open_time, traded[-1].open_time + 1, MINUTE_MS))
    close = traded[0].close
    for row in rows.values():
        if not row.trade_count:
            nothing = Decimal(0)
            assert row == Row(
                row.open_time, close, close, close, close, nothing, row.close_time, nothing, 0, nothing, nothing
            )
        close = row.close
