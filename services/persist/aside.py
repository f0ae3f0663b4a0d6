"""Symbols that the database does not take: found, set aside, and tried again after a while.

Decides who of a batch is to blame when the database refuses it, by halves, so that all others are saved: a name that
SQL cannot hold, a constraint or a trigger that somebody has made. Knows no connection; time comes in as an argument.
"""

import logging
from collections.abc import Callable
from math import inf

import numpy as np
import psycopg
from msgspec.structs import replace

from services.persist.pgcopy import checked
from shared.names import is_name
from shared.postgres import error_text
from shared.wire import DirtyBatch, placed_rows

AGAIN_S = 60.0
"""Whoever made a constraint may take it back."""
LOGGED_MAX = 20
"""Symbols that are named in the log; if all are refused, the rest would say nothing new."""
NAME_MAX = 40
VALUES_TO_BLAME = {"09", "21", "22", "23", "27", "38", "39", "44", "54", "P0"}
"""Classes of SQLSTATE: triggers, data, constraints, limits of a row (PostgreSQL's appendix A)."""

log = logging.getLogger(__name__)


def refuses(error: psycopg.Error) -> bool:
    """Say whether the database refuses what it was given, and not the work as such."""
    state = error.sqlstate
    return state[:2] in VALUES_TO_BLAME if state else isinstance(error, psycopg.DataError)


class Aside:
    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        """By symbol: when to try again, s."""
        self._logged: set[str] = set()

    def save(self, batch: DirtyBatch, now: float, save: Callable[[DirtyBatch], str]) -> tuple[str, list[str]]:
        """Save what the database takes of a batch, and return which tables it is in and which symbols it refuses.

        Raises what `save` raises about anything else.
        """
        names = [mark.symbol for mark in batch.marks]
        for name in names:
            if name not in self._until and not is_name(name):
                self._refuse(name, "the store", "a name is printable, without / and \\, and 1 to 64 characters", inf)
        tried_again = [index for index, name in enumerate(names) if self._until.get(name, now + 1) <= now]
        parts = [[index] for index in tried_again]
        # Last, so that it comes first. It may be empty: what the store has last is this batch all the same.
        parts.append([index for index, name in enumerate(names) if name not in self._until])
        tables = ""
        while parts:
            indices = parts.pop()
            try:
                tables = save(part_of(batch, indices))
            except psycopg.Error as error:
                if not refuses(error) or not indices:
                    raise
                half = len(indices) // 2
                if half:
                    parts += [indices[half:], indices[:half]]
                else:
                    self._refuse(names[indices[0]], "the database", error_text(error), now + AGAIN_S)
            else:
                for index in indices:
                    self._until.pop(names[index], None)
        return tables or save(part_of(batch, [])), [name for name in names if name in self._until]

    def _refuse(self, name: str, who: str, why: str, until: float) -> None:
        self._until[name] = until
        if name in self._logged or len(self._logged) > LOGGED_MAX:
            return
        self._logged.add(name)
        if len(self._logged) > LOGGED_MAX:
            log.warning("more symbols are refused than are worth a line each")
        else:
            log.warning("%s refuses %s, which is set aside: %s", who, _shown(name), _shown(why, 200))


def part_of(batch: DirtyBatch, indices: list[int]) -> DirtyBatch:
    """Return a batch of some of its symbols, by their indices in its marks. Raises WireError."""
    if len(indices) == len(batch.marks):
        return batch
    rows = checked(placed_rows(batch.rows), batch.marks)
    called = np.full(len(batch.marks), -1, np.int32)
    called[indices] = np.arange(len(indices))
    chosen = rows[called[rows["symbol"]] >= 0].copy()
    chosen["symbol"] = called[chosen["symbol"]]
    return replace(batch, marks=[batch.marks[index] for index in indices], rows=chosen.tobytes())


def _shown(text: str, most: int = NAME_MAX) -> str:
    return repr(text[:most])[1:-1] + ("..." if len(text) > most else "")
