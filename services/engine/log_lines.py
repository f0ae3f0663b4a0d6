"""What the engine's log says: what has changed, once, and the figures now and then.

Decides what is worth a line. Changes nothing, and writes no log.
"""

import logging
from typing import NamedTuple

import numpy as np

from services.engine.engine import KlineEngine
from services.engine.health import figures

FIGURES_NS = 60_000_000_000
FIGURES = ("symbols", "applied", "duplicates", "late", "missing_ids", "rows_unsaved", "batches")
LAG_MS = 2_000
"""Trades that are older when they come are worth a word; half of it is over."""


class Line(NamedTuple):
    level: int
    """As in `logging`."""
    text: str


class LogLines:
    def __init__(self, engine: KlineEngine) -> None:
        self._engine = engine
        self._figures_at: int | None = None
        self._connected: bool | None = None
        self._started = False
        self._store_changes = 0
        self._is_late = False
        self._dropped: set[str] = set()
        self._saturated: set[int] = set()

    def due(self, now_ns: int) -> list[Line]:
        """Return what there is to say, most turns nothing."""
        engine = self._engine
        lines: list[Line] = []
        if engine.store_changes > self._store_changes:
            self._store_changes = engine.store_changes
            text = "the store was set back, emptied or replaced: all that memory holds is saved again"
            lines.append(Line(logging.WARNING, text))
        if engine.feed is not None and engine.feed.connected != self._connected:
            self._connected = engine.feed.connected
            lines.append(Line(logging.INFO, f"the exchange is {'connected' if self._connected else 'not connected'}"))
        if engine.started and not self._started:
            self._started = True
            lines.append(Line(logging.INFO, f"live with {len(engine.symbols)} symbols of the store"))
        if len(engine.dropped) > len(self._dropped):
            lines += self._of_dropped()
        if self._is_late != (engine.lag_ms > (LAG_MS // 2 if self._is_late else LAG_MS)):
            lines.append(self._of_lag())
        if self._figures_at is None or now_ns >= self._figures_at:
            if self._figures_at is not None:
                lines += [self.figures(now_ns), *self._of_saturated()]
            self._figures_at = now_ns + FIGURES_NS
        return lines

    def figures(self, now_ns: int) -> Line:
        """Return the figures that say most."""
        told = figures(self._engine, now_ns)
        return Line(logging.INFO, "since start: " + ", ".join(f"{name} {told[name]}" for name in FIGURES))

    def _of_lag(self) -> Line:
        self._is_late = not self._is_late
        if not self._is_late:
            return Line(logging.INFO, "up with the exchange again")
        late_s = self._engine.lag_ms / 1_000
        text = f"{late_s:.1f} s behind the exchange: there is more to do than this machine can; nothing is lost"
        return Line(logging.WARNING, text)

    def _of_dropped(self) -> list[Line]:
        """Say what is not taken, once a kind: the rest is in the figures."""
        kinds = sorted(self._engine.dropped.keys() - self._dropped)
        self._dropped |= set(kinds)
        return [Line(logging.WARNING, f"not taken, and counted from here on: {kind}") for kind in kinds]

    def _of_saturated(self) -> list[Line]:
        """Say once of which symbols more was traded than the numbers of a kline hold."""
        symbols = set(np.flatnonzero(self._engine.book.symbols["saturated"]).tolist()) - self._saturated
        self._saturated |= symbols
        text = (
            "more was traded than a kline's numbers hold; those klines are `saturated` and not final, all others go on"
        )
        return [Line(logging.WARNING, f"{self._engine.symbols[symbol]}: {text}") for symbol in sorted(symbols)]
