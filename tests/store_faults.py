"""Faults of the database in chaos, and a watch over what is said there: plain SQL, nothing of ours.

A row that is final and then has other numbers was final by mistake. PostgreSQL itself notes it, whatever is killed.
"""

from collections.abc import Callable

import psycopg

from shared.config import Config
from shared.postgres import database_url

TABLES = ("klines", "symbols", "engine_state")
NUMBERS = "open, high, low, close, volume, quote_volume, trade_count, taker_buy_volume, taker_buy_quote_volume"
NUMBERS_OF_FLAT = "volume, quote_volume, trade_count, taker_buy_volume, taker_buy_quote_volume"
_WATCH = f"""
CREATE TABLE broken_finals (symbol text, interval text, open_time timestamptz, before text, after text);
CREATE FUNCTION note_broken_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO broken_finals VALUES (OLD.symbol, OLD.interval, OLD.open_time, OLD::text, NEW::text);
    RETURN NULL;
END $$;
CREATE TRIGGER finals AFTER UPDATE ON klines FOR EACH ROW WHEN (
    OLD.final AND CASE WHEN NEW.trade_count > 0
        THEN ({", ".join(f"OLD.{name.strip()}" for name in NUMBERS.split(","))})
            IS DISTINCT FROM ({", ".join(f"NEW.{name.strip()}" for name in NUMBERS.split(","))})
        ELSE ({", ".join(f"OLD.{name.strip()}" for name in NUMBERS_OF_FLAT.split(","))})
            IS DISTINCT FROM ({", ".join(f"NEW.{name.strip()}" for name in NUMBERS_OF_FLAT.split(","))})
    END
) EXECUTE FUNCTION note_broken_final();
"""


def watch_finals(config: Config) -> None:
    """From here on, note every kline that was final and gets other numbers."""
    with _connected(config) as connection:
        connection.execute(_WATCH)


def broken_finals(config: Config, but: tuple[str, ...]) -> list[str]:
    """Return what was noted, `but` of symbols whose times fall: that takes back what was said rightly until then."""
    with _connected(config) as connection:
        rows = connection.execute("SELECT symbol, interval, before, after FROM broken_finals").fetchall()
    return [f"{row[0]} {row[1]} was final and changed: {row[2]} to {row[3]}" for row in rows if row[0] not in but]


def last_ids(config: Config) -> dict[str, int]:
    """Return the newest trade of each symbol that is in the tables; nothing if they cannot be asked."""
    try:
        with _connected(config) as connection:
            return dict(connection.execute("SELECT symbol, last_id FROM symbols").fetchall())
    except psycopg.Error:
        return {}


def saved_id(config: Config, symbol: str) -> int:
    """Return the newest trade of a symbol that is in the tables; -1 if they cannot be asked."""
    return last_ids(config).get(symbol, -1)


def is_explained(config: Config) -> bool:
    """Say whether no saved id is unexplained still; False if the tables cannot be asked."""
    sql = """SELECT count(*) FROM symbols WHERE jsonb_path_exists(unexplained, '$[*] ? (@[4] == "open")')"""
    try:
        with _connected(config) as connection:
            return connection.execute(sql).fetchone() == (0,)
    except psycopg.Error:
        return False


def empty(config: Config) -> None:
    """Take everything out of the tables. Raises psycopg.Error if the database is not there."""
    with _connected(config) as connection:
        connection.execute(f"TRUNCATE {', '.join(TABLES)}")


def backed_up(config: Config) -> Callable[[], None]:
    """Return what sets the tables back to what they hold, as a restore does. Raises psycopg.Error, both times."""
    with _connected(config) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for table in TABLES:
            connection.execute(f"DROP TABLE IF EXISTS kept_{table}")
            connection.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")

    def set_back() -> None:
        with _connected(config) as connection:
            connection.execute(f"TRUNCATE {', '.join(TABLES)}")
            for table in TABLES:
                connection.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")

    return set_back


def refuse(config: Config, symbol: str) -> None:
    """Let the database take no more marks of a symbol. Raises psycopg.Error."""
    with _connected(config) as connection:
        connection.execute("ALTER TABLE symbols DROP CONSTRAINT IF EXISTS refused")
        connection.execute(
            psycopg.sql.SQL("ALTER TABLE symbols ADD CONSTRAINT refused CHECK (symbol <> {}) NOT VALID").format(symbol)
        )


def take_all(config: Config) -> None:
    """Let the database take every symbol again. Raises psycopg.Error."""
    with _connected(config) as connection:
        connection.execute("ALTER TABLE symbols DROP CONSTRAINT IF EXISTS refused")


def _connected(config: Config) -> psycopg.Connection:
    return psycopg.connect(database_url(config), connect_timeout=5, options="-c lock_timeout=10s")
