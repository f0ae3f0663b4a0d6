"""What the engine says of how well all is: its figures.

Decides what is told on the topic `engine.health`. Changes no row, and judges nothing: what is too old, and what that
means, is decided by whoever reads it. Ages are seconds; None: it never happened.
"""

from typing import Any

import numpy as np

from services.engine.book import COUNTERS
from services.engine.engine import KlineEngine

NAMED_MAX, NAME_MAX = 20, 64
"""Symbols that health names, and characters of each: a name that the store refuses may be of any length."""


def figures(engine: KlineEngine, now_ns: int) -> dict[str, Any]:
    """Return the engine's own figures."""
    states, liveness, feed = engine.book.symbols[: len(engine.symbols)], engine.liveness, engine.feed
    with_gaps = {symbol: engine.gaps(symbol) for symbol in np.flatnonzero(states["gap_count"]).tolist()}
    gaps = {symbol: ranges for symbol, ranges in with_gaps.items() if ranges}
    unexplained = [engine.repair.unexplained(symbol) for symbol in range(len(engine.symbols))]
    if not engine.started or not engine.saving.unsaved_rows:
        liveness.saved(now_ns)
    return {
        "started": engine.started,
        "exchange_time": engine.clock.now(now_ns),
        "trade_time": liveness.trade_time,
        "silences": list(liveness.silences),
        **liveness.ages(now_ns),
        "connected": feed is not None and feed.connected,
        "connected_since": feed.since if feed is not None else 0,
        "announced": feed.announced if feed is not None else 0,
        "to_announce": feed.to_announce if feed is not None else 0,
        "announce_ms": feed.announce_ms if feed is not None else 0,
        "listed": engine.listed is not None,
        "waiting": waiting(engine),
        "symbols": int(states["active"].sum()),
        "symbols_with_gaps": len(gaps),
        "missing_ids": sum(last - first + 1 for ranges in gaps.values() for first, last in ranges),
        "gap_age_s": round(liveness.gap_age({symbol: ranges[0] for symbol, ranges in gaps.items()}, now_ns), 3),
        "symbols_unexplained": sum(any(ids.outcome == "open" for ids in of) for of in unexplained),
        "unexplained_ids": sum(
            ids.last_id - ids.first_id + 1 for of in unexplained for ids in of if ids.outcome == "open"
        ),
        "lag_ms": engine.lag_ms,
        "lag_worst_ms": liveness.lag_worst_ms(now_ns),
        "restarts": {room: liveness.restarts[room] for room in ("ingest", "persist")},
        "rows_unsaved": len(engine.unsaved),
        "saving": engine.saving.under_way,
        "store_changes": engine.store_changes,
        "symbols_not_saved": [engine.symbols[symbol][:NAME_MAX] for symbol in engine.saving.refused][:NAMED_MAX],
        "symbols_saturated": [engine.symbols[symbol] for symbol in np.flatnonzero(states["saturated"])][:NAMED_MAX],
        "batches": engine.saving.batch,
        "reseeded": engine.reseeded,
        "audit": engine.audit.totals(),
        **{name: int(engine.book.counters[0][name]) for name in COUNTERS.names or ()},
        "dropped": dict(engine.dropped),
    }


def waiting(engine: KlineEngine) -> list[str]:
    """Return what trades and has not begun: its history is still to come."""
    index, active = engine.table.index, engine.book.symbols["active"]
    return [name for name in engine.listed or () if name not in index or not active[index[name]]]
