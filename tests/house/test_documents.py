"""Documents and code say the same: names, types and limits of what programs outside rely on, files and links."""

import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import msgpack
import msgspec
import pytest

from harness.processes import ROOT
from services.engine.publisher import (
    ANSWER_MAX_MS,
    ASKED_BYTES_MAX,
    CONNECTIONS_MAX,
    GREETING_MAX_MS,
    MESSAGE_BYTES_MAX,
    QUEUE_MAX,
    QUEUES_MAX,
)
from services.engine.snapshots import Snapshots
from shared.interval import INTERVAL_NAMES
from shared.snapshot import HEALTH_TOPIC, TICKERS_TOPIC, Snapshot, Tickers
from tests.engine.played import PlayedEngine

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
DOCUMENT = (ROOT / "docs" / "snapshots.md").read_text(encoding="utf-8")
WORDS: dict[Any, set[str]] = {
    int: {"integer"},
    bool: {"boolean"},
    str: {"text", "decimal"},
    list[str]: {"list of text", "list of decimal"},
    list[bool]: {"list of boolean"},
}
KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "boolean": (bool,),
    "number": (float, int),
    "number or nil": (float, int, type(None)),
    "list": (list,),
    "list of text": (list,),
    "map": (dict,),
}


def documented(heading: str) -> dict[str, str]:
    """Return the fields of the table under a heading, and their types, in its order."""
    (section,) = re.findall(rf"^## `{re.escape(heading)}`$(.*?)(?=^## )", DOCUMENT, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^\| `(\w+)` \| ([\w ]+?) \|", section, re.MULTILINE))


@pytest.mark.parametrize(("heading", "message"), [("kline.<SYMBOL>.<interval>", Snapshot), (TICKERS_TOPIC, Tickers)])
def test_a_message_has_the_fields_that_are_documented_in_their_order(
    heading: str, message: type[msgspec.Struct]
) -> None:
    fields = documented(heading)
    assert list(fields) == list(message.__struct_fields__)
    hints = get_type_hints(message)
    assert not {name: kind for name, kind in fields.items() if kind not in WORDS[hints[name]]}


def test_decimals_are_those_that_are_no_names() -> None:
    texts = {name for name, kind in documented("kline.<SYMBOL>.<interval>").items() if kind == "text"}
    assert texts == {"symbol", "interval", "source"}


def health() -> Iterator[dict[str, Any]]:
    """Yield what an engine says of itself before and after its start."""
    for played in (PlayedEngine(restored=[]), PlayedEngine()):
        snapshots = Snapshots(played.engine, 77, 0)
        snapshots.figures = {"connections": 0, "connections_closed": 0}  # As the socket has them.
        list(snapshots.due(0))
        snapshots.subscription(b"\x01" + HEALTH_TOPIC.encode())
        later = played.now_ns + 1_000_000_000
        yield from (msgpack.unpackb(body) for topic, body in snapshots.due(later) if topic.decode() == HEALTH_TOPIC)


def test_health_has_the_fields_that_are_documented_and_no_others() -> None:
    fields = documented(HEALTH_TOPIC)
    reports = list(health())
    assert len(reports) == 2
    for figures in reports:
        assert set(figures) == set(fields)
        assert not {name: figures[name] for name, kind in fields.items() if type(figures[name]) not in KINDS[kind]}


def test_intervals_and_limits_are_those_that_are_documented() -> None:
    assert f"`{' '.join(INTERVAL_NAMES)}`" in DOCUMENT
    for words in (
        f"{QUEUE_MAX:,} messages that wait for it",
        f"{MESSAGE_BYTES_MAX:,} bytes a subscription, {ASKED_BYTES_MAX >> 10} KB of them a minute",
        f"a ping within {ANSWER_MAX_MS // 1_000} s, a greeting within {GREETING_MAX_MS // 1_000} s",
        f"{CONNECTIONS_MAX:,} connections, {QUEUES_MAX:,} messages that wait for all",
    ):
        assert words in DOCUMENT


def test_what_documents_link_to_is_there() -> None:
    wrong = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                wrong.append(f"{path.relative_to(ROOT)}: {target}")
    assert not wrong


def test_the_files_that_documents_name_are_there() -> None:
    folders = [ROOT, ROOT / "services", *(path for path in (ROOT / "services").iterdir() if path.is_dir())]
    wrong = []
    for path in DOCUMENTS:
        for file in re.findall(r"`([\w/]+\.(?:py|js|sql|toml))[:`]", path.read_text(encoding="utf-8")):
            if "_N" not in file and not any((folder / file).exists() for folder in folders):
                wrong.append(f"{path.relative_to(ROOT)}: {file}")
    assert not wrong
