"""The command line: what it says about wrong words, wrong files and taken ports, and that it leaves nothing behind."""

import os
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import ROOT, free_port, write_config
from shared.config import load
from shared.sockets import lock_service


def klagg(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KLAGG_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=ROOT,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_names_every_room_and_command() -> None:
    said = klagg("--help").stdout
    for word in ("ingest", "engine", "persist", "viz", "simulator", "postgres", "replay", "check"):
        assert word in said


def test_the_version_is_that_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert klagg("--version").stdout == f"klagg {project['version']}\n"


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("replay",), ("replay", "file.jsonl")])
def test_wrong_words_are_answered_with_the_usage(arguments: tuple[str, ...]) -> None:
    ended = klagg(*arguments)
    assert ended.returncode == 2
    assert "usage: klagg" in ended.stderr


def test_check_says_which_addresses_listen_where(tmp_path: Path) -> None:
    path = write_config(tmp_path, viz={"host": "0.0.0.0"}, simulator={"host": "::1"})
    config = load({"KLAGG_CONFIG": str(path)})
    ended = klagg("check", KLAGG_CONFIG=str(path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split(maxsplit=2) for line in ended.stdout.splitlines()] == [
        ["viz", f"http://0.0.0.0:{config.viz.port}", "(other machines can reach it)"],
        ["simulator", f"http://[::1]:{config.simulator.port}"],
        ["engine", config.engine.snapshots],
    ]


def test_check_refuses_an_address_that_is_not_of_this_machine_and_one_that_is_named_twice(tmp_path: Path) -> None:
    port = free_port()
    path = write_config(tmp_path, viz={"port": port}, simulator={"port": port})
    ended = klagg("check", KLAGG_CONFIG=str(path), KLAGG_ENGINE_SNAPSHOTS="tcp://[::1]:1", KLAGG_VIZ_HOST="192.0.2.1")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (3, 1)
    assert f"viz cannot listen on 192.0.2.1:{port}: " in ended.stderr
    ended = klagg("check", KLAGG_CONFIG=str(path))
    assert f"simulator cannot listen on 127.0.0.1:{port}: " in ended.stderr


def test_check_lets_a_port_be_that_klagg_of_this_folder_has(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    config = load({"KLAGG_CONFIG": str(path)})
    with socket.create_server(("127.0.0.1", config.viz.port)), lock_service(config.run_path, "viz"):
        ended = klagg("check", KLAGG_CONFIG=str(path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"klagg runs on this folder, process {os.getpid()}" in ended.stdout


def test_check_says_what_is_wrong_with_the_configuration(tmp_path: Path) -> None:
    ended = klagg("check", KLAGG_CONFIG=str(write_config(tmp_path)), KLAGG_VIZ_PROT="1")
    assert ended.returncode == 2
    assert ended.stderr == "klagg: configuration: KLAGG_VIZ_PROT: there is no such setting\n"


@pytest.mark.parametrize("section", ["viz", "simulator", "engine", "database"])
def test_check_names_a_taken_port_and_the_setting_for_another(tmp_path: Path, section: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        setting = {"snapshots": f"tcp://127.0.0.1:{port}"} if section == "engine" else {"port": port}
        ended = klagg("check", KLAGG_CONFIG=str(write_config(tmp_path, **{section: setting})))
    assert ended.returncode == 3
    assert f"{section} cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
    assert f"KLAGG_{section.upper()}_" in ended.stderr


def test_check_leaves_out_what_would_not_be_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(
            tmp_path, simulator={"port": port}, database={"port": port, "url": "postgresql://host/db"}
        )
        ended = klagg("check", KLAGG_CONFIG=str(config), KLAGG_EXCHANGE="binance-usdm")
    assert ended.returncode == 0, ended.stderr


def test_a_room_can_be_started_by_its_name(tmp_path: Path) -> None:
    ended = klagg("engine", KLAGG_CONFIG=str(write_config(tmp_path)), KLAGG_ENGINE_WINDOW="3")
    assert ended.returncode == 2
    assert "KLAGG_ENGINE_WINDOW='3': it is outside 100 .. 10000" in ended.stderr


class TestReplay:
    @pytest.fixture(autouse=True)
    def _own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.folder = tmp_path
        # A short name: with a long one klagg would go elsewhere, because of its sockets.
        with tempfile.TemporaryDirectory(prefix="kr") as temporary:
            self.temporary = Path(temporary)
            monkeypatch.setenv("TMPDIR", temporary)
            yield

    def refused(self, *arguments: str) -> str:
        """Return what a replay says that must be refused without leaving anything behind."""
        ended = klagg("replay", *arguments, "--export", str(self.folder / "export"))
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        assert not list(self.temporary.iterdir())
        return ended.stderr

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def test_a_file_that_is_not_there(self) -> None:
        assert "none.jsonl: No such file" in self.refused(str(self.folder / "none.jsonl"))

    def test_a_folder(self) -> None:
        (self.folder / "folder.jsonl").mkdir()
        assert "folder.jsonl: Is a directory" in self.refused(str(self.folder / "folder.jsonl"))

    def test_an_empty_file(self) -> None:
        assert "empty.csv: the file is empty" in self.refused(self.file("empty.csv", b""))

    def test_a_file_of_another_kind(self) -> None:
        assert "picture.png: a recording's name ends in .jsonl" in self.refused(self.file("picture.png", b"\x89PNG"))

    def test_a_speed_that_is_none(self) -> None:
        assert "--speed" in self.refused(self.file("a.csv", b"x"), "--speed", "fast")
        assert "--speed" in self.refused(self.file("a.csv", b"x"), "--speed", "0")

    def test_a_folder_to_keep_that_holds_something(self) -> None:
        assert "the folder is not empty" in self.refused(self.file("a.csv", b"x"), "--keep", str(self.folder))

    def test_an_export_into_a_file(self) -> None:
        self.file("export", b"")
        assert "export: File exists" in self.refused(self.file("a.csv", b"x"))

    def test_a_file_without_trades(self) -> None:
        assert "prose.jsonl" in self.refused(self.file("prose.jsonl", b"This is no recording.\n"))

    def test_a_file_that_only_pretends_to_be_compressed(self) -> None:
        assert "lie.csv.gz" in self.refused(self.file("lie.csv.gz", b"1,2,3\n"))
