"""A PostgreSQL of one's own, with settings, rights and contents that are not as klagg would have them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.database import database
from harness.processes import ROOT, wait_for, write_config
from services.persist import store, tables
from shared.config import load
from shared.postgres import embedded_url
from shared.wire import Load, Persisted, Restored, StoreState
from tests.persist.test_persist import SESSION, WANTED, System, _of
from tests.persist.test_store import batch, loaded, mark, rows

HOSTILE = {
    "client_encoding": "'LATIN1'",
    "DateStyle": "'German, DMY'",
    "timezone": "'Asia/Kathmandu'",
    "IntervalStyle": "'sql_standard'",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "statement_timeout": "'20s'",
    "search_path": "'elsewhere'",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a server, to which the name of a database and more may be put."""
    path = write_config(tmp_path_factory.mktemp("server"))
    with database(path):
        yield embedded_url(load({"KLAGG_CONFIG": str(path)}), "klagg")


def made(server: str, name: str, options: str = "") -> str:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name} {options}")
    return server.replace("/klagg?", f"/{name}?")


def as_role(url: str, role: str) -> str:
    return url.replace("postgresql://klagg@", f"postgresql://{role}@")


def check(folder: Path, url: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "check"],
        cwd=ROOT,
        env=os.environ | {"KLAGG_CONFIG": str(write_config(folder, database={"url": url}))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_session_is_ours_whatever_the_settings_say(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = made(server, "hostile")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
        for name, value in HOSTILE.items():
            connection.execute(f"ALTER DATABASE hostile SET {name} = {value}")
            connection.execute(f"ALTER ROLE klagg IN DATABASE hostile SET {name} = {value}")
    for name, value in {
        "PGCLIENTENCODING": "SQL_ASCII",
        "PGDATESTYLE": "Postgres, DMY",
        "PGTZ": "America/Lima",
        "PGOPTIONS": "-c DateStyle=German -c default_transaction_read_only=on",
    }.items():
        monkeypatch.setenv(name, value)
    assert check(tmp_path, url) == (0, "")
    placed = rows(3, close=5)
    with store.connect(url) as connection:
        store.save(connection, batch(placed, [mark("币安人生USDT", gaps=[(3, 4)])]))
        marks, found = loaded(connection)
        assert (marks[0].symbol, found.tobytes()) == ("币安人生USDT", placed.tobytes())
        assert connection.execute("SELECT tableoid::regclass::text FROM klines LIMIT 1").fetchone() == ("klines",)
        assert connection.execute("SELECT to_regclass('elsewhere.klines')").fetchone() == (None,)
        for name, wanted in (("TimeZone", "UTC"), ("DateStyle", "ISO, YMD"), ("client_encoding", "UTF8")):
            assert connection.execute(f"SHOW {name}").fetchone() == (wanted,)


@pytest.mark.parametrize("saved", [True, False])
def test_tables_that_hold_the_klines_of_a_market_take_no_others(server: str, saved: bool) -> None:
    url = made(server, "marketed")
    with store.connect(url, market="binance-usdm") as connection:
        store.save(connection, batch(rows(3, close=5), [mark("BTCUSDT")]))
        if not saved:  # By a klagg that did not say whose they are, or emptied since: the next one decides.
            connection.execute("UPDATE engine_state SET market = NULL")
    with store.connect(url, market="binance-usdm" if saved else "simulator"):
        pass
    other = "simulator" if saved else "binance-usdm"
    with pytest.raises(tables.Unfit, match=f"hold klines of .*, and exchange.name is {other}"):
        store.connect(url, market=other)
    reason, waits = tables.look(url, other)
    assert ("data_dir or database of its own" in reason, waits) == (True, False)


def test_a_schema_that_the_url_names_is_kept(server: str) -> None:
    url = made(server, "parted")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    with store.connect(url + "&options=-csearch_path%3Dmine") as connection:
        assert connection.execute("SELECT to_regclass('mine.klines')::text").fetchone() == ("klines",)


def _foreign(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE klines (id int)")
    return url


def _foreign_version(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE schema_version (version text)")
    return url


def _table_gone(url: str) -> str:
    store.connect(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE klines")
    return url


def _no_rights(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS stranger")
        connection.execute("CREATE ROLE stranger LOGIN")
    return url + "&options=-crole%3Dstranger"


def _no_writing(url: str) -> str:
    store.connect(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        role = _no_rights(url)
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO stranger")
    return role


UNFIT: list[tuple[str, Any, str]] = [
    ("ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0", str, "encoding is SQL_ASCII; klagg needs UTF8"),
    ("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", str, "encoding is LATIN1; klagg needs UTF8"),
    ("", _foreign, "there is a table klines that klagg has not made"),
    ("", _foreign_version, "there is a table schema_version that klagg has not made"),
    ("", _table_gone, "the table klines is not as klagg made it"),
    ("", _no_rights, "the role stranger cannot make klagg's tables: permission denied for schema public"),
    ("", _no_writing, "the role stranger may not read and write the table klines"),
]


@pytest.mark.parametrize(("options", "spoil", "words"), UNFIT)
def test_what_is_wrong_with_a_database_is_said_in_a_line_by_check_and_persist(
    server: str, tmp_path: Path, options: str, spoil: Any, words: str
) -> None:
    url = spoil(made(server, "unfit", options))
    code, said = check(tmp_path, url)
    assert code == 3
    assert words in said
    assert said.count("\n") == 1
    with ExitStack() as stack:
        at = System(tmp_path, stack, database={"url": url})
        persist = at.start("persist")
        wait_for("a word about it", lambda: words in persist.log or persist.process.poll() is not None)
        assert persist.process.poll() is None, persist.log
        assert persist.log.count("waiting for the database") == 1
        assert "Traceback" not in persist.log
        assert at.engine.of(StoreState) == []


def test_check_changes_nothing(server: str, tmp_path: Path) -> None:
    url = made(server, "untouched")
    assert check(tmp_path, url) == (0, "")
    with psycopg.connect(url) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)


@pytest.mark.parametrize(
    "url",
    [
        "postgressql://k:secret@h/d", "postgresql://k:sec@ret@h/d", "postgresql://k:sec/ret@h/d", "postgresql://k:sec%ret@h/d",
        "postgresql://k:secret:h/d", "k:secret@h/d", "postgresql://k;secret@h/d", "postgresql://h:port/d",
    ],
)  # fmt: skip
def test_a_mistyped_url_is_refused_without_a_word_of_it(tmp_path: Path, url: str) -> None:
    code, said = check(tmp_path, url)
    assert code == 2
    assert said.startswith("klagg: configuration: ")
    assert not any(part in said for part in ("secret", "ret@", "sec%ret", "sec/ret", "h:port"))


def test_two_persists_on_one_database_do_not_mix(server: str, tmp_path: Path) -> None:
    url = made(server, "shared")
    with ExitStack() as stack:
        systems = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            systems.append(System(tmp_path / name, stack, database={"url": url}))
        first, second = systems
        holder = first.start("persist")
        wait_for("the first", lambda: first.engine.of(StoreState))
        waiting = second.start("persist")
        wait_for("words", lambda: "another klagg saves into these tables" in waiting.log)
        first.engine.say(_of(SESSION, 1, close=1))
        wait_for("the first's batch", lambda: first.engine.acknowledged() == [1])
        assert second.engine.of(StoreState) == []
        assert waiting.log.count("another klagg") == 1
        code, said = check(tmp_path, url)
        assert (code, "another klagg saves into these tables" in said) == (3, True)
        # A session that the server has lost comes back although the other one waits, or both wait in words.
        holder.stop(signal.SIGKILL)
        wait_for("the second", lambda: second.engine.of(StoreState))
        second.engine.say(Load(SESSION + 1, WANTED))
        restored = wait_for("what is there", lambda: [part for part in second.engine.of(Restored) if part.last])[0]
        assert (restored.point.session, restored.point.batch) == (SESSION, 1)
        again = first.start("persist")
        wait_for("words", lambda: "another klagg saves into these tables" in again.log)
        second.engine.say(_of(SESSION + 1, 1, restored.point, close=2))
        wait_for("the second's batch", lambda: second.engine.of(Persisted))


def test_a_persist_whose_former_session_still_lives_takes_its_tables_back(server: str) -> None:
    url = made(server, "cut")
    # The session of a connection that is cut without being closed: the server has not noticed.
    former = store.connect(url, 77)
    with pytest.raises(tables.Unfit, match="another klagg saves into these tables"):
        store.connect(url, 78)

    def again() -> Any:
        try:
            return store.connect(url, 77)
        except tables.Unfit:
            return None

    wait_for("the tables", again).close()
    with pytest.raises(psycopg.OperationalError):
        former.execute("SELECT 1")
