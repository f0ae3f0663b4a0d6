"""What becomes of the store under the whole system: read-only, full, set back, emptied. It is logged, and made good."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.processes import ROOT, Room, free_port, wait_for, write_config
from harness.truth import ask, differences, settle, unproven
from shared.config import load
from shared.postgres import database_url

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(400)]

ROOMS = ("persist", "simulator", "engine", "ingest", "viz")
TABLES = ("klines", "symbols", "engine_state")
DISK_MB = 160
SAID_MAX_S, WELL_MAX_S, WHOLE_MAX_S = 15.0, 5.0, 60.0


class System:
    """The whole system as processes, with a few busy symbols. It saves in a role that rights can be taken from."""

    def __init__(self, folder: Path, stack: ExitStack, own_disk: bool = False) -> None:
        for name in ("store", "system"):
            (folder / name).mkdir()
        at = write_config(folder / "store")
        self.admin = database_url(load({"KLAGG_CONFIG": str(at)}))
        self.disk = load({"KLAGG_CONFIG": str(at)}).postgres_path
        if own_disk:
            self.disk.mkdir(parents=True)
            self.server = _on_a_disk_of(self.disk, at)
            stack.callback(self.server.wait, 30)
            stack.callback(self.server.terminate)
        else:
            stack.callback(Room("postgres", at).stop)
        wait_for("the database", self._has_user, 60)
        url = f"{self.admin}&options=-c%20role%3Dwriter"
        simulator = {"symbols": 8, "trades_per_second": 200.0, "history_days": 2, "quirks": False}
        path = write_config(folder / "system", simulator=simulator, viz={"port": free_port()}, database={"url": url})
        self.config = load({"KLAGG_CONFIG": str(path)})
        self.rooms = {name: Room(name, path) for name in ROOMS}
        stack.callback(self.stop)
        wait_for("all to be well", self.is_well, 120)

    def _has_user(self) -> bool:
        try:
            self.query("CREATE ROLE writer LOGIN", "ALTER DATABASE klagg OWNER TO writer")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        for room in reversed(self.rooms.values()):
            room.stop(timeout=30)

    def reasons(self) -> list[str] | None:
        """Return what health says is not well; None if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.config.viz.port}/readyz", timeout=3) as answer:
                return list(json.load(answer)["reasons"])
        except urllib.error.HTTPError as error:
            return list(json.load(error)["reasons"])
        except OSError:
            return None

    def is_well(self) -> bool:
        return self.reasons() == []

    def query(self, *statements: str) -> list[Any]:
        with psycopg.connect(self.admin, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def logged(self, room: str, words: str) -> int:
        return self.rooms[room].log.count(words)


def _on_a_disk_of(folder: Path, config: Path) -> "subprocess.Popen[bytes]":
    """Start the database's room in a view of its own of the file system, in which its folder is a small disk."""
    command = f'mount -t tmpfs -o size={DISK_MB}m none "$1" && exec "$2" -m services.postgres'
    environ = {**os.environ, "KLAGG_CONFIG": str(config)}
    arguments = ["unshare", "--mount", "sh", "-c", command, "sh", str(folder), sys.executable]
    with (config.parent / "postgres.log").open("ab") as log:
        return subprocess.Popen(arguments, cwd=ROOT, env=environ, stdout=log, stderr=log)


def seconds_until(what: str, true: Callable[[], object], timeout: float = 60.0) -> float:
    began = time.monotonic()
    wait_for(what, true, timeout, every=0.1)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with ExitStack() as stack:
        yield System(tmp_path_factory.mktemp("store"), stack)


def test_a_store_that_only_reads_is_reported_within_15_s_and_nothing_5_s_after_it_writes(system: System) -> None:
    wait_for("all to be well", system.is_well, 60)
    system.query(f"REVOKE INSERT, UPDATE, DELETE ON {', '.join(TABLES)} FROM writer")
    said = seconds_until("the reason", lambda: any("nothing was saved" in reason for reason in system.reasons() or ()))
    assert system.logged("persist", "permission denied") == 1
    system.query(f"GRANT INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO writer")
    well = seconds_until("all to be well", system.is_well)
    print(f"read-only: not ok after {said:.1f} s, ok after {well:.1f} s")
    assert said <= SAID_MAX_S
    assert well <= WELL_MAX_S


def batch_of(system: System) -> int:
    """Return the number of the last batch that was saved."""
    return int(system.query("SELECT batch FROM engine_state")[0][0])


@pytest.mark.parametrize("how", ["set back", "emptied"])
def test_a_store_that_went_backwards_is_whole_again_within_a_minute(system: System, how: str) -> None:
    wait_for("all to be well", system.is_well, 60)
    before = system.logged("engine", "the store was set back")
    if how == "set back":
        system.query(*(f"DROP TABLE IF EXISTS kept_{name}" for name in TABLES))
        system.query("BEGIN", *(f"CREATE TABLE kept_{name} AS SELECT * FROM {name}" for name in TABLES), "COMMIT")
        saved = batch_of(system)
        wait_for("two more batches", lambda: batch_of(system) >= saved + 2)
        back = [
            text for name in TABLES for text in (f"TRUNCATE {name}", f"INSERT INTO {name} SELECT * FROM kept_{name}")
        ]
        system.query("BEGIN", *back, "COMMIT")
    else:
        system.query(f"TRUNCATE {', '.join(TABLES)}")
    whole = seconds_until("it to be logged", lambda: system.logged("engine", "the store was set back") > before)
    settle(system.config, WHOLE_MAX_S - whole)
    whole += seconds_until("all to be there", lambda: not differences(system.config)[0], WHOLE_MAX_S - whole)
    ask(system.config, "resume", "POST")
    print(f"{how}: whole after {whole:.1f} s")
    assert system.logged("engine", "the store was set back") == before + 1
    assert unproven(system.config) == []


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can make a small disk")
def test_a_full_disk_is_reported_within_15_s(tmp_path: Path) -> None:
    with ExitStack() as stack:
        system = System(tmp_path, stack, own_disk=True)
        filler = Path(f"/proc/{system.server.pid}/root{system.disk}/filler")
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))
        said = seconds_until("the reason", lambda: any("nothing was saved" in why for why in system.reasons() or ()))
        assert "No space left on device" in system.rooms["persist"].log
        filler.unlink()
        well = seconds_until("all to be well", system.is_well)
        print(f"full disk: not ok after {said:.1f} s, ok after {well:.1f} s")
        assert said <= SAID_MAX_S
        assert well <= WELL_MAX_S
        settle(system.config)
        assert differences(system.config)[0] == []
