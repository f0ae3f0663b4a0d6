"""The database that the tables are in: whether it is fit for them, which version they have, and whose they are.

Decides what klagg needs of a PostgreSQL, and says in a line what is wrong with one. Tables belong to one persist at a
time: it holds a lock on them for as long as it is connected, because two engines that save into the same tables would
spoil each other's klines without a word. Knows no kline.
"""

from importlib.resources import files
from typing import Any

import msgspec
import psycopg

from services.persist.pgcopy import STAGED
from shared.postgres import OPTIONS, error_text, session_settings
from shared.process import Unavailable
from shared.wire import SymbolMark

MIGRATIONS = sorted(files("services.persist").joinpath("migrations").iterdir(), key=lambda file: file.name)
"""`000N.sql` makes version N of version N - 1; a database goes through those that it lacks, in order and in place."""
SERVER_MIN = 15
"""The first PostgreSQL that knows MERGE."""
MIGRATION_LOCK = 0x6B6C616767
SESSION = OPTIONS | {
    # A server that is silent for so long, ms, is gone, and with it what was not committed.
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 10,
}
LOOK_LOCK_MS = 2_000
"""Who only looks does not wait for others, nor let them wait."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "klines": STAGED,
    "symbols": tuple(field.name for field in msgspec.structs.fields(SymbolMark)),
    "engine_state": ("exchange_time", "identity", "session", "batch", "market"),
}
"""What every version's tables end up with, at the least."""
_OWNED = "hashtextextended('klagg ' || coalesce(current_schema(), ''), 0)"

Connection = psycopg.Connection[tuple[Any, ...]]


class Unfit(Unavailable):
    """The database is there and cannot be used as it is."""


NOT_READY = (
    Unfit,
    psycopg.OperationalError,
    # Whatever has become of it, it may be mended while one waits: rights, a standby, tables that are being restored.
    psycopg.InternalError,
    psycopg.NotSupportedError,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.DuplicateTable,
    psycopg.errors.InvalidSqlStatementName,
)
"""What waiting may help against; anything else is a mistake of ours."""


def open_session(url: str, name: str) -> Connection:
    """Connect, with settings of our own and after a look at the server. Raises Unfit, psycopg.Error."""
    connection = psycopg.connect(url, autocommit=True, application_name=name, **SESSION)
    connection.execute(session_settings(url, read_only=False))
    connection.execute("SET client_min_messages = warning")
    version = connection.info.server_version // 10_000
    if version < SERVER_MIN:
        raise Unfit(f"the database is a PostgreSQL {version}; klagg needs {SERVER_MIN} or later")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise Unfit(
            f"the database's encoding is {encoding}; klagg needs UTF8: CREATE DATABASE ... TEMPLATE template0 ENCODING"
            " 'UTF8'"
        )
    if _one(connection, "SELECT pg_is_in_recovery()"):
        raise Unfit("the database is a standby, which nobody can write to: database.url must name its primary")
    return connection


def claim(connection: Connection, name: str) -> None:
    """Take the tables for as long as this session lasts. Raises Unfit if another session has them.

    A session of the same name, which only this process has, is a former one of ours that has not noticed its end.
    """
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = %s AND pid <> pg_backend_pid() AND datname = current_database()",
        [name],
    )
    if not _one(connection, f"SELECT pg_try_advisory_lock({_OWNED})"):
        holder = connection.execute(
            f"""
            SELECT coalesce(host(client_addr), 'this machine'), date_trunc('second', backend_start)::text
            FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND granted AND objsubid = 1
                AND (classid::int8 << 32 | objid::int8) = {_OWNED} AND datname = current_database()
            """
        ).fetchone()
        who = f", from {holder[0]} since {holder[1]}" if holder else ""
        raise Unfit(
            f"another klagg saves into these tables{who}: nothing is saved here; give each a database of its own"
        )


def prepare(connection: Connection) -> None:
    """Bring the tables to this version, and see that they are klagg's and may be written. Raises Unfit."""
    try:
        migrate(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise Unfit(f"{_role(connection)} cannot make klagg's tables: {error_text(error)}") from error
    lacking = connection.execute(
        "SELECT name, column_name FROM unnest(%s::text[], %s::text[]) AS wanted (name, column_name) WHERE NOT EXISTS"
        " (SELECT FROM pg_attribute WHERE attrelid = to_regclass(name) AND attname = column_name AND NOT attisdropped)",
        [[name for name, of in COLUMNS.items() for _ in of], [column for of in COLUMNS.values() for column in of]],
    ).fetchone()
    if lacking:
        raise Unfit(f"the table {lacking[0]} is not as klagg made it: it has no column {lacking[1]}, or is not there")
    barred = _one(
        connection,
        "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT (has_table_privilege(to_regclass(name), 'SELECT')"
        " AND has_table_privilege(to_regclass(name), 'INSERT') AND has_table_privilege(to_regclass(name), 'UPDATE'))",
        [list(COLUMNS)],
    )
    if barred:
        raise Unfit(f"{_role(connection)} may not read and write the table {barred}")
    if not _one(connection, "SELECT has_database_privilege(current_database(), 'TEMPORARY')"):
        raise Unfit(f"{_role(connection)} may not make temporary tables: GRANT TEMPORARY ON DATABASE")


def migrate(connection: Connection) -> None:
    """Bring the tables to this version, whichever they are. Raises Unfit if they are newer than this program."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        if not _one(connection, "SELECT to_regclass('schema_version')"):
            taken = _one(
                connection,
                "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL",
                [list(COLUMNS)],
            )
            if taken:
                raise Unfit(f"there is a table {taken} that klagg has not made: give klagg a database of its own")
            connection.execute(
                "CREATE TABLE schema_version (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
        elif not _one(
            connection,
            "SELECT count(*) = 2 FROM pg_attribute WHERE attrelid = to_regclass('schema_version')"
            " AND (attname, atttypid) IN (('version', 'int4'::regtype), ('applied_at', 'timestamptz'::regtype))",
        ):
            raise Unfit("there is a table schema_version that klagg has not made: give klagg a database of its own")
        version = int(str(_one(connection, "SELECT coalesce(max(version), 0) FROM schema_version")))
        known = len(MIGRATIONS)
        if version > known:
            raise Unfit(
                f"the database has version {version} of klagg's tables; this one knows {known}: use a newer one"
            )
        for number, file in enumerate(MIGRATIONS[version:], version + 1):
            connection.execute(file.read_bytes())
            connection.execute("INSERT INTO schema_version (version) VALUES (%s)", [number])


def hold(connection: Connection, market: str) -> None:
    """Save klines of this market, `exchange.name`, and no other, in this session. Raises Unfit if there are others.

    Symbols of two markets have the same names: a mark of one would prove klines of the other.
    """
    # Tables that were emptied are of the market that saves into them first.
    connection.execute("SELECT set_config('klagg.market', %s, false)", [market])
    connection.execute("UPDATE engine_state SET market = %s WHERE market IS NULL", [market])
    held = _one(connection, "SELECT market FROM engine_state")
    if held not in (None, market):
        raise Unfit(
            f"the tables hold klines of {held}, and exchange.name is {market}: give each a data_dir or database of its"
            " own"
        )


def look(url: str, market: str) -> tuple[str, bool]:
    """Return what keeps klagg from saving a market into a database, and whether waiting may end it.

    Empty if nothing does. Nothing is changed: what was tried is taken back.
    """
    connection: Connection | None = None
    try:
        connection = open_session(url, "klagg check")
        connection.execute(f"SET lock_timeout = {LOOK_LOCK_MS}")
        claim(connection, "klagg check")
        with connection.transaction(force_rollback=True):
            prepare(connection)
            hold(connection, market)
    except psycopg.OperationalError as error:
        # A server that knows us and refuses us says so; otherwise nobody is there, or not yet.
        return error_text(error, url), connection is not None or "FATAL" not in str(error)
    except (Unavailable, psycopg.Error) as error:
        return error_text(error, url), False
    finally:
        if connection is not None:
            connection.close()
    return "", False


def _role(connection: Connection) -> str:
    return f"the role {_one(connection, 'SELECT current_user')}"


def _one(connection: Connection, sql: str, values: list[Any] | None = None) -> Any:
    row = connection.execute(sql, values).fetchone()
    return row[0] if row else None
