"""Klines as files, in the form of the exchange's archive.

One file a symbol and interval, `<folder>/<SYMBOL>/<SYMBOL>-<interval>.csv`: 12 columns with a header, times in ms,
closed klines only, and none that is saturated (protocol §7). PostgreSQL writes the lines; nothing is held in memory.
Beside them `holes.csv` names the ids that nobody explained and the minutes that they may belong to, `partial.csv` the
klines that a recording covers only in part; where there are none, neither file is there.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from services.persist.store import Connection
from shared.interval import INTERVAL_NAMES, MINUTE_MS, utc
from shared.names import NAME_MAX, is_name

log = logging.getLogger(__name__)

COLUMNS = (
    "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count",
    "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip
_ROWS = """
COPY (
    SELECT (extract(epoch FROM open_time) * 1000)::int8, open, high, low, close, volume,
        (extract(epoch FROM close_time) * 1000)::int8, quote_volume, trade_count,
        taker_buy_volume, taker_buy_quote_volume, 0
    FROM klines WHERE symbol = %s AND interval = %s AND closed AND NOT saturated ORDER BY open_time
) TO STDOUT (FORMAT csv)
"""


HOLES, PARTIAL = "holes.csv", "partial.csv"
_HOLES = """
SELECT symbol, (ids ->> 0)::int8, (ids ->> 1)::int8, (ids ->> 2)::int8, (ids ->> 3)::int8
FROM symbols CROSS JOIN LATERAL jsonb_array_elements(unexplained) AS ids
WHERE ids ->> 4 = 'open' ORDER BY symbol, 2
"""
_PARTIAL = """
SELECT symbol, interval, (extract(epoch FROM open_time) * 1000)::int8 AS open_ms,
    CASE WHEN open_time < begins THEN 'begins before the first event' ELSE 'ends behind the last event' END
FROM klines, LATERAL (SELECT to_timestamp(%s / 1000.0) AS begins, to_timestamp(%s / 1000.0) AS ends) AS recorded
WHERE closed AND (open_time < begins AND close_time >= begins OR open_time <= ends AND close_time > ends)
ORDER BY symbol, interval, open_ms
"""


_SATURATED = "SELECT symbol, count(*) FROM klines WHERE closed AND saturated GROUP BY symbol ORDER BY symbol"


class Hole(NamedTuple):
    """Ids of a symbol that are in no kline, and between which times they lie, ms."""

    symbol: str
    first_id: int
    last_id: int
    from_time: int
    to_time: int

    def words(self) -> str:
        """Say when that was."""
        minutes = [utc(time // MINUTE_MS * MINUTE_MS) for time in (self.from_time, self.to_time)]
        return f"{utc(self.from_time)} to {utc(self.to_time)}, 1m klines {minutes[0]} to {minutes[1]}"


def export_holes(connection: Connection, folder: Path) -> list[Hole]:
    """Write which ids nobody explained, and return them. Raises OSError, psycopg.Error."""
    holes = [Hole(*row) for row in connection.execute(_HOLES)]
    rows = [(*hole, hole.from_time // MINUTE_MS * MINUTE_MS, hole.to_time // MINUTE_MS * MINUTE_MS) for hole in holes]
    _write(folder / HOLES, (*Hole._fields, "first_kline", "last_kline"), rows)
    return holes


def export_partial(connection: Connection, folder: Path, first_ms: int, last_ms: int) -> int:
    """Write which klines reach beyond the first and the last event of a recording, and return how many do.

    Raises OSError, psycopg.Error.
    """
    rows = connection.execute(_PARTIAL, [first_ms, last_ms]).fetchall()
    _write(folder / PARTIAL, ("symbol", "interval", "open_time", "because"), rows)
    return len(rows)


def _write(path: Path, header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a file of a few lines; without any there is none, and an older one is gone."""
    path.unlink(missing_ok=True)
    if rows:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def left_out(connection: Connection) -> list[tuple[str, int]]:
    """Return of which symbols how many closed klines are saturated, and are not written. Raises psycopg.Error."""
    return [(str(symbol), int(count)) for symbol, count in connection.execute(_SATURATED)]


def export_csv(connection: Connection, folder: Path) -> int:
    """Write every closed kline below `folder` and return the number of files. Files of the same names are replaced.

    Raises OSError, psycopg.Error.
    """
    symbols = [str(row[0]) for row in connection.execute("SELECT symbol FROM symbols ORDER BY symbol")]
    written = 0
    for symbol in symbols:
        if not is_name(symbol):
            log.warning("not written: %r cannot be the name of a folder", symbol[:NAME_MAX])
            continue
        for interval in INTERVAL_NAMES:
            written += _export(connection, folder / symbol / f"{symbol}-{interval}.csv", symbol, interval)
    return written


def _export(connection: Connection, path: Path, symbol: str, interval: str) -> bool:
    """Write one file, if there is anything to write."""
    with psycopg.ClientCursor(connection).copy(_ROWS, [symbol, interval]) as copy:
        chunks = iter(copy)
        first = next(chunks, b"")
        if not first:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(",".join(COLUMNS).encode() + b"\n")
            file.write(first)
            for chunk in chunks:
                file.write(chunk)
    return True
