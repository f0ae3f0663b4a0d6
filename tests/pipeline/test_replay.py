"""Real recordings through the whole pipeline as real processes, judged by the exchange's own klines."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harness.processes import RECORDINGS, ROOT, recording, unpacked, wait_for

pytestmark = pytest.mark.pipeline

MINUTE_MS = 60_000
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
LENGTHS_MS = {"1m": 1, "3m": 3, "5m": 5, "15m": 15, "30m": 30, "1h": 60}


@dataclass(frozen=True)
class Row:
    """A line of an archive's file; what the exchange calls count and ignore is `trade_count` and left out."""

    open_time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    close_time: int
    quote_volume: Decimal
    trade_count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal


def read_rows(path: Path) -> dict[int, Row]:
    """Return an archive file's klines by open time; they must ascend."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.reader(file) if line[0] != "open_time"]
    whole = {0, 6, 8}
    rows = [
        Row(*(int(cell) if column in whole else Decimal(cell) for column, cell in enumerate(line[:11])))  # type: ignore[arg-type]
        for line in lines
    ]
    assert [row.open_time for row in rows] == sorted({row.open_time for row in rows}), path
    return {row.open_time: row for row in rows}


def merged(minutes: list[Row], open_time: int, length_ms: int) -> Row:
    """Merge minutes, in the order of time, into one kline of a longer interval, in plain words."""
    traded = [row for row in minutes if row.trade_count]
    return Row(
        open_time=open_time,
        open=traded[0].open,
        high=max(row.high for row in traded),
        low=min(row.low for row in traded),
        close=traded[-1].close,
        volume=sum((row.volume for row in traded), Decimal(0)),
        close_time=open_time + length_ms - 1,
        quote_volume=sum((row.quote_volume for row in traded), Decimal(0)),
        trade_count=sum(row.trade_count for row in traded),
        taker_buy_volume=sum((row.taker_buy_volume for row in traded), Decimal(0)),
        taker_buy_quote_volume=sum((row.taker_buy_quote_volume for row in traded), Decimal(0)),
    )


@dataclass(frozen=True)
class Trade:
    time: int
    price: Decimal
    quantity: Decimal
    count: int
    buyer_is_maker: bool


def kline_of(trades: list[Trade], open_time: int) -> Row:
    """Make a minute's kline of its trades, in the order of their ids, one at a time."""
    prices = [trade.price for trade in trades]
    bought = [trade for trade in trades if not trade.buyer_is_maker]
    return Row(
        open_time=open_time,
        open=prices[0],
        high=max(prices),
        low=min(prices),
        close=prices[-1],
        volume=sum((trade.quantity for trade in trades), Decimal(0)),
        close_time=open_time + MINUTE_MS - 1,
        quote_volume=sum((trade.price * trade.quantity for trade in trades), Decimal(0)),
        trade_count=sum(trade.count for trade in trades),
        taker_buy_volume=sum((trade.quantity for trade in bought), Decimal(0)),
        taker_buy_quote_volume=sum((trade.price * trade.quantity for trade in bought), Decimal(0)),
    )


def recorded_agg_trades(path: Path) -> dict[str, dict[int, list[Trade]]]:
    """Return the recorded aggregates by symbol and minute, in the order of their ids."""
    by_id: dict[str, dict[int, Trade]] = defaultdict(dict)
    lines = unpacked(path).decode().splitlines()
    if ".jsonl" in path.name:
        for line in lines:
            data: dict[str, Any] = json.loads(line)
            data = data.get("data", data)
            if data.get("e") == "aggTrade":
                trade = Trade(data["T"], Decimal(data["p"]), Decimal(data["q"]), data["l"] - data["f"] + 1, data["m"])
                by_id[data["s"]][data["a"]] = trade
    else:
        for cells in csv.reader(lines):
            time_ms = int(cells[5]) // 1000
            count = int(cells[4]) - int(cells[3]) + 1
            trade = Trade(time_ms, Decimal(cells[1]), Decimal(cells[2]), count, cells[6].lower() == "true")
            by_id[path.name.split("-")[1]][int(cells[0])] = trade
    minutes: dict[str, dict[int, list[Trade]]] = {}
    for symbol, trades in by_id.items():
        minutes[symbol] = defaultdict(list)
        for _, trade in sorted(trades.items()):
            minutes[symbol][trade.time - trade.time % MINUTE_MS].append(trade)
    return minutes


@pytest.fixture(scope="module")
def folders() -> Iterator[Path]:
    """A folder with a short name: a socket's path has 107 bytes at most, and klagg goes elsewhere with longer ones."""
    with tempfile.TemporaryDirectory(prefix="kr") as folder:
        yield Path(folder)


@pytest.fixture
def folder(folders: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folders))


@contextmanager
def replaying(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `klagg replay` with a temporary folder of its own, below `folder`, and end it with the block."""
    temporary = folder / "t"
    temporary.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KLAGG_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "replay", *arguments, "--export", str(folder / "export")],
        cwd=ROOT,
        env=clean | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def processes_below(folder: Path) -> list[str]:
    """Name the processes whose configuration lies below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if b"KLAGG_CONFIG=" + os.fsencode(folder) in environ:
            found.append(f"{process.name} {words}")
    return found


def assert_nothing_left(folder: Path) -> None:
    wait_for("the rooms to be gone", lambda: not processes_below(folder), timeout=30)
    assert not list((folder / "t").iterdir())


def replayed(folder: Path, file: Path, stream: str) -> Path:
    """Replay a recording to its end and return the folder of the CSV files."""
    with replaying(folder, str(file), "--stream", stream) as process:
        _, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    assert_nothing_left(folder)
    return folder / "export"


@dataclass(frozen=True)
class EveryTrade:
    """A recording of all trades, and the exchange's own minutes around it."""

    stream: str
    klines: str
    begin: datetime
    """The first minute of which all was recorded ..."""
    minutes: int
    """... and how many follow from it."""
    longer: int
    """Klines of longer intervals that do."""


BY_HAND = EveryTrade(
    "usdm-BTCUSDT-trade-stream.jsonl", "usdm-BTCUSDT-1m.csv", datetime(2024, 1, 31, 23, 59, tzinfo=UTC), 4, 2
)
REAL = EveryTrade(
    "usdm-BTCUSDT-trade-stream-20230404T2358.jsonl.gz",
    "usdm-BTCUSDT-1m-20230404T2356.csv",
    datetime(2023, 4, 4, 23, 59, tzinfo=UTC),
    7,
    4,
)


@pytest.fixture(scope="module", params=[BY_HAND, REAL], ids=["by hand", "real"])
def recorded(request: pytest.FixtureRequest) -> EveryTrade:
    recording(request.param.stream)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def every_trade(folders: Path, recorded: EveryTrade) -> Path:
    return replayed(Path(tempfile.mkdtemp(dir=folders)), recording(recorded.stream), "trade")


def test_minutes_of_trades_equal_the_exchanges_own_klines(every_trade: Path, recorded: EveryTrade) -> None:
    recorded_rows = read_rows(recording(recorded.klines))
    ours = read_rows(every_trade / "BTCUSDT" / "BTCUSDT-1m.csv")
    begin = int(recorded.begin.timestamp() * 1000)
    minutes = [begin + index * MINUTE_MS for index in range(recorded.minutes)]
    assert [ours.get(minute) for minute in minutes] == [recorded_rows[minute] for minute in minutes]
    # To the last digit, zeros at the end included: the lines themselves.
    theirs_lines = recording(recorded.klines).read_text(encoding="utf-8").split()
    ours_lines = (every_trade / "BTCUSDT" / "BTCUSDT-1m.csv").read_text(encoding="utf-8").split()
    begins = tuple(f"{minute}," for minute in minutes)
    assert [line for line in ours_lines if line in theirs_lines[1:]] == [
        line for line in theirs_lines if line.startswith(begins)
    ]


def test_higher_intervals_equal_the_merge_of_the_minutes(every_trade: Path, recorded: EveryTrade) -> None:
    minutes = read_rows(every_trade / "BTCUSDT" / "BTCUSDT-1m.csv")
    compared = 0
    for interval, length in LENGTHS_MS.items():
        length_ms = length * MINUTE_MS
        for open_time, row in read_rows(every_trade / "BTCUSDT" / f"BTCUSDT-{interval}.csv").items():
            inside = [minute for time, minute in sorted(minutes.items()) if open_time <= time < open_time + length_ms]
            if any(minute.trade_count for minute in inside):
                assert row == merged(inside, open_time, length_ms), interval
                compared += interval != "1m"
    assert compared >= recorded.longer, "3m and 5m from 00:00 on, and what ends at midnight"


def test_the_files_are_in_the_archives_form(every_trade: Path) -> None:
    names = {path.name for path in (every_trade / "BTCUSDT").iterdir()}
    assert {"BTCUSDT-1m.csv", "BTCUSDT-3m.csv", "BTCUSDT-5m.csv"} <= names
    for path in (every_trade / "BTCUSDT").iterdir():
        text = path.read_text(encoding="utf-8")
        assert text.splitlines()[0] == HEADER
        assert text.endswith("\n")
        assert {len(line.split(",")) for line in text.splitlines()} == {12}


@pytest.mark.parametrize(
    "name",
    [
        "usdm-2symbols-aggTrade-and-kline-stream.jsonl",
        "spot-NEOUSDT-aggTrades.csv",
        "usdm-5symbols-aggTrade-stream-20210405T1836.jsonl.gz",
        "usdm-4symbols-aggTrade-and-kline-stream-20210722T2225.jsonl.gz",
        "spot-8symbols-aggTrade-stream-20210405T1833.jsonl.gz",
        "spot-BTCUSDT-aggTrades-2026-01-01-first5000.csv.gz",
    ],
)
def test_closed_minutes_of_aggregates_equal_the_sum_of_their_trades(folder: Path, name: str) -> None:
    minutes = recorded_agg_trades(recording(name))
    export = replayed(folder, recording(name), "aggTrade")
    compared = 0
    for symbol, recorded in minutes.items():
        ours = read_rows(export / symbol / f"{symbol}-1m.csv")
        newest = max(recorded)
        for open_time, trades in recorded.items():
            # The recording begins and ends inside a minute; the first one holds what was recorded of it.
            if open_time < newest:
                assert ours[open_time] == kline_of(trades, open_time), symbol
                compared += 1
    assert compared >= len(minutes) / 2


def test_ctrl_c_leaves_no_process_and_no_folder(folder: Path) -> None:
    file = recording(BY_HAND.stream)
    with replaying(folder, str(file), "--stream", "trade", "--speed", "1") as process:
        wait_for("the rooms to run", lambda: len(processes_below(folder)) >= 5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("klagg: interrupted\n")
    assert "Traceback" not in said
    assert_nothing_left(folder)


def test_a_stream_that_was_not_recorded_is_named(folder: Path) -> None:
    file = recording("usdm-2symbols-aggTrade-and-kline-stream.jsonl")
    with replaying(folder, str(file), "--stream", "trade") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "there is no trade of the trade stream in the recording" in said
    assert_nothing_left(folder)


CASES = RECORDINGS.parent / "cases"


def ended(
    folder: Path, *files: Path, stream: str = "aggTrade", speed: int = 10_000, more: Iterable[str] = ()
) -> tuple[int, str]:
    """Replay files to the end, and return the exit code and what was said."""
    arguments = [*map(str, files), "--stream", stream, "--speed", str(speed), *more]
    with replaying(folder, *arguments) as process:
        _, said = process.communicate(timeout=240)
    assert_nothing_left(folder)
    return process.returncode, said


def exported(folder: Path) -> dict[str, bytes]:
    export = folder / "export"
    return {str(path.relative_to(export)): path.read_bytes() for path in sorted(export.rglob("*.csv"))}


def frames(ids: Iterable[int], begin: int, step_ms: int) -> str:
    lines = []
    for trade_id in ids:
        time_ms = begin + trade_id * step_ms
        data = {
            "e": "trade",
            "E": time_ms + 1,
            "T": time_ms,
            "s": "ETHUSDT",
            "t": trade_id,
            "p": f"{100 + trade_id % 7}.5",
        }
        data |= {"q": "0.25", "X": "MARKET", "m": trade_id % 2 == 0}
        lines.append(json.dumps({"stream": "ethusdt@trade", "data": data}))
    return "\n".join(lines)


def test_a_hole_is_logged_written_and_never_final_and_the_result_is_the_same_at_any_speed(folder: Path) -> None:
    begin = int(datetime(2024, 5, 6, 7, 0, tzinfo=UTC).timestamp() * 1000)
    file = folder / "holes.jsonl"
    text = frames((trade_id for trade_id in range(1, 61) if trade_id not in (31, 32)), begin, 5_000)
    file.write_text(text + "\n" + '{"stream":"ethusdt@trade","data":{"e":"tra')
    results = []
    for speed in (100, 1_000, 10_000):
        target = Path(tempfile.mkdtemp(dir=folder))
        code, said = ended(target, file, stream="trade", speed=speed)
        assert code == 4, said
        assert "ETHUSDT lacks ids 31 to 32" in said
        assert "holes.jsonl line 59" in said
        results.append(exported(target))
    assert results[0] == results[1] == results[2]
    holes = results[0]["holes.csv"].decode().splitlines()
    minute = begin + 2 * MINUTE_MS
    assert holes[1:] == [f"ETHUSDT,31,32,{begin + 150_000},{begin + 165_000},{minute},{minute}"]
    (target / "minutes.csv").write_bytes(results[0]["ETHUSDT/ETHUSDT-1m.csv"])
    counts = {time: row.trade_count for time, row in read_rows(target / "minutes.csv").items()}
    assert [counts[begin + n * MINUTE_MS] for n in range(5)] == [11, 12, 10, 12, 12]


@pytest.mark.skipif(not CASES.is_dir(), reason="there are no cases beside the checkout")
class TestCases:
    """What people report of such data."""

    def test_a_hole_in_an_archive_is_logged(self, folder: Path) -> None:
        code, said = ended(folder, *(CASES / "c04").iterdir())
        assert code == 4, said
        assert "OXTBTC lacks ids 1684953 to 1687080" in said

    def test_more_quote_volume_than_64_bits_is_exact_in_every_interval(self, folder: Path) -> None:
        (file,) = (CASES / "c24").iterdir()
        minutes: dict[int, list[Trade]] = defaultdict(list)
        for cells in csv.reader(file.read_text(encoding="utf-8").splitlines()):
            time_ms, count = int(cells[5]), int(cells[4]) - int(cells[3]) + 1
            trade = Trade(time_ms, Decimal(cells[1]), Decimal(cells[2]), count, cells[6] == "True")
            minutes[time_ms - time_ms % MINUTE_MS].append(trade)
        code, said = ended(folder, file)
        assert code == 0, said
        largest = Decimal(0)
        for interval in ("1m", "3m", "5m"):
            length_ms = LENGTHS_MS[interval] * MINUTE_MS
            rows = read_rows(folder / "export" / "SHIBUSDT" / f"SHIBUSDT-{interval}.csv")
            opens = {minute - minute % length_ms for minute in minutes}
            compared = [open_time for open_time in opens if open_time in rows]
            assert len(compared) >= len(opens) - 1
            for open_time in compared:
                inside = [
                    kline_of(minutes[time], time) for time in sorted(minutes) if 0 <= time - open_time < length_ms
                ]
                assert rows[open_time] == merged(inside, open_time, length_ms), interval
                largest = max(largest, rows[open_time].quote_volume)
        assert largest * 10**8 > 2**63

    def test_trades_whose_times_fall_are_each_in_its_own_minute(self, folder: Path) -> None:
        (file,) = (CASES / "c01").iterdir()
        code, said = ended(folder, file)
        assert code == 4, said
        assert "fills 1291817 to 1291817 stand under a lower id already" in said
        minutes: dict[int, Decimal] = defaultdict(Decimal)
        for line in file.read_text(encoding="utf-8").splitlines():
            cells = line.split(",")
            if cells[0] != "1195416":
                minutes[int(cells[5]) // MINUTE_MS * MINUTE_MS] += Decimal(cells[2])
        rows = read_rows(folder / "export" / "BTCUSDT" / "BTCUSDT-1m.csv")
        assert {time: row.volume for time, row in rows.items() if row.trade_count} == minutes

    @pytest.mark.parametrize("name", ["sparse-3sym-12h.jsonl.gz", "gap30h-jump500.jsonl.gz"])
    def test_sparse_and_paused_recordings_equal_the_sum_of_their_trades(self, folder: Path, name: str) -> None:
        file = CASES / name
        code, said = ended(folder, file, stream="trade")
        assert code == (4 if "jump" in name else 0), said
        minutes: dict[str, dict[int, list[Trade]]] = defaultdict(lambda: defaultdict(list))
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                data = json.loads(line)["data"]
                trade = Trade(data["T"], Decimal(data["p"]), Decimal(data["q"]), 1, data["m"])
                minutes[data["s"]][data["T"] - data["T"] % MINUTE_MS].append(trade)
        for symbol, recorded in minutes.items():
            rows = read_rows(folder / "export" / symbol / f"{symbol}-1m.csv")
            assert {time for time, row in rows.items() if row.trade_count} == set(recorded)
            assert all(rows[time] == kline_of(trades, time) for time, trades in recorded.items())

    def test_files_in_any_order_are_one_recording(self, folder: Path) -> None:
        late, early = CASES / "order" / "order-late.jsonl", CASES / "order" / "order-early.jsonl"
        kind = "trade" if '"trade"' in early.read_text(encoding="utf-8")[:500] else "aggTrade"
        code, said = ended(folder, late, early, stream=kind)
        assert code == 0, said
        lines = [json.loads(line) for file in (early, late) for line in file.read_text(encoding="utf-8").splitlines()]
        times = {line["data"]["T"] // MINUTE_MS for line in lines}
        (symbol,) = {line["data"]["s"] for line in lines}
        rows = read_rows(folder / "export" / symbol / f"{symbol}-1m.csv")
        assert {time // MINUTE_MS for time, row in rows.items() if row.trade_count} == times
