"""Klines as files, in the form of the exchange's archive.

One file a symbol and interval, `<folder>/<SYMBOL>/<SYMBOL>-<interval>.csv`: 12 columns with a header, times in ms,
closed klines only (protocol §7). PostgreSQL writes the lines; nothing is held in memory.
"""

import logging
from pathlib import Path

import psycopg

from services.persist.store import Connection
from shared.interval import INTERVAL_NAMES
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
    FROM klines WHERE symbol = %s AND interval = %s AND closed ORDER BY open_time
) TO STDOUT (FORMAT csv)
"""


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
