"""The Makefile's own words: what it says before anything is installed."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from harness.processes import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")

NEEDED = ("Makefile", "pyproject.toml", "requirements.txt", "requirements-test.txt")
PYTHONS = ("3.11", "3.12", "3.13")


def test_an_old_python_is_named_and_nothing_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in NEEDED:
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
def test_a_checkout_that_was_moved_is_installed_again(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / ".venv" / "bin").mkdir(parents=True)
    for part in NEEDED:
        shutil.copy(ROOT / part, folder)
    first = "#!{}\n" if " " not in name else '#!/bin/sh\n\'\'\'exec\' "{}" "$0" "$@"\n'
    (folder / ".venv" / "bin" / "klagg").write_text(first.format(folder / ".venv/bin/python"), encoding="utf-8")
    (folder / ".venv" / "installed").touch()

    def wanted(where: Path) -> str:
        return subprocess.run(["make", "-n", "-C", where, "run"], capture_output=True, text=True, timeout=30).stdout

    assert "was moved" not in wanted(folder)
    moved = folder.rename(tmp_path / f"{name} elsewhere")
    assert "was moved" in wanted(moved)


def test_make_alone_says_what_it_can_do() -> None:
    ended = subprocess.run(["make"], capture_output=True, text=True, cwd=ROOT, timeout=30)
    for target in ("make run", "make test", "make bench"):
        assert target in ended.stdout


def test_ci_runs_the_tests_by_a_script_that_bash_understands() -> None:
    script = ROOT / ".ci" / "run"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert script.stat().st_mode & 0o100


def locked(name: str, python: str) -> dict[str, str]:
    """Return what a lock file installs on a Python, on Linux: names and versions."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    chosen = [Requirement(line) for line in lines if line and not line.startswith("#")]
    there = {"python_version": python, "python_full_version": f"{python}.0"}
    there |= {"sys_platform": "linux", "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {
        each.name.lower().replace("_", "-"): next(iter(each.specifier)).version
        for each in chosen
        if each.marker is None or each.marker.evaluate(there)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_locked_is_what_is_asked_for_within_its_bounds(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    for name, requirements in (
        ("requirements.txt", asked),
        ("requirements-test.txt", asked + project["project"]["optional-dependencies"]["test"]),
    ):
        chosen = locked(name, python)
        for requirement in map(Requirement, requirements):
            assert chosen[requirement.name.lower()] in requirement.specifier, requirement
            assert any(bound.operator == "<" for bound in requirement.specifier), f"{requirement} has no upper bound"
    assert locked("requirements.txt", python).items() <= locked("requirements-test.txt", python).items()


def test_a_lock_file_names_versions_and_no_registry() -> None:
    for name in ("requirements.txt", "requirements-test.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if not re.match(r"#|[\w.-]+==[\w.]+( ; [\w <>!='.]+)?$", line)]
        assert not [line for line in lines if "//" in line or "--" in line]


def test_the_pythons_that_are_promised_are_those_that_ci_tries() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [name.rpartition(" ")[2] for name in project["classifiers"] if "Python :: 3." in name]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert promised == list(PYTHONS) == re.findall(r'"(3\.\d+)"', workflow)
    assert ".ci/run" in workflow


def test_a_wheel_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "klagg"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    ended = subprocess.run(
        [*pip, "--wheel-dir", tmp_path, folder], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert ended.returncode != 0
    assert "klagg runs from its folder" in ended.stdout + ended.stderr
    assert not list(tmp_path.glob("*.whl"))
