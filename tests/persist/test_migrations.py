"""Tables of every older version become those of this one, in place, with what was saved in them."""

import re
from collections.abc import Iterator

import psycopg
import pytest

from harness.database import database
from harness.processes import write_config
from services.persist import store, tables

VERSIONS = range(1, len(tables.MIGRATIONS) + 1)
_OPENED = "timestamptz '2026-03-30 12:00Z' + minute * interval '1 minute'"
SAVED = f"""
INSERT INTO klines (symbol, interval, open_time, close_time, open, high, low, close, volume, quote_volume, trade_count,
    taker_buy_volume, taker_buy_quote_volume, first_id, last_id, id_count, closed, source)
SELECT symbol, '1m', {_OPENED}, {_OPENED} + interval '59.999 seconds', 10.5, 11, 10, 10.7, 3, 32.1, 5, 1, 10.7,
    minute * 5, minute * 5 + 4, 5, minute < 3, 'trades'
FROM generate_series(0, 3) AS minute, unnest(ARRAY['WHOLE', 'LACKING']) AS symbol;
INSERT INTO symbols (symbol, price_decimals, quantity_decimals, stream, active, grid_3d, seam_time, last_id, gaps)
SELECT symbol, 2, 3, lower(symbol) || '@aggTrade', true, '2026-03-30Z', '2026-03-30 12:00Z', 19, gaps::int8multirange
FROM (VALUES ('WHOLE', '{{}}'), ('LACKING', '{{[7,9)}}')) AS of_symbol (symbol, gaps);
INSERT INTO engine_state (exchange_time) VALUES ('2026-03-30 12:03:30Z');
"""
"""Four minutes of two symbols, the last one open: what the first version can hold."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with database(write_config(tmp_path_factory.mktemp("database"))) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[store.Connection]:
    """A connection that sees nothing but a schema of its own, which is empty."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA older; SET search_path = older")
        try:
            yield connection
        finally:
            connection.execute("DROP SCHEMA older CASCADE")


def saved_by(connection: store.Connection, version: int) -> None:
    """Make the tables of an older version, with what its klagg saved."""
    connection.execute(
        "CREATE TABLE schema_version (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    for number, file in enumerate(tables.MIGRATIONS[:version], 1):
        connection.execute(file.read_bytes())
        connection.execute("INSERT INTO schema_version (version) VALUES (%s)", [number])
        if number == 1:
            connection.execute(SAVED.encode())


def form(connection: store.Connection, schema: str) -> list[tuple[object, ...]]:
    """Return every column of klagg's tables, with its type, default and comment, and every index."""
    columns = connection.execute(
        "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid),"
        " col_description(pg_class.oid, attnum), obj_description(pg_class.oid)"
        " FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
        " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2",
        [schema],
    ).fetchall()
    indexes = connection.execute(
        "SELECT tablename, replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = %s"
        " ORDER BY tablename, indexname",
        [schema],
    ).fetchall()
    return columns + indexes


@pytest.mark.parametrize("version", VERSIONS)
def test_tables_of_every_version_become_those_of_this_one(connection: store.Connection, version: int) -> None:
    saved_by(connection, version)
    tables.prepare(connection)
    assert form(connection, "older") == form(connection, "public")
    klines = connection.execute("SELECT symbol, count(*), sum(last_id - first_id + 1) FROM klines GROUP BY symbol")
    assert sorted(klines.fetchall()) == [("LACKING", 4, 20), ("WHOLE", 4, 20)]
    versions = connection.execute("SELECT array_agg(version ORDER BY version) FROM schema_version").fetchone()
    assert versions == (list(VERSIONS),)


def test_tables_of_this_version_are_left_as_they_are(connection: store.Connection) -> None:
    saved_by(connection, len(tables.MIGRATIONS))
    before = connection.execute("SELECT max(applied_at) FROM schema_version").fetchone()
    tables.prepare(connection)
    assert connection.execute("SELECT max(applied_at) FROM schema_version").fetchone() == before


def test_what_the_first_version_saved_is_as_proven_as_its_ids_say(connection: store.Connection) -> None:
    saved_by(connection, 1)
    tables.prepare(connection)
    final = connection.execute("SELECT symbol, count(*) FILTER (WHERE final) FROM klines GROUP BY symbol").fetchall()
    assert dict(final) == {"WHOLE": 3, "LACKING": 0}
    proven = connection.execute("SELECT symbol, to_char(proven_time AT TIME ZONE 'UTC', 'HH24:MI') FROM symbols")
    assert dict(proven.fetchall()) == {"WHOLE": "12:03", "LACKING": "12:00"}


def test_a_migration_that_fails_leaves_the_tables_as_they_were(connection: store.Connection) -> None:
    saved_by(connection, 5)
    before = form(connection, "older")
    connection.execute("ALTER TABLE klines ADD COLUMN saturated text")
    with pytest.raises(psycopg.errors.DuplicateColumn):
        tables.migrate(connection)
    connection.execute("ALTER TABLE klines DROP COLUMN saturated")
    assert form(connection, "older") == before
    assert connection.execute("SELECT max(version) FROM schema_version").fetchone() == (5,)


def test_migrations_are_numbered_without_holes() -> None:
    assert [file.name for file in tables.MIGRATIONS] == [f"{version:04}.sql" for version in VERSIONS]
    for version, file in enumerate(tables.MIGRATIONS, 1):
        assert re.match(rf"-- Version {version}\b", file.read_text(encoding="utf-8")), file.name
