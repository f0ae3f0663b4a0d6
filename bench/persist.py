"""The store alone: batches of klines into an embedded PostgreSQL, beside what one would write by hand.

Everybody saves the same rows, in the same run and alternately, into tables of the same definition: 500 symbols in all
intervals, numbers as NUMERIC. klagg gets them as the engine sends them and saves the marks of their symbols too; the
others get Python's own objects, which are made before and cost nothing here, and save rows alone.
"""

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psycopg

from harness.figures import cpu_seconds, spread
from harness.processes import running, wait_for, write_config
from services.persist import store
from services.persist.pgcopy import COUNTS, DECIMALS, PRICES, STAGED, STATES, VOLUMES, close_times, warm_up
from shared.calendar import open_time_of
from shared.config import load
from shared.interval import DAY_MS, INTERVAL_NAMES, INTERVALS
from shared.kline import CLOSED, FINAL, PLACED_KLINE
from shared.postgres import database_url
from shared.wire import AuditMark, DirtyBatch, SymbolMark, placed_rows

RUNS = 5
SIZES = (1_000, 7_500, 50_000)
SYMBOLS = 500
ROWS_A_RUN_MIN = 15_000
"""Small batches are saved several at a time: the kernel counts CPU time in steps of 10 ms."""
NOW = 1_790_000_000_000
APART_MS = 250 * DAY_MS
"""Between the klines of two batches of new rows: more than the 7 months that the largest batch has of months."""
MONTH_MS = 31 * DAY_MS
PRICE_DECIMALS, QUANTITY_DECIMALS = 2, 3
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_COLUMNS = ", ".join(STAGED)
_UPSERT = "ON CONFLICT (symbol, interval, open_time) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in STAGED if name not in ("symbol", "interval", "open_time")
)

Objects = list[tuple[object, ...]]
Save = Callable[[store.Connection, DirtyBatch, Objects], object]


def save_executemany(connection: store.Connection, _: DirtyBatch, rows: Objects) -> None:
    statement = f"INSERT INTO klines ({_COLUMNS}) VALUES ({', '.join(['%s'] * len(STAGED))}) {_UPSERT}"
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def save_copy_text(connection: store.Connection, _: DirtyBatch, rows: Objects) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE came (LIKE klines INCLUDING DEFAULTS) ON COMMIT DROP")
        with cursor.copy(f"COPY came ({_COLUMNS}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(f"INSERT INTO klines ({_COLUMNS}) SELECT {_COLUMNS} FROM came {_UPSERT}")


CONTENDERS: dict[str, Save] = {
    "klagg": lambda connection, batch, _: store.save(connection, batch),
    "COPY text, upsert": save_copy_text,
    "executemany": save_executemany,
}


def run(size: int, new: bool) -> dict[str, Any]:
    """Return each contender's rows/s and CPU seconds per million rows; `new` rows are inserted, others overwritten."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="klagg-bench-") as folder:
        path = write_config(Path(folder))
        with running("postgres", config=path) as rooms:
            room = rooms["postgres"]
            wait_for("the database", lambda: "is ready in" in room.log)
            url = database_url(load({"KLAGG_CONFIG": str(path)}))
            connections = {name: _connect(url, index) for index, name in enumerate(CONTENDERS)}
            try:
                return _measure(connections, room.process.pid, size, new)
            finally:
                for connection in connections.values():
                    connection.close()


def _connect(url: str, index: int) -> store.Connection:
    """Return a connection whose tables are its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA contender_{index}")
    return store.connect(f"{url}&options=-csearch_path%3Dcontender_{index}")


def _measure(connections: dict[str, store.Connection], server: int, size: int, new: bool) -> dict[str, Any]:
    batches = max(1, ROWS_A_RUN_MIN // size)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
    for run in range(RUNS + 1):
        made = [batch_of(size, run * batches + index, new) for index in range(batches)]
        work = [(batch, objects_of(batch)) for batch in made]
        for name, save in CONTENDERS.items():
            began, python, postgres = time.perf_counter(), time.process_time(), cpu_seconds(server)
            for batch, objects in work:
                save(connections[name], batch, objects)
            elapsed, rows = time.perf_counter() - began, size * batches
            python, postgres = time.process_time() - python, cpu_seconds(server) - postgres
            found[name].append((rows / elapsed, python / rows * 1e6, postgres / rows * 1e6))
    slowest = median(rate for rate, _, _ in found["executemany"][1:])
    return {name: _figures(figures[1:], slowest) for name, figures in found.items()}


def _figures(figures: list[tuple[float, float, float]], slowest: float) -> dict[str, Any]:
    rates, python, postgres = (list(column) for column in zip(*figures, strict=True))
    return {
        "rows/s": spread(rates),
        "times executemany": round(median(rates) / slowest, 1),
        "CPU s per million rows": {"Python": round(median(python), 1), "PostgreSQL": round(median(postgres), 1)},
    }


def batch_of(size: int, number: int, new: bool) -> DirtyBatch:
    """Return so many klines, the newest of each symbol and interval, and before those older ones.

    Their numbers differ from batch to batch, and if they are `new` their times too: a history, of which all is final.
    """
    symbols = min(SYMBOLS, -(-size // len(INTERVALS)))
    now = NOW + (number * APART_MS if new else 0)
    indices = range(-(-size // symbols))
    intervals = [index % len(INTERVALS) for index in indices]
    times = []
    for index in indices:
        interval = INTERVALS[index % len(INTERVALS)]
        age_ms = index // len(INTERVALS) * (interval.length_ms or MONTH_MS)
        times.append(open_time_of(INTERVAL_NAMES[index % len(INTERVALS)], now - age_ms))
    rows = np.zeros(symbols * len(indices), PLACED_KLINE)
    rows["symbol"] = np.repeat(np.arange(symbols), len(indices))
    rows["interval"] = np.tile(intervals, symbols)
    klines, dice = rows["kline"], np.random.default_rng(number)
    klines["open_time"] = np.tile(times, symbols)
    klines["flags"] = np.tile([CLOSED | FINAL if new or index >= len(INTERVALS) else 0 for index in indices], symbols)
    for name in DECIMALS + COUNTS:
        largest = 10**7 if name in PRICES else 10**8 if name in VOLUMES else 10**10 if name in COUNTS else 10**15
        klines[name] = dice.integers(1, largest, len(rows))
    marks = [
        SymbolMark(
            f"S{symbol}USDT",
            PRICE_DECIMALS,
            QUANTITY_DECIMALS,
            f"s{symbol}usdt@aggTrade",
            True,
            0,
            NOW,
            number,
            [],
            proven_time=now,
            audit=AuditMark(now, {"matched": number}),
        )
        for symbol in range(symbols)
    ]
    return DirtyBatch(1, number, now, marks, rows[:size].tobytes())


def objects_of(batch: DirtyBatch) -> Objects:
    """Return a batch's rows as Python's own objects, in the order of `STAGED`."""
    rows = placed_rows(batch.rows)
    klines = rows["kline"]
    decimals = dict.fromkeys(PRICES, PRICE_DECIMALS) | dict.fromkeys(VOLUMES, QUANTITY_DECIMALS)
    columns: dict[str, list[Any]] = {
        "symbol": [batch.marks[symbol].symbol for symbol in rows["symbol"].tolist()],
        "interval": [INTERVAL_NAMES[interval] for interval in rows["interval"].tolist()],
        "open_time": _moments(klines["open_time"].tolist()),
        "close_time": _moments(close_times(rows["interval"], klines["open_time"]).tolist()),
        "source": ["trades"] * len(rows),
        "revision": klines["revision"].tolist(),
    }
    for name in DECIMALS:
        scale = decimals.get(name, PRICE_DECIMALS + QUANTITY_DECIMALS)
        columns[name] = [Decimal(value).scaleb(-scale) for value in klines[name].tolist()]
    for name, flag in STATES.items():
        columns[name] = [bool(flags & flag) for flags in klines["flags"].tolist()]
    for name in COUNTS:
        columns[name] = klines[name].tolist()
    return list(zip(*(columns[name] for name in STAGED), strict=True))


def _moments(times: list[int]) -> list[datetime]:
    return [EPOCH + timedelta(milliseconds=time) for time in times]
