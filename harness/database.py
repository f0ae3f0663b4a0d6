"""A real PostgreSQL with klagg's tables for a test: the one that comes with klagg, in the test's own folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.processes import running, wait_for
from services.persist import store
from shared.config import load
from shared.postgres import database_url


@contextmanager
def database(config: Path) -> Iterator[str]:
    """Run the embedded server of a configuration, with empty tables, and yield its URL."""
    url = database_url(load({"KLAGG_CONFIG": str(config)}))
    with running("postgres", config=config) as rooms:
        room = rooms["postgres"]
        wait_for("the database", lambda: "is ready in" in room.log or room.process.poll() is not None)
        assert room.process.poll() is None, room.log
        store.connect(url).close()
        yield url
