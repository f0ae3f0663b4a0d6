"""The embedded PostgreSQL as a process: it comes up, comes back, and goes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.processes import ROOT, Room, free_port, running, wait_for, write_config
from shared.config import Config, load
from shared.postgres import database_url, password_file, socket_folder, tcp_url


def config_of(folder: Path, **database: object) -> tuple[Path, Config]:
    path = write_config(folder, database=database)
    return path, load({"KLAGG_CONFIG": str(path)})


def server_of(config: Config) -> int:
    return int((config.postgres_path / "postmaster.pid").read_text().split()[0])


def ready(room: Room, times: int = 1) -> None:
    wait_for("the server", lambda: room.log.count("is ready in") >= times or room.process.poll() is not None)
    assert room.process.poll() is None, room.log


def answer(config: Config, sql: str = "SELECT 1") -> object:
    with psycopg.connect(database_url(config)) as connection:
        row = connection.execute(sql).fetchone()
        return row[0] if row else None


def test_it_makes_a_cluster_once_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        with psycopg.connect(database_url(config)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server = server_of(config)
        assert rooms["postgres"].stop() == 0
        assert not Path(f"/proc/{server}").exists()
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"], 2)
        assert answer(config, "SELECT answer FROM kept") == 42
        assert rooms["postgres"].log.count("made an empty") == 1


def test_a_killed_server_comes_back_by_itself(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        for round_ in (2, 3):
            os.kill(server_of(config), signal.SIGKILL)
            ready(rooms["postgres"], round_)
            assert answer(config) == 1


def test_a_server_whose_room_was_killed_ends_and_the_next_room_takes_over(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    first = Room("postgres", path)
    ready(first)
    server = server_of(config)
    first.stop(signal.SIGKILL)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"], 2)
        assert server_of(config) != server
        assert answer(config) == 1


def test_a_file_left_by_a_dead_server_does_not_stop_the_next(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
    # Its number belongs to another process by now: this one.
    lines = [str(os.getpid()), str(config.postgres_path), "1", "5432", str(socket_folder(config)), "", "0 0", "ready"]
    (config.postgres_path / "postmaster.pid").write_text("\n".join(lines))
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"], 2)
        assert answer(config) == 1


def test_a_cluster_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    for name in ("base", "half-made"):
        (config.postgres_path / name).mkdir(parents=True)
    shutil.rmtree(config.postgres_path / "base")
    (config.postgres_path / "half-made" / "PG_VERSION").write_text("18")
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        assert answer(config) == 1


def test_sigterm_waits_for_clients_for_a_moment_and_drops_them_then(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        client = psycopg.connect(database_url(config))
        rooms["postgres"].process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert client.execute("SELECT 1").fetchone() == (1,)
        assert rooms["postgres"].process.wait(8) == 0
        client.close()


def by_tcp(config: Config, user: str, password: str = "", database: str = "klagg") -> object:
    url = f"postgresql://{user}@127.0.0.1:{config.database.port}/{database}"
    with psycopg.connect(url, password=password, connect_timeout=5) as connection:
        row = connection.execute("SELECT answer FROM kept").fetchone()
        return row[0] if row else None


def test_by_tcp_comes_who_knows_the_password_and_only_reads(tmp_path: Path) -> None:
    path, config = config_of(tmp_path, port=free_port())
    # A cluster as an older klagg made it let everybody in.
    for start in (1, 2):
        with running("postgres", config=path) as rooms:
            ready(rooms["postgres"], start)
            with psycopg.connect(database_url(config), autocommit=True) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
            file = password_file(config)
            assert file.stat().st_mode & 0o777 == 0o600
            assert socket_folder(config).stat().st_mode & 0o777 == 0o700
            password = file.read_text().strip()
            assert password not in rooms["postgres"].log
            assert tcp_url(config) in rooms["postgres"].log
            assert by_tcp(config, "reader", password) == 42
            for user, word, database in (
                ("klagg", "", "klagg"),
                ("klagg", password, "klagg"),
                ("klagg", "", "postgres"),
                ("reader", "", "klagg"),
                ("reader", "wrong", "klagg"),
                ("reader", password, "postgres"),
            ):
                with pytest.raises(psycopg.OperationalError):
                    by_tcp(config, user, word, database)
            with psycopg.connect(tcp_url(config), password=password, autocommit=True) as connection:
                for statement in (
                    "COPY kept FROM PROGRAM 'echo 1'",
                    "INSERT INTO kept VALUES (1)",
                    "SELECT pg_read_file('PG_VERSION')",
                    "ALTER ROLE reader SUPERUSER",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(statement)
        (config.postgres_path / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")


def test_a_password_file_of_somebody_elses_making_is_kept_and_closed(tmp_path: Path) -> None:
    path, config = config_of(tmp_path, port=free_port())
    password_file(config).parent.mkdir(parents=True)
    password_file(config).write_text("my own\n")
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        assert password_file(config).stat().st_mode & 0o777 == 0o600
        with psycopg.connect(tcp_url(config), password="my own") as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("reader",)


def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    path, config = config_of(deep)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        assert answer(config) == 1
    shutil.rmtree(socket_folder(config))


def test_it_is_not_needed_where_another_database_is_named(tmp_path: Path) -> None:
    path, config = config_of(tmp_path, url="postgresql://somewhere/else")
    room = Room("postgres", path)
    assert room.process.wait(20) == 0
    assert "not needed" in room.log
    assert not config.postgres_path.exists()


def test_a_second_one_on_the_same_folder_says_so(tmp_path: Path) -> None:
    path, _ = config_of(tmp_path)
    with running("postgres", config=path) as rooms:
        ready(rooms["postgres"])
        second = Room("postgres", path)
        assert second.process.wait(20) == 3
        assert "another postgres" in second.log


def test_a_cluster_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path, config = config_of(tmp_path)
    config.postgres_path.mkdir(parents=True)
    (config.postgres_path / "PG_VERSION").write_text("9\n")
    room = Room("postgres", path)
    assert room.process.wait(20) == 3
    assert "was made by PostgreSQL 9" in room.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try another user")
def test_it_runs_as_an_ordinary_user() -> None:
    # Not below pytest's own folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="klagg-test-"))
    try:
        path, config = config_of(folder)
        shutil.chown(folder, "nobody")
        environ = {"KLAGG_CONFIG": str(path), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "services.postgres"]
        ordinary: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        with (folder / "postgres.log").open("wb") as log:
            try:
                process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log, **ordinary)
            except PermissionError:
                pytest.skip("the user nobody cannot reach this Python")
        try:
            wait_for(
                "the server",
                lambda: b"is ready in" in (folder / "postgres.log").read_bytes() or process.poll() is not None,
            )
            assert process.poll() is None, (folder / "postgres.log").read_text()
            assert answer(config) == 1
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(folder)
