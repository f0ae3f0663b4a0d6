"""The proof of a stored history: every check over the whole table, and where exactly it does not hold.

Reads one consistent state of the database and changes nothing. What must hold is in checks.py; nothing is decided here
but the order, and how a failure is worded.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from services.persist.checks import CHECKS, Check
from services.persist.store import Connection

EXAMPLES_MAX = 20
"""Failures of one check that are in words; all are counted."""
SYMBOLS_A_STEP = 10

UNKNOWABLE = """\
What the tables alone cannot tell: trades that were doubled, left out or changed in all intervals alike, with the ids
behind them renumbered; figures of the exchange's own klines that no longer kline covers; a first part of those that is
not stored. The exchange itself knows: `klagg verify --against-exchange`."""

Progress = Callable[[str, int, int], None]
"""Is called for each step: the check's name, symbols done, symbols in all."""

_SYMBOLS = """
WITH RECURSIVE stored AS (
    SELECT min(symbol) AS symbol FROM klines
    UNION ALL
    SELECT (SELECT min(symbol) FROM klines WHERE symbol > stored.symbol) FROM stored WHERE symbol IS NOT NULL
)
SELECT symbol FROM stored WHERE symbol IS NOT NULL UNION SELECT symbol FROM symbols ORDER BY symbol
"""
"""Those of klines are looked up one by one in the index: to read them all would take as long as a check."""


class Result(NamedTuple):
    check: Check
    failures: int
    examples: list[str]
    """The first `EXAMPLES_MAX` of them, in words."""
    remarks: list[str]
    """What else is to be known of it: how much was compared, and how much could not be."""


def verify(connection: Connection, progress: Progress, symbols: list[str] | None = None) -> list[Result]:
    """Hold the history, or that of some symbols, to every check, as one consistent state. Raises psycopg.Error."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return hold(connection, progress, symbols)


def hold(connection: Connection, progress: Progress, symbols: list[str] | None = None) -> list[Result]:
    """Hold what the connection's transaction sees to every check. Raises psycopg.Error."""
    connection.execute("SET LOCAL timezone = 'UTC'; SET LOCAL jit = off")
    if symbols is None:
        symbols = [str(row[0]) for row in connection.execute(_SYMBOLS)]
    results = []
    for check in CHECKS:
        failures = 0
        examples: list[str] = []
        remarks: Counter[str] = Counter()
        for begin in range(0, len(symbols), SYMBOLS_A_STEP):
            progress(check.name, begin, len(symbols))
            step = symbols[begin : begin + SYMBOLS_A_STEP]
            for symbol, interval, moment, what in connection.execute(check.query, {"symbols": step}):
                if symbol is None:
                    remarks[interval] += int(what)
                    continue
                failures += 1
                if len(examples) < EXAMPLES_MAX:
                    examples.append(_example(symbol, interval, moment, what))
        results.append(Result(check, failures, examples, [f"{count:,} {what}" for what, count in remarks.items()]))
    return results


def _example(symbol: str, interval: str, moment: str | None, what: str) -> str:
    time = (moment or "").removesuffix("+00").removesuffix(":00")
    return f"{' '.join(filter(None, (symbol, interval, time)))}: {what}"
