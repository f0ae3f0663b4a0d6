"""Symbols that the database refuses cost nobody else anything."""

import random
import string
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psycopg
import pytest
from msgspec.structs import replace

from harness.processes import wait_for
from services.persist.aside import AGAIN_S, Aside, part_of
from shared.wire import DirtyBatch, Persisted, StoreState, placed_rows
from tests.persist.test_persist import SESSION, System
from tests.persist.test_store import batch, mark, rows

LONG = "".join(random.Random(1).choices(string.ascii_uppercase, k=5_000))
"""An index would compress letters that are all the same, and take them."""
BAD = ("NUL\x00USDT", LONG, "CHECKUSDT")


def of(names: list[str], number: int = 1, close: int = 5) -> DirtyBatch:
    placed = np.concatenate([rows(3, symbol=index, close=close) for index in range(len(names))])
    return replace(batch(placed, [mark(name) for name in names], number), session=SESSION)


def test_a_part_of_a_batch_has_its_symbols_rows_alone() -> None:
    names = ["A", "B", "C", "D"]
    whole = of(names)
    part = part_of(whole, [1, 3])
    assert [each.symbol for each in part.marks] == ["B", "D"]
    assert placed_rows(part.rows)["symbol"].tolist() == [0, 0, 0, 1, 1, 1]
    assert placed_rows(part.rows)["kline"].tobytes() == placed_rows(whole.rows)["kline"][[3, 4, 5, 9, 10, 11]].tobytes()


def test_who_is_refused_is_not_tried_again_before_a_while_and_saved_then() -> None:
    saved: list[list[str]] = []
    refuses = True

    def save(part: DirtyBatch) -> str:
        names = [each.symbol for each in part.marks]
        if refuses and "BAD" in names:
            raise psycopg.errors.CheckViolation("no")
        saved.append(names)
        return "tables"

    aside = Aside()
    assert aside.save(of(["A", "BAD", "C"]), 0.0, save) == ("tables", ["BAD"])
    assert sorted(name for part in saved for name in part) == ["A", "C"]
    saved.clear()
    assert aside.save(of(["BAD"]), 1.0, save) == ("tables", ["BAD"])
    # The store's last batch is this one, although nothing of it is saved.
    assert saved == [[]]
    refuses = False
    assert aside.save(of(["BAD", "C"]), AGAIN_S - 0.1, save)[1] == ["BAD"]
    saved.clear()
    assert aside.save(of(["BAD", "C"]), AGAIN_S, save) == ("tables", [])
    assert saved == [["C"], ["BAD"]]


def test_what_is_no_refusal_is_the_callers() -> None:
    def save(part: DirtyBatch) -> str:
        raise psycopg.OperationalError("gone")

    with pytest.raises(psycopg.OperationalError):
        Aside().save(of(["A", "B"]), 0.0, save)


def test_120_symbols_of_which_the_database_refuses_three(tmp_path: Path) -> None:
    names = [f"S{index:03}USDT" for index in range(117)]
    names[40:40], names[90:90], names[7:7] = [BAD[0]], [BAD[1]], [BAD[2]]
    with ExitStack() as stack:
        at = System(tmp_path, stack)
        at.start("postgres")
        persist = at.start("persist")
        wait_for("the store", lambda: at.engine.of(StoreState))
        with psycopg.connect(_url(at), autocommit=True) as connection:
            connection.execute("ALTER TABLE klines ADD CHECK (symbol <> 'CHECKUSDT')")
        began = time.monotonic()
        at.engine.say(of(names))
        (answer,) = wait_for("the batch", lambda: at.engine.of(Persisted))
        assert time.monotonic() - began < 10
        assert sorted(answer.refused) == sorted(BAD)
        assert at.query("SELECT count(*), count(DISTINCT symbol) FROM klines") == [(117 * 3, 117)]
        assert at.query("SELECT count(*) FROM symbols") == [(117,)]
        assert at.query("SELECT session, batch FROM engine_state") == [(SESSION, 1)]
        for word in (r"refuses NUL\x00USDT,", f"refuses {LONG[:40]}...,", "refuses CHECKUSDT,"):
            assert persist.log.count(word) == 1
        assert len(persist.log) < 3_000
        at.engine.say(of(names, 2, close=6))
        wait_for("the next batch", lambda: len(at.engine.of(Persisted)) == 2)
        assert at.query("SELECT count(*) FROM klines WHERE close = 0.06") == [(117 * 3,)]
        assert persist.process.poll() is None
        assert persist.log.count("refuses") == 3


def _url(at: System) -> str:
    from shared.postgres import database_url

    return database_url(at.config)
