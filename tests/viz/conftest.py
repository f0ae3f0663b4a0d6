"""The room with its neighbours: an engine that the test plays, and a real database with made-up history."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.database import database
from harness.processes import Room, free_port, wait_for, write_config
from services.viz.rows import ROW_FIELDS
from shared.snapshot import Snapshot
from tests.viz.played import PlayedEngine

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class System:
    """Addresses of one test's own, and whatever of the system it starts there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.port = free_port()
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._stack = stack
        self._url = ""
        self.settings: dict[str, Any] = {}
        """Of viz, before it is started."""
        self.config = self._write()

    def _write(self) -> Path:
        return write_config(
            self._folder,
            engine={"snapshots": self.endpoint},
            viz={"port": self.port} | self.settings,
            **({"database": {"url": self._url}} if self._url else {}),
        )

    def start_database(self) -> str:
        """Start a PostgreSQL with empty tables and return its URL."""
        self._url = self._stack.enter_context(database(self.config))
        self.config = self._write()
        return self._url

    def start_viz(self) -> Room:
        self.config = self._write()
        room = Room("viz", self.config)
        self._stack.callback(room.stop)
        wait_for("the page", lambda: "the page is at" in room.log or room.process.poll() is not None)
        assert room.process.poll() is None, room.log
        return room

    def start_engine(self, session: int = 1, unsaved: Mapping[str, list[Snapshot]] | None = None) -> PlayedEngine:
        engine = PlayedEngine(self.endpoint, session, unsaved=unsaved)
        self._stack.callback(engine.stop)
        return engine


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with ExitStack() as stack:
        yield System(tmp_path, stack)


def save(url: str, rows: Iterable[Snapshot]) -> None:
    """Save rows as persist does: one version a kline, the newest."""
    names = ("symbol", "interval", *(name for name in ROW_FIELDS if name != "gap"))
    columns = ", ".join(f'"{name}"' for name in names)
    values = ", ".join(["%s"] * len(names))
    sql = f"insert into klines ({columns}) values ({values}) on conflict do nothing"
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.executemany(sql, [[_column(row, name) for name in names] for row in rows])


def _column(row: Snapshot, name: str) -> object:
    value = getattr(row, name)
    return EPOCH + timedelta(milliseconds=value) if name.endswith("_time") else value
