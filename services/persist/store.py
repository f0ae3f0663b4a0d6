"""The tables: written and read back. All of klagg's SQL that writes klines is here; who makes the tables is tables.py.

Decides how klines look in SQL. Every batch is one transaction: its rows, the marks of their symbols, the exchange's
time, and its own number. A batch whose engine knows the store by another number than it has is not saved. Rows go
through a temporary table, because COPY cannot overwrite. Writing a row again overwrites it: a batch may come twice.
"""

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import psycopg

from services.persist.pgcopy import (
    DECIMALS,
    EPOCH_2000_MS,
    READ,
    SOURCES,
    STAGED,
    STATES,
    checked,
    close_times,
    staged,
    unstaged,
)
from services.persist.tables import Connection as Connection
from services.persist.tables import claim, hold, open_session, prepare
from shared.arrays import Rows
from shared.bounds import TIME_MAX
from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED, FINAL, SATURATED, UNEXPLAINED
from shared.wire import AuditMark, DirtyBatch, Restored, StorePoint, StoreState, SymbolMark, Unexplained, placed_rows

PART_ROWS_MAX = 32_000
"""Rows of a part of the answer to `Load`, unless a single symbol has more: 4 MB."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = logging.getLogger(__name__)

_COLUMNS = ", ".join(STAGED)
_KEY = ("symbol", "interval", "open_time")

_TYPES = {"symbol": "text", "interval": "int4", "open_time": "timestamptz", "close_time": "timestamptz"}
_TYPES |= dict.fromkeys(DECIMALS, "numeric") | dict.fromkeys(STATES, "bool") | {"source": "int4", "revision": "int4"}
_STAGING = f"""
CREATE TEMPORARY TABLE staging ({", ".join(f"{name} {_TYPES.get(name, 'int8')}" for name in STAGED)})
ON COMMIT DELETE ROWS
"""


def _array(names: Iterable[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"(ARRAY[{quoted}])"


def _upsert() -> str:
    values = {"interval": f"{_array(INTERVAL_NAMES)}[interval + 1]", "source": f"{_array(SOURCES)}[source + 1]"}
    return f"""
    MERGE INTO klines AS k
    USING (SELECT {", ".join(f"{values.get(name, name)} AS {name}" for name in STAGED)} FROM staging) AS s
    ON {" AND ".join(f"k.{name} = s.{name}" for name in _KEY)}
    WHEN MATCHED THEN UPDATE SET {", ".join(f"{name} = s.{name}" for name in STAGED if name not in _KEY)}
    WHEN NOT MATCHED THEN INSERT ({_COLUMNS}) VALUES ({", ".join(f"s.{name}" for name in STAGED)})
    """


_UPSERT = _upsert()
"""ON CONFLICT would lock each row before it updates it, which is written to the log as well."""


def _moment_of(column: str) -> str:
    return f"timestamptz 'epoch' + {column} * interval '1 millisecond' AS {column}"


_MARK = tuple(field.name for field in msgspec.structs.fields(SymbolMark))
_MARKS = f"""
WITH said AS MATERIALIZED (
    SELECT symbol, price_decimals, quantity_decimals, stream, active, {_moment_of("grid_3d")},
        {_moment_of("seam_time")}, last_id, (
            SELECT coalesce(range_agg(int8range((gap ->> 0)::int8, (gap ->> 1)::int8, '[]')), '{{}}')
            FROM json_array_elements(gaps) AS gap
        ) AS gaps, lacking, {_moment_of("proven_time")}, audit, unexplained
    FROM json_to_recordset(%s::json) AS mark (symbol text, price_decimals int2, quantity_decimals int2, stream text,
        active bool, grid_3d int8, seam_time int8, last_id int8, gaps json, lacking jsonb, proven_time int8,
        audit jsonb, unexplained jsonb)
), moved AS MATERIALIZED (
    SELECT said.symbol, said.proven_time FROM said LEFT JOIN symbols AS before USING (symbol)
    WHERE said.lacking = '[]' AND (before.lacking IS DISTINCT FROM said.lacking
        OR date_bin('1 minute', before.proven_time, 'epoch') <> date_bin('1 minute', said.proven_time, 'epoch')
        OR said.symbol = ANY(%s))
), proven AS (
    UPDATE klines SET final = true FROM moved
    WHERE klines.symbol = moved.symbol AND NOT (final OR unexplained OR saturated) AND closed
        AND close_time < moved.proven_time
)
INSERT INTO symbols ({", ".join(_MARK)}) SELECT {", ".join(_MARK)} FROM said
ON CONFLICT (symbol) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _MARK if name != "symbol")}, saved_at = now()
"""
"""Klines may leave the engine's memory before they are proven, of symbols that trade too seldom: the store proves them.

They end with minutes. So there is something to prove where a mark passes the end of one, where what was lacking is
there, and where the batch itself brought a row that its mark proves: those symbols are named.
"""

_FLAG = """
UPDATE klines SET unexplained = true, final = false
FROM json_to_recordset(%s::json) AS ids (symbol text, from_time int8, to_time int8)
WHERE klines.symbol = ids.symbol AND NOT unexplained
    AND open_time <= timestamptz 'epoch' + to_time * interval '1 millisecond'
    AND close_time >= timestamptz 'epoch' + from_time * interval '1 millisecond'
"""
"""Klines may leave the engine's memory before it turns out that ids which may belong to them are unexplained."""

_TABLES = "concat_ws(' ', identity, pg_relation_filenode('klines'), pg_relation_filenode('symbols'))"
"""Emptied or restored tables are other files, whoever's identity stands beside them; so are those of a VACUUM FULL,
after which rows are written again for nothing."""
_SAVED = f"""
INSERT INTO engine_state (exchange_time, session, batch, market)
VALUES (%s, %s, %s, nullif(current_setting('klagg.market', true), ''))
ON CONFLICT (only_row) DO UPDATE SET exchange_time = excluded.exchange_time, session = excluded.session,
    batch = excluded.batch
RETURNING {_TABLES.replace("identity", "engine_state.identity")}
"""
_MS = "(extract(epoch FROM {}(open_time)) * 1000)::int8"
# Whatever comes after a kline that was still open, the store need not have.
_UNFINISHED = f"""
SELECT symbol, interval, {_MS.format("min")}, CASE WHEN bool_and(closed) THEN {_MS.format("max")} ELSE {TIME_MAX} END
FROM klines WHERE NOT final GROUP BY symbol, interval
UNION ALL
SELECT symbol, range ->> 0, (range ->> 1)::int8, (range ->> 2)::int8
FROM symbols, jsonb_array_elements(lacking) AS range
"""


_NEWEST = f"""
    COPY (
        SELECT (of_part.number - 1) * {len(INTERVAL_NAMES)} + i.number - 1, newest.klines
        FROM unnest(%s::text[]) WITH ORDINALITY AS of_part (name, number)
        CROSS JOIN unnest({_array(INTERVAL_NAMES)}, %s::int[]) WITH ORDINALITY AS i (name, rows, number)
        CROSS JOIN LATERAL (
            SELECT string_agg(record_send(k), '') AS klines FROM (
                SELECT {", ".join(READ)} FROM klines WHERE symbol = of_part.name AND interval = i.name
                ORDER BY open_time DESC LIMIT i.rows
            ) AS k
        ) AS newest
        WHERE newest.klines IS NOT NULL
    ) TO STDOUT (FORMAT BINARY)
"""


def connect(url: str, owner: int = 0, market: str = "") -> Connection:
    """Connect, bring the tables to this version, and prepare for batches. Raises Unavailable, psycopg.Error.

    `owner`: a number of this process's own, which takes the tables for as long as the connection lasts. `market`: whose
    klines are saved, `exchange.name`; if it is not told, whose they are is not looked at.
    """
    name = f"klagg persist {owner}" if owner else "klagg persist"
    connection = open_session(url, name)
    try:
        if owner:
            claim(connection, name)
        prepare(connection)
        if market:
            hold(connection, market)
        # Batches change the size of the staging table, and nobody counts its rows: without these, a plan might read all
        # of klines instead of looking for each row in the index.
        for scan in ("hashjoin", "mergejoin", "seqscan"):
            connection.execute(f"SET enable_{scan} = off")
        connection.execute(_STAGING)
    except BaseException:
        connection.close()
        raise
    return connection


class Changed(Exception):
    """The store is not what the batch is for: it was set back or emptied, or another engine has saved into it."""


def save(connection: Connection, batch: DirtyBatch) -> str:
    """Save a batch in one transaction and return which tables it is in. Saving it twice is saving it once.

    Raises WireError, Changed, and psycopg.OperationalError if the database is not there.
    """
    rows = checked(placed_rows(batch.rows), batch.marks)
    with connection.transaction(), connection.cursor() as cursor:
        stored, _ = _point(connection)
        if not stored.continues(batch.after, batch.session):
            raise Changed
        if len(rows):
            with cursor.copy(f"COPY staging ({_COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy:
                for block in staged(rows, batch.marks):
                    copy.write(block)
            cursor.execute(_UPSERT)
            assert cursor.rowcount == len(rows), f"{cursor.rowcount} of {len(rows)} rows were saved"
        unexplained = _unexplained(batch.marks)
        if unexplained:
            cursor.execute(_FLAG, [msgspec.json.encode(unexplained).decode()])
        cursor.execute(_MARKS, [msgspec.json.encode(batch.marks).decode(), _proven_by_marks(rows, batch.marks)])
        cursor.execute(_SAVED, [_moment(batch.exchange_time), batch.session, batch.batch])
        return str(cursor.fetchone()[0])  # type: ignore[index]


def load(connection: Connection, session: int, wanted: list[int]) -> Iterator[Restored]:
    """Yield every symbol's mark and its newest rows, `wanted` of each interval, as one consistent cut.

    Raises psycopg.OperationalError if the database goes away.
    """
    symbols = max(1, PART_ROWS_MAX // sum(wanted))
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        point, exchange_time = _point(connection)
        marks = _marks(connection)
        for begin in range(0, len(marks), symbols):
            part = marks[begin : begin + symbols]
            # Parameters of COPY are not bound by the server: they are written into its text.
            with psycopg.ClientCursor(connection).copy(_NEWEST, [_names(part), wanted]) as copy:
                rows, unfit = unstaged(b"".join(copy), part)
            if unfit:
                log.warning("%d klines of %s and others have numbers beyond 64 bits", unfit, part[0].symbol)
            yield Restored(session, part, rows.tobytes(), False, exchange_time, point)
        yield Restored(session, [], b"", True, exchange_time, point)


def state(connection: Connection, session: int) -> StoreState:
    """Return what the store has last, and what of it is not done. Raises psycopg.OperationalError."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        point, exchange_time = _point(connection)
        return StoreState(session, point, exchange_time, connection.execute(_UNFINISHED).fetchall())


def _point(connection: Connection) -> tuple[StorePoint, int]:
    """Return what the store has last, and the exchange's time then."""
    row = connection.execute(f"SELECT {_TABLES}, session, batch, exchange_time FROM engine_state").fetchone()
    return (StorePoint(*row[:3]), _ms(row[3])) if row else (StorePoint(), 0)


def _marks(connection: Connection) -> list[SymbolMark]:
    rows = connection.execute(
        "SELECT symbol, price_decimals, quantity_decimals, stream, active, grid_3d, seam_time, last_id, gaps, lacking,"
        " proven_time, audit, unexplained FROM symbols ORDER BY symbol"
    )
    return [_mark(*row) for row in rows]


def _mark(*row: Any) -> SymbolMark:
    symbol, price, quantity, stream, active, grid_3d, seam_time, last_id, gaps, lacking, *rest = row
    proven_time, audit, unexplained = rest
    return SymbolMark(
        symbol,
        price,
        quantity,
        stream,
        active,
        _ms(grid_3d),
        _ms(seam_time),
        last_id,
        [(gap.lower, gap.upper - 1) for gap in gaps],
        [(interval, start, end) for interval, start, end in lacking],
        _ms(proven_time),
        msgspec.convert(audit, AuditMark),
        msgspec.convert(unexplained, list[Unexplained]),
    )


def _unexplained(marks: list[SymbolMark]) -> list[dict[str, Any]]:
    """Return between which times ids of symbols are unexplained, from times on that may be older than memory."""
    return [
        {"symbol": mark.symbol, "from_time": ids.from_time, "to_time": ids.to_time}
        for mark in marks
        for ids in mark.unexplained
        if ids.outcome == "open"
    ]


def _names(marks: list[SymbolMark]) -> list[str]:
    return [mark.symbol for mark in marks]


def _proven_by_marks(rows: Rows, marks: list[SymbolMark]) -> list[str]:
    """Name the symbols of closed rows that their marks prove although they do not say so."""
    waiting = rows[rows["kline"]["flags"] & (CLOSED | FINAL | UNEXPLAINED | SATURATED) == CLOSED]
    if not len(waiting):
        return []
    proven_times = np.array([mark.proven_time for mark in marks], np.int64)
    ends = close_times(waiting["interval"], waiting["kline"]["open_time"])
    proven = ends < proven_times[waiting["symbol"]]
    return [marks[symbol].symbol for symbol in np.unique(waiting["symbol"][proven]).tolist()]


def _moment(time_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=time_ms)


def _ms(moment: object) -> int:
    assert isinstance(moment, datetime)
    return (moment - EPOCH) // timedelta(milliseconds=1)


assert _moment(EPOCH_2000_MS) == datetime(2000, 1, 1, tzinfo=UTC)
