"""The Makefile's own words: what it says before anything is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.processes import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")


def test_an_old_python_is_named_and_nothing_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    ended = subprocess.run(
        ["make", "-C", folder, "run", f"PYTHON={old}"], capture_output=True, text=True, cwd="/", timeout=30
    )
    assert ended.returncode != 0
    assert f"klagg needs Python 3.11 or later; {old} is Python 3.9.2" in ended.stdout
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("name", ["klagg", "50% of klagg"])
def test_a_checkout_that_was_moved_is_installed_anew(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / ".venv" / "bin").mkdir(parents=True)
    for part in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / part, folder)
    first = "#!{}\n" if " " not in name else '#!/bin/sh\n\'\'\'exec\' "{}" "$0" "$@"\n'
    (folder / ".venv" / "bin" / "klagg").write_text(first.format(folder / ".venv/bin/python"), encoding="utf-8")
    (folder / ".venv" / "installed").touch()

    def wanted(where: Path) -> str:
        return subprocess.run(["make", "-n", "-C", where, "run"], capture_output=True, text=True, timeout=30).stdout

    assert "was moved" not in wanted(folder)
    moved = folder.rename(tmp_path / f"{name} elsewhere")
    assert "was moved" in wanted(moved)


def test_make_alone_tells_what_it_can_do() -> None:
    ended = subprocess.run(["make"], capture_output=True, text=True, cwd=ROOT, timeout=30)
    for target in ("make run", "make test", "make bench"):
        assert target in ended.stdout


def test_ci_runs_the_tests_by_a_script_that_bash_understands() -> None:
    script = ROOT / ".ci" / "run"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert script.stat().st_mode & 0o100
