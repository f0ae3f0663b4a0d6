"""The house stays tidy: files that fit in a head, docstrings, words, and nothing that belongs to one machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import ROOT

LINES_MAX = 450
LONGER = {
    # One state machine: its transitions are read together or not at all.
    "services/engine/engine.py": 500,
}
WORDS = {"candle", "candles", "bar", "bars", "timeframe", "timeframes", "manager", "utils", "util", "helper", "helpers"}
WORDS |= {"ohlcv"}
NAMES = re.compile(r"^(process_data|handle|handle_\w+)$")
OUTSIDE = {"handle_error", "handle_pong"}
"""Names that a library asks for."""
MACHINE = re.compile(r"(/work/|/root/|/home/\w|/Users/\w|C:\\\\)")
SECRETS = re.compile(r"(BEGIN [A-Z ]*PRIVATE KEY|ghp_\w{20}|AKIA[0-9A-Z]{16})")
BIG_MAX = 300_000
TESTED_BY_LOOP = {"log_lines", "main", "sockets", "turn"}
"""Files of the engine that its process as a whole is the test of: tests/engine/test_loop.py."""


def tracked() -> list[Path]:
    """Return the project's own files: what git keeps or would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def code() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def names(source: str) -> Iterator[tuple[int, str]]:
    """Name what a file defines: (line, name) of classes, functions, arguments, variables and fields."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr


def banned(name: str) -> bool:
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().strip("_").split("_")
    return bool(WORDS & set(words)) or (bool(NAMES.match(name)) and name not in OUTSIDE)


def test_files_fit_in_a_head() -> None:
    counts = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in code()}
    assert not {path: count for path, count in counts.items() if count > LONGER.get(path, LINES_MAX)}


def test_every_file_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in code()
        if (source := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(source))
    ]
    assert not silent


def test_names_are_the_houses_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in code()
        for line, name in names(path.read_text(encoding="utf-8"))
        if banned(name)
    ]
    found += [str(path.relative_to(ROOT)) for path in code() if banned(path.stem)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["candle", "CandleStore", "symbol_manager", "utils", "process_data", "handle_trade"])
def test_a_banned_name_is_seen(name: str) -> None:
    assert banned(name)


@pytest.mark.parametrize("name", ["kline", "handler", "barrier", "symbols", "handled"])
def test_a_good_name_is_let_pass(name: str) -> None:
    assert not banned(name)


def test_no_file_knows_one_machine_or_a_secret() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__).resolve():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        lines = [
            number for number, line in enumerate(text.splitlines(), 1) if MACHINE.search(line) or SECRETS.search(line)
        ]
        found += [f"{path.relative_to(ROOT)}:{number}" for number in lines]
    assert not found


def cited(text: str) -> set[str]:
    """Return the sections of docs/binance.md that a text cites."""
    return set(re.findall(r"§(\d+(?:\.\d+)?)", text))


def test_every_section_of_the_protocol_that_is_cited_is_there() -> None:
    headings = set(
        re.findall(r"^#+ §(\d+(?:\.\d+)?) ", (ROOT / "docs/binance.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    citations = {
        f"{path.relative_to(ROOT)}: §{section}"
        for path in tracked()
        if path.suffix in (".py", ".md", ".toml", ".html", ".js")
        for section in cited(path.read_text(encoding="utf-8"))
        if section not in headings
    }
    assert not citations
    assert len(headings) > 20


def test_no_recording_or_other_big_file_is_kept() -> None:
    assert not [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > BIG_MAX]
    assert not [str(path.relative_to(ROOT)) for path in tracked() if path.suffix in (".gz", ".zip", ".whl", ".so")]


def test_what_tests_a_file_of_the_engine_is_found_by_its_name() -> None:
    files = {path.stem for path in (ROOT / "services" / "engine").glob("*.py") if not path.stem.startswith("__")}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "engine").glob("test_*.py")}
    assert files - tested == TESTED_BY_LOOP
    # Whatever else there is begins with the name of a file.
    assert not {name for name in tested if not any(name == file or name.startswith(f"{file}_") for file in files)}


def test_every_room_starts_the_same_way() -> None:
    for start in (ROOT / "services").glob("*/__main__.py"):
        room = start.parent.name
        tree = ast.parse(start.read_text(encoding="utf-8"))
        assert ast.unparse(tree.body[-1]) == f"run('{room}', main)", start
