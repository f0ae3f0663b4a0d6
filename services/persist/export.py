"""Klines as files, in the form of the exchange's archive.

One file a symbol and interval, `<folder>/<SYMBOL>/<SYMBOL>-<interval>.csv`: 12 columns with a header, times in ms,
closed klines only, and none that is saturated (protocol §7). PostgreSQL writes the lines; nothing is held in memory.
Beside them `holes.csv` names the ids that nobody explained and the minutes that they may belong to, `partial.csv` the
klines that a recording covers only in part, and `skipped.csv` the time between two stretches of a recording, of which
there is no kline; where there are none, the file is not there.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from services.persist.store import Connection
from shared.interval import DAY_MS, INTERVAL_NAMES, MINUTE_MS, utc
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


HOLES, PARTIAL, SKIPPED = "holes.csv", "partial.csv", "skipped.csv"
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


_KNOWN = """
SELECT symbol, min(k.first_id), GREATEST(max(k.last_id), max(s.last_id)),
    (extract(epoch FROM min(open_time)) * 1000)::int8, (extract(epoch FROM max(close_time)) * 1000)::int8
FROM klines AS k JOIN symbols AS s USING (symbol)
WHERE interval = '1m' AND id_count > 0 GROUP BY symbol ORDER BY symbol
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


class Skipped(NamedTuple):
    """The time between two stretches of a recording, ms: when the last and the first event of them left."""

    from_time: int
    to_time: int

    def words(self) -> str:
        return f"{utc(self.from_time)} to {utc(self.to_time)}, {(self.to_time - self.from_time) // DAY_MS} days"


class Partial(NamedTuple):
    """A kline that a recording covers only in part."""

    symbol: str
    interval: str
    open_time: int
    because: str


def holes_of(connection: Connection) -> list[Hole]:
    """Return which ids nobody explained. Raises psycopg.Error."""
    return [Hole(*row) for row in connection.execute(_HOLES)]


def known_of(connection: Connection) -> list[Hole]:
    """Return the first and the last id of each symbol, and between which times they lie. Raises psycopg.Error."""
    return [Hole(*row) for row in connection.execute(_KNOWN)]


def partial_of(connection: Connection, first_ms: int, last_ms: int) -> list[Partial]:
    """Return which klines reach beyond the first and the last event of a recording. Raises psycopg.Error."""
    return [Partial(*row) for row in connection.execute(_PARTIAL, [first_ms, last_ms])]


def export_lacking(folder: Path, holes: list[Hole], partial: list[Partial], skipped: list[Skipped]) -> None:
    """Write what is not in the klines' files, or in part. Raises OSError."""
    minutes = [(hole.from_time // MINUTE_MS * MINUTE_MS, hole.to_time // MINUTE_MS * MINUTE_MS) for hole in holes]
    rows = [(*hole, *ends) for hole, ends in zip(holes, minutes, strict=True)]
    _write(folder / HOLES, (*Hole._fields, "first_kline", "last_kline"), rows)
    _write(folder / PARTIAL, Partial._fields, partial)
    _write(folder / SKIPPED, Skipped._fields, skipped)


def _write(path: Path, header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a file of a few lines; without any there is none, and an older one is gone."""
    path.unlink(missing_ok=True)
    if rows:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def left_out(connection: Connection) -> list[tuple[str, int]]:
    """Return of which symbols how many closed klines are saturated, and are not written. Raises psycopg.Error."""
    return [(str(symbol), int(count)) for symbol, count in connection.execute(_SATURATED)]


def export_csv(connection: Connection, folder: Path, append: bool = False) -> int:
    """Write every closed kline below `folder` and return the number of files.

    Files of the same names are replaced, or with `append` go on with what comes later. Raises OSError, psycopg.Error.
    """
    symbols = [str(row[0]) for row in connection.execute("SELECT symbol FROM symbols ORDER BY symbol")]
    written = 0
    for symbol in symbols:
        if not is_name(symbol):
            log.warning("not written: %r cannot be the name of a folder", symbol[:NAME_MAX])
            continue
        for interval in INTERVAL_NAMES:
            written += _export(connection, folder / symbol / f"{symbol}-{interval}.csv", symbol, interval, append)
    return written


def _export(connection: Connection, path: Path, symbol: str, interval: str, append: bool) -> bool:
    """Write one file, if there is anything to write."""
    with psycopg.ClientCursor(connection).copy(_ROWS, [symbol, interval]) as copy:
        chunks = iter(copy)
        first = next(chunks, b"")
        if not first:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        goes_on = append and path.exists()
        with path.open("ab" if goes_on else "wb") as file:
            if not goes_on:
                file.write(",".join(COLUMNS).encode() + b"\n")
            file.write(first)
            for chunk in chunks:
                file.write(chunk)
    return True
