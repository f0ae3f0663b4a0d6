"""Who may import whom: rooms meet in shared/ only, the simulator's truth shares nothing with what it judges, and tests
and bench meet in harness/ only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import ROOT
from shared.compiled import SOURCES

ROOMS = sorted(folder.name for folder in (ROOT / "services").iterdir() if (folder / "__main__.py").exists())
STARTERS = {"services/cli.py", "services/replay.py", "services/rooms.py"}
"""The command line is no room: it starts them, and may use what they offer."""
AROUND = {"tests", "bench", "examples", "harness"}
"""What stands around the product, which imports none of it."""
APART = {"tests": {"bench", "examples"}, "bench": {"tests", "examples"}, "harness": {"tests", "bench", "examples"}}
JUDGED = {"shared.kline", "shared.merging", "shared.interval", "shared.calendar", "shared.decimals"}
"""What computes klines. The simulator computes its own, or its mistakes would agree with ours."""


def imported(source: str, path: str) -> Iterator[str]:
    """Name every module that a file imports, in full; `from a import b` is both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = Path(path).parts[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def violations(source: str, path: str) -> list[str]:
    """Say which imports of the file at `path`, from the project's root, break the house's rules."""
    top, *below = Path(path).parts
    room = below[0] if top == "services" and len(below) > 1 else ""
    wrong = []
    for name in sorted(set(imported(source, path))):
        parts = name.split(".")
        if parts[0] in APART.get(top, AROUND):
            wrong.append(f"{path} imports {name}")
        elif top == "shared" and parts[0] == "services":
            wrong.append(f"{path}: shared imports {name}")
        elif room and parts[0] == "services" and len(parts) > 1 and parts[1] != room:
            wrong.append(f"{path}: the {room} imports {name}")
        elif room == "simulator" and any(name == judged or name.startswith(judged + ".") for judged in JUDGED):
            wrong.append(f"{path}: the simulator imports {name}")
    if top == "services" and not room and path not in {*STARTERS, "services/__init__.py"}:
        wrong.append(f"{path} is neither a room nor the command line")
    return wrong


def files() -> list[str]:
    """Return the product's own files."""
    return files_in("shared", "services")


def files_in(*tops: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for top in tops for path in sorted((ROOT / top).rglob("*.py"))]


def wrong_in(*tops: str) -> list[str]:
    return [
        violation
        for path in files_in(*tops)
        for violation in violations((ROOT / path).read_text(encoding="utf-8"), path)
    ]


def test_rooms_meet_in_shared_only() -> None:
    wrong = wrong_in("shared", "services")
    assert not wrong, "\n".join(wrong)


def test_tests_and_bench_meet_in_harness_only() -> None:
    wrong = wrong_in(*APART)
    assert not wrong, "\n".join(wrong)


def circles(uses: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others."""
    reached: dict[str, set[str]] = {}
    for module in uses:
        seen: set[str] = set()
        ahead = [module]
        while ahead:
            ahead += (further := uses.get(ahead.pop(), set()) - seen)
            seen |= further
        reached[module] = seen
    groups = {
        frozenset(other for other in reached[module] if module in reached.get(other, set()))
        for module in uses
        if module in reached[module]
    }
    return sorted(sorted(group) for group in groups)


def uses_in(*tops: str) -> dict[str, set[str]]:
    """Return which of these folders' modules each of them imports, for its types alone included."""
    modules = {path: path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in files_in(*tops)}
    return {
        module: set(imported((ROOT / path).read_text("utf-8"), path)) & set(modules.values()) - {module}
        for path, module in modules.items()
    }


def test_no_module_imports_itself_by_way_of_others() -> None:
    uses = uses_in("shared", "services")
    assert "services.engine.kernel" in uses["services.engine.engine"]
    assert not circles(uses)


def test_a_circle_is_seen() -> None:
    uses = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"a", "f"}}
    assert circles(uses) == [["a", "b", "c"], ["f"]]


def test_whatever_is_compiled_is_compiled_again_when_it_changes() -> None:
    compiled = [path for path in files() if "shared.compiled" in imported((ROOT / path).read_text("utf-8"), path)]
    assert len(compiled) > 10
    assert [path for path in compiled if not any(Path(path).match(pattern) for pattern in SOURCES)] == []


def test_every_room_is_known() -> None:
    assert {"engine", "ingest", "persist", "postgres", "simulator", "viz"} == set(ROOMS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("services/viz/a.py", "from services.engine.book import Book"),
        ("services/viz/a.py", "import services.persist"),
        ("services/viz/a.py", "from services import persist"),
        ("services/viz/a.py", "from ..engine import book"),
        ("services/viz/deep/a.py", "def f():\n    from services.ingest import rest"),
        ("shared/a.py", "from services.engine import loop"),
        ("shared/a.py", "from tests import chaos"),
        ("services/viz/a.py", "from harness.truth import ask"),
        ("tests/viz/a.py", "from bench import floor"),
        ("bench/a.py", "from tests.viz.played import made_up"),
        ("harness/a.py", "from tests import chaos"),
        ("harness/a.py", "import bench.floor"),
        ("services/simulator/a.py", "from shared.kline import merge"),
        ("services/simulator/a.py", "from shared import interval"),
        ("services/odd.py", ""),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str) -> None:
    assert violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("services/viz/a.py", "from services.viz.hub import Hub"),
        ("services/viz/a.py", "from .hub import Hub"),
        ("services/viz/a.py", "from shared.kline import KLINE"),
        ("services/cli.py", "from services.persist.export import export_csv"),
        ("services/simulator/a.py", "from shared.config import Config"),
        ("tests/viz/a.py", "from harness.processes import free_port"),
        ("bench/a.py", "from harness.truth import ask"),
        ("harness/a.py", "from services.persist.verify import verify"),
    ],
)
def test_an_allowed_import_is_let_pass(path: str, source: str) -> None:
    assert not violations(source, path)
