"""History from the database: which requests are valid, and the SQL that answers them.

Decides what a request for klines must look like and how it is put to the database. Knows no viewer and no live row. The
database may be unavailable at any time: every answer is rows or `DatabaseUnavailable` with the reason in words, and a
new attempt to connect is made no sooner than `RETRY_S` after the last.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import msgspec
import psycopg

from services.viz.rows import ROW_FIELDS, Row
from shared.interval import INTERVAL_INDEX, INTERVAL_NAMES
from shared.names import NAME_MAX, is_name
from shared.postgres import OPTIONS, error_text, session_settings

LIMIT_MAX = 1_500
LIMIT_DEFAULT = 500
"""Klines of one answer."""
END_MAX = 253_402_300_799_999
"""The last ms of the year 9999, the end of a datetime."""
QUERY_TIMEOUT_MS = 5_000
ANSWER_MAX_S = 6.0
"""After `QUERY_TIMEOUT_MS` the server cancels a query; one that has not answered by then is not there."""
CONNECT_TIMEOUT_S = 3
RETRY_S = 0.5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = logging.getLogger(__name__)


class BadRequest(ValueError):
    """A request that cannot be answered, with the reason in words for its sender."""


class DatabaseUnavailable(RuntimeError):
    """The database cannot answer at present, with the reason."""


class HistoryRequest(msgspec.Struct, frozen=True):
    symbol: str
    interval: str
    limit: int = LIMIT_DEFAULT
    end: int = END_MAX
    """Only klines that open at or before it, ms."""


def history_request(query: Mapping[str, str]) -> HistoryRequest:
    """Read a request from a URL's query. Raises BadRequest."""
    unknown = sorted(set(query) - {"symbol", "interval", "limit", "end"})
    if unknown:
        raise BadRequest(f"there is no parameter {unknown[0][:40]!r}; there are symbol, interval, limit and end")
    return HistoryRequest(
        symbol=checked_symbol(query.get("symbol", "")),
        interval=checked_interval(query.get("interval", "")),
        limit=_whole("limit", query.get("limit", str(LIMIT_DEFAULT)), 1, LIMIT_MAX),
        end=_whole("end", query.get("end", str(END_MAX)), 0, END_MAX),
    )


def checked_symbol(symbol: object) -> str:
    """Return the symbol if its name is valid; whether it exists is not known here. Raises BadRequest."""
    if not isinstance(symbol, str) or not symbol:
        raise BadRequest("symbol is missing: a name such as BTCUSDT")
    if not is_name(symbol):
        raise BadRequest(f"symbol {symbol[:NAME_MAX]!r} cannot be the name of a symbol")
    return symbol


def checked_interval(interval: object) -> str:
    """Return the interval if there is one of this name. Raises BadRequest."""
    if not isinstance(interval, str) or interval not in INTERVAL_INDEX:
        raise BadRequest(f"interval {str(interval)[:20]!r} is none of {' '.join(INTERVAL_NAMES)}")
    return interval


def _whole(name: str, text: str, lowest: int, highest: int) -> int:
    # isdecimal alone allows digits of other scripts, and int() has a limit on the number of digits.
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not lowest <= value <= highest:
        raise BadRequest(f"{name} {text[:30]!r} is not a whole number from {lowest} to {highest}")
    return value


_COLUMNS = {
    "open_time": "(extract(epoch from open_time) * 1000)::bigint",
    "close_time": "(extract(epoch from close_time) * 1000)::bigint",
    # Missing ids in a kline, or between it and its neighbours.
    "gap": "not final and id_count > 0 and exists (select from symbols where symbols.symbol = klines.symbol"
    " and gaps && int8range(greatest(klines.first_id - 1, 0), klines.last_id + 1, '[]'))",
}
_TEXTS = {
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "taker_buy_volume",
    "taker_buy_quote_volume",
    "source",
}

HISTORY_SQL = f"""
    select {", ".join(_COLUMNS.get(name) or (f"{name}::text" if name in _TEXTS else name) for name in ROW_FIELDS)}
    from klines
    where symbol = %s and "interval" = %s and open_time <= %s
    order by open_time desc
    limit %s
"""

# Steps over the primary key from symbol to symbol: `distinct` would read every row.
SYMBOLS_SQL = """
    with recursive walk as (
        (select symbol from klines order by symbol limit 1)
        union all
        select (select symbol from klines where symbol > walk.symbol order by symbol limit 1)
        from walk where walk.symbol is not null
    )
    select symbol, coalesce((
        select close::text from klines
        where symbol = walk.symbol and "interval" = '1m'
        order by open_time desc limit 1
    ), '')
    from walk where symbol is not null
"""


class Reader:
    """One connection to the database, opened when it is needed and again after it was lost."""

    def __init__(self, url_of: Callable[[], str]) -> None:
        self._url_of = url_of
        self._url = ""
        """Of the last attempt to connect."""
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._tried_at = float("-inf")
        self.error = "not connected yet"
        """Why the last query was not answered; empty if it was."""

    async def history(self, request: HistoryRequest) -> list[Row]:
        """Return the newest saved klines that were asked for, ascending. Raises DatabaseUnavailable."""
        end = EPOCH + timedelta(milliseconds=request.end)
        rows = await self._query(HISTORY_SQL, (request.symbol, request.interval, end, request.limit))
        return [Row(**dict(zip(ROW_FIELDS, values, strict=True))) for values in reversed(rows)]

    async def symbols(self) -> dict[str, str]:
        """Return the last saved price of every symbol. Raises DatabaseUnavailable."""
        return dict(await self._query(SYMBOLS_SQL, ()))

    async def probe(self) -> None:
        """Check that history can be read. Raises DatabaseUnavailable."""
        await self._query("select 1 from klines limit 1", ())

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _query(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        async with self._lock:
            try:
                async with asyncio.timeout(ANSWER_MAX_S):
                    connection = await self._connected()
                    cursor = await connection.execute(sql, values)
                    rows = await cursor.fetchall()
            except psycopg.errors.UndefinedTable:
                self._fail("its tables are not there yet: persist has not made them")
            except TimeoutError:
                await self.close()
                self._fail(f"it has said nothing for {ANSWER_MAX_S:.0f} s")
            except (psycopg.Error, OSError) as error:
                # The state of the connection is not known: a new one is opened.
                await self.close()
                self._fail(error_text(error, self._url))
        if self.error:
            log.info("the database answers")
            self.error = ""
        return rows

    def _fail(self, reason: str) -> NoReturn:
        if reason != self.error:
            log.warning("no history: %s", reason)
        self.error = reason
        raise DatabaseUnavailable(reason)

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            if time.monotonic() - self._tried_at < RETRY_S:
                raise DatabaseUnavailable(self.error)
            self._tried_at = time.monotonic()
            url = self._url = self._url_of()
            options = OPTIONS | {"connect_timeout": CONNECT_TIMEOUT_S}
            self._connection = await psycopg.AsyncConnection.connect(
                url, autocommit=True, application_name="klagg viz", **options
            )
            await self._connection.execute(session_settings(url, read_only=True))
            await self._connection.execute(f"set statement_timeout = {QUERY_TIMEOUT_MS}")
        return self._connection
