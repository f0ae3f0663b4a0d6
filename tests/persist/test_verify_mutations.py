"""`klagg verify`, judged: it sees every change that makes a history false and where it is, and no other."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from harness.database import database
from harness.processes import write_config
from services.persist import store
from services.persist.verify import Result, hold
from shared.calendar import next_open_time, open_time_of
from shared.config import load
from shared.interval import INTERVAL_INDEX
from shared.postgres import database_url
from tests.persist.histories import make
from tests.persist.mutations import FALSE, ROWS, TRUE, Mutation

pytestmark = pytest.mark.timeout(600)
"""Some 350 times the whole proof: half a minute on a machine of one's own."""


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[store.Connection]:
    """A database with a history of all kinds, which is left as it is."""
    path = write_config(tmp_path_factory.mktemp("database"))
    with database(path):
        url = database_url(load({"KLAGG_CONFIG": str(path)}))
        with store.connect(url) as connection:
            make(connection)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection


OTHERS = ("NEVER", "NOBODY")
"""Whom a mutation gives what is another's. The rest of the history is looked at where nothing is false."""


class Changed(Exception):
    """Takes a change back."""


def found(connection: store.Connection, mutation: Mutation) -> tuple[list[Result], int]:
    """Return what verify says of a changed history, and the open time of the kline that the change is about, ms."""
    sql, time, symbol = mutation.sql, 0, mutation.symbol
    if mutation.row:
        symbol, interval, which = ROWS[mutation.row]
        key = f"symbol = '{symbol}' AND interval = '{interval}'"
        row = connection.execute(f"SELECT max(open_time) FROM klines WHERE {key} AND ({which})").fetchone()
        assert row is not None
        assert row[0] is not None, f"there is no {mutation.row}"
        time = int(row[0].timestamp() * 1000)
        sql = sql.replace("{time}", f"timestamptz '{row[0]}'")
        sql = sql.replace("{row}", f"{key} AND open_time = timestamptz '{row[0]}'")
    results: list[Result] = []
    try:
        with connection.transaction():
            if connection.execute(sql).rowcount == 0 and not mutation.symbol == mutation.row == "":
                raise AssertionError(f"{mutation.name}: nothing was changed")
            results = hold(connection, lambda *_: None, sorted({symbol, *OTHERS}) if symbol else None)
            raise Changed
    except Changed:
        return results, time


def is_named(examples: list[str], mutation: Mutation, time: int) -> bool:
    """Say whether an example names the kline that was changed, one that it is part of, or one beside these."""
    if not mutation.row:
        return any(example.startswith((f"{mutation.symbol} ", f"{mutation.symbol}:")) for example in examples)
    symbol = ROWS[mutation.row][0]
    for example in examples:
        name, interval, *rest = [*example.split(": ")[0].split(" ", 2), ""]
        if name == symbol and interval == ROWS[mutation.row][1] and rest == [""]:
            return True  # None of them is left.
        if name == symbol and interval in INTERVAL_INDEX and rest[0]:
            opens = int(datetime.fromisoformat(rest[0]).replace(tzinfo=UTC).timestamp() * 1000)
            own = opens if interval == "3d" else open_time_of(interval, time)
            if own <= opens + 999 and opens <= next_open_time(interval, own):
                return True
    return False


def failures_of(results: list[Result]) -> dict[str, list[str]]:
    return {result.check.name: result.examples for result in results if result.failures}


def test_every_change_that_makes_a_history_false_is_found_and_its_kline_named(connection: store.Connection) -> None:
    names = [mutation.name for mutation in FALSE]
    assert len(names) == len(set(names)) >= 120
    survived = []
    for mutation in FALSE:
        results, time = found(connection, mutation)
        failed = failures_of(results)
        examples = [example for of_check in failed.values() for example in of_check]
        if not failed:
            survived.append(mutation.name)
        elif not is_named(examples, mutation, time):
            survived.append(f"{mutation.name}: it is not named, but {examples[:3]}")
    assert not survived, f"{len(survived)} of {len(FALSE)}:\n" + "\n".join(survived)


def test_no_change_that_leaves_a_history_true_is_taken_for_false(connection: store.Connection) -> None:
    names = [mutation.name for mutation in TRUE]
    assert len(names) == len(set(names)) >= 20
    wrong = {mutation.name: failed for mutation in TRUE if (failed := failures_of(found(connection, mutation)[0]))}
    assert not wrong, "\n".join(f"{name}: {failed}" for name, failed in wrong.items())
