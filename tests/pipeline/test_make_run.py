"""What `make run` starts: the real supervisord.conf with every room, on ports and in a folder of the test's own."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import ROOT, wait_for, write_config
from shared.client import Snapshots
from shared.config import load
from shared.snapshot import Snapshot
from shared.tuning import LOW_PRIORITY_NICE

pytestmark = pytest.mark.pipeline

SUPERVISORD = Path(sys.executable).with_name("supervisord")
ROOMS = {"postgres", "persist", "engine", "ingest", "simulator", "viz"}
START_MAX_S = 90.0
"""A cold start compiles the engine's kernels on a machine that does other things as well."""
STOP_MAX_S = 5.0


class System:
    """supervisord with the project's own configuration; only its socket and pid file lie elsewhere."""

    def __init__(self, folder: Path, checkout: Path = ROOT, **environ: str) -> None:
        self.config_path = write_config(
            folder, simulator={"symbols": 20, "trades_per_second": 200.0, "history_days": 2}
        )
        self.config = load({"KLAGG_CONFIG": str(self.config_path)})
        conf = (ROOT / "supervisord.conf").read_text(encoding="utf-8")
        for name in ("supervisord.pid", "supervisord.sock"):
            conf = conf.replace(name, str(folder / name))
        self.conf_path = folder / "supervisord.conf"
        self.conf_path.write_text(conf, encoding="utf-8")
        self.log_path = folder / "terminal.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._checkout = checkout
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KLAGG_")}
        path = f"{SUPERVISORD.parent}:{os.environ['PATH']}"
        self._environ = clean | {"KLAGG_CONFIG": str(self.config_path), "PATH": path} | environ

    def start(self) -> None:
        with self.log_path.open("wb") as terminal:
            self.process = subprocess.Popen(
                [SUPERVISORD, "-c", self.conf_path, "-u", str(os.getuid())],
                cwd=self._checkout,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> float:
        """Press Ctrl-C and return how many seconds it took until supervisord had ended."""
        assert self.process is not None
        asked_at = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return time.monotonic() - asked_at

    def rooms(self) -> dict[str, int]:
        """Return the process ids of everything that runs on this system's configuration, by words of its command."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environ = (process / "environ").read_bytes()
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"KLAGG_CONFIG=" + os.fsencode(self.config_path) + b"\0" in environ:
                found[b" ".join(words[:4]).decode(errors="replace").strip()] = int(process.name)
        return found

    def servers(self) -> list[str]:
        """Name the processes whose command names this system's folder: the database's, above all."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self._folder) in words:
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def page(self) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.config.viz.port}/", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    def moves(self) -> list[Snapshot]:
        """Return several versions of one kline as they are published."""
        with Snapshots(self.config.engine.snapshots, "kline.BTCUSDT.1m") as snapshots:
            rows: list[Snapshot] = []
            deadline = time.monotonic() + START_MAX_S
            while len({row.volume for row in rows}) < 3 and time.monotonic() < deadline:
                received = snapshots.receive(1000)
                if received is not None and isinstance(received[1], Snapshot):
                    rows.append(received[1])
        return rows

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path)
    try:
        yield system
    finally:
        system.clean_up()


def test_a_percent_sign_is_no_obstacle_in_path_or_in_the_checkouts(tmp_path: Path) -> None:
    checkout = tmp_path / "100% of it, %(here)s"
    checkout.mkdir()
    for part in ("services", "shared", ".venv"):
        (checkout / part).symlink_to(ROOT / part)
    system = System(tmp_path, checkout, PATH=f"/nowhere/50% %(ENV_HOME)s:{os.environ['PATH']}")
    try:
        system.conf_path = checkout / "supervisord.conf"
        system.conf_path.write_text((ROOT / "supervisord.conf").read_text(encoding="utf-8"), encoding="utf-8")
        system.start()
        wait_for("the page", system.page, timeout=START_MAX_S)
        wait_for("the database", lambda: " is ready in " in system.log, timeout=START_MAX_S)
    finally:
        system.clean_up()


def query(system: System, sql: str) -> list[tuple[object, ...]]:
    psycopg = pytest.importorskip("psycopg")
    from shared.postgres import database_url

    with psycopg.connect(database_url(system.config)) as connection:
        return list(connection.execute(sql).fetchall())


def test_a_cold_start_shows_moving_klines_ends_at_ctrl_c_and_keeps_the_data(system: System) -> None:
    system.start()
    wait_for("the page", system.page, timeout=START_MAX_S)
    rows = system.moves()
    assert len({row.volume for row in rows}) >= 3, system.log[-5000:]

    def saved() -> list[tuple[object, ...]]:
        try:
            return query(
                system, "select count(*), min(open_time) from klines where symbol = 'BTCUSDT' having count(*) > 0"
            )
        except Exception:
            return []

    before = wait_for("klines in the database", saved, timeout=START_MAX_S)[0]
    ((writer,),) = query(system, "select pid from pg_stat_activity where application_name like 'klagg persist%'")
    assert isinstance(writer, int)
    assert os.getpriority(os.PRIO_PROCESS, writer) == LOW_PRIORITY_NICE
    group = Path(f"/proc/{writer}/autogroup")
    assert not group.exists() or group.read_text().split()[-2:] in (["nice", str(LOW_PRIORITY_NICE)], [])
    assert system.stop() < STOP_MAX_S, system.log[-5000:]
    wait_for("every process to be gone", lambda: not system.rooms() and not system.servers(), timeout=20)
    assert "Traceback" not in system.log
    assert "SIGKILL" not in system.log.replace("stopped: pulse (terminated by SIGKILL)", "")

    system.start()
    wait_for("the page again", system.page, timeout=START_MAX_S)
    after = wait_for("the database again", saved, timeout=START_MAX_S)[0]
    assert after[0] >= before[0]  # type: ignore[operator]
    assert after[1] == before[1]
    assert system.moves()
    assert system.stop() < STOP_MAX_S, system.log[-5000:]
    wait_for("every process to be gone", lambda: not system.rooms() and not system.servers(), timeout=20)
    assert "Traceback" not in system.log


@pytest.mark.parametrize("when", ["live", "starting"])
def test_a_killed_supervisord_leaves_no_process(system: System, when: str) -> None:
    system.start()
    assert system.process is not None
    if when == "live":
        wait_for("the page", system.page, timeout=START_MAX_S)
    else:
        # Python is still loading what they need: nobody has asked the kernel for anything yet.
        wait_for("the rooms", lambda: len(system.rooms()) >= len(ROOMS), timeout=START_MAX_S, every=0.01)
    system.process.kill()
    system.process.wait()
    wait_for("every process to be gone", lambda: not system.rooms() and not system.servers(), timeout=40)


def test_supervisorctl_shows_all_rooms_and_what_is_not_needed_has_ended_well(tmp_path: Path) -> None:
    # No exchange is reached here: a port of this machine on which nobody listens stands for it.
    system = System(tmp_path, KLAGG_DATABASE_URL="postgresql://127.0.0.1:9/none", KLAGG_EXCHANGE_SYMBOLS="BTCUSDT")
    try:
        system.start()
        wait_for("the page", system.page, timeout=START_MAX_S)

        def status() -> dict[str, str]:
            listed = subprocess.run(
                [SUPERVISORD.with_name("supervisorctl"), "-c", system.conf_path, "status"],
                capture_output=True,
                text=True,
            )
            return {words[0]: words[1] for line in listed.stdout.splitlines() if len(words := line.split()) > 1}

        wait_for("postgres to end", lambda: status().get("postgres") == "EXITED")
        assert {name for name, state in status().items() if state == "RUNNING"} >= ROOMS - {"postgres"}
        assert system.log.count("services.postgres") <= 1
        assert system.stop() < STOP_MAX_S + 5, "the engine waits in vain for its last rows to be saved"
        wait_for("every process to be gone", lambda: not system.rooms(), timeout=20)
    finally:
        system.clean_up()


def test_a_room_whose_port_is_taken_says_so_and_comes_up_when_it_is_free(system: System) -> None:
    import socket

    with socket.create_server(("127.0.0.1", system.config.viz.port)):
        system.start()
        wait_for("a word about the port", lambda: "cannot listen on 127.0.0.1" in system.log, timeout=START_MAX_S)
        # Not a second word right after the first one.
        time.sleep(2)
        assert system.log.count("cannot listen on 127.0.0.1") == 1
    wait_for("the page", system.page, timeout=START_MAX_S)
    assert system.stop() < STOP_MAX_S
