"""The tables, and a persist that takes its time and dies."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from shared.interval import INTERVAL_NAMES
from shared.kline import CLOSED, FINAL, PLACED_KLINE, UNEXPLAINED
from shared.wire import (
    DirtyBatch,
    Load,
    Persisted,
    Restored,
    SymbolMark,
    placed_rows,
)
from tests.engine.played import FIELDS, MINUTE, START, next_open
from tests.simulated.world import World


class Store:
    """The tables, and a persist that takes its time and dies."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows: dict[tuple[str, str, int], np.void] = {}
        self.unproven: dict[str, set[tuple[str, str, int]]] = defaultdict(set)
        """The keys of those that are not final, and may become so."""
        self.changed_finals: dict[str, list[str]] = defaultdict(list)
        """By symbol: klines that were final and then changed their numbers."""
        self.marks: dict[str, SymbolMark] = {}
        self.time = 0
        self.away_until = 0
        self.session = 1
        self.life = 0
        self.engine_session = 0

    def load(self, request: Load) -> list[Restored]:
        self.engine_session = request.session
        parts = []
        open_times: dict[tuple[str, str], list[int]] = defaultdict(list)
        for name, interval, open_time in self.rows:
            open_times[name, interval].append(open_time)
        for name, mark in self.marks.items():
            keys = []
            for interval, count in zip(INTERVAL_NAMES, request.rows, strict=True):
                times = sorted(open_times[name, interval])
                keys += [(name, interval, time) for time in times[-count:]]
            rows = np.zeros(len(keys), PLACED_KLINE)
            for place, key in enumerate(keys):
                rows[place]["interval"] = INTERVAL_NAMES.index(key[1])
                rows[place]["kline"] = self.rows[key]
            parts.append(Restored(request.session, [mark], rows.tobytes(), False, self.time))
        return [*parts, Restored(request.session, [], b"", True, self.time)]

    def take(self, saved: DirtyBatch, acknowledge: Callable[[Persisted], None]) -> None:
        """Save a batch once the database is there, unless this persist dies before."""
        life = self.life

        def commit() -> None:
            if life != self.life or saved.session != self.engine_session:
                return
            if self.world.now < self.away_until:
                self.world.after(1_000, commit)
                return
            for placed in placed_rows(saved.rows):
                name = saved.marks[placed["symbol"]].symbol
                kline = placed["kline"].copy()
                key = name, INTERVAL_NAMES[placed["interval"]], int(kline["open_time"])
                self.judge(key, kline)
                self.rows[key] = kline
                if kline["flags"] & (FINAL | UNEXPLAINED):
                    self.unproven[name].discard(key)
                else:
                    self.unproven[name].add(key)
            self.marks |= {mark.symbol: mark for mark in saved.marks}
            for mark in saved.marks:
                self.flag(mark)
                self.prove(mark)
            self.time = saved.exchange_time
            if not self.world.fails(0.05):
                acknowledge(Persisted(saved.session, saved.batch))
            else:
                self.die()

        self.world.after(self.world.source.expovariate(1 / 50), commit)

    def judge(self, key: tuple[str, str, int], kline: np.void) -> None:
        """Note a kline that was final and has other numbers now: it was said of what was not proven."""
        before = self.rows.get(key)
        names = FIELDS[:9] if kline["trade_count"] else FIELDS[4:9]
        if before is not None and before["flags"] & FINAL and any(before[name] != kline[name] for name in names):
            changed = {name: (int(before[name]), int(kline[name])) for name in names if before[name] != kline[name]}
            minute = (key[2] - START) / MINUTE
            self.changed_finals[key[0]].append(f"{key[1]} {minute:.0f} was final and changed: {changed}")

    def flag(self, mark: SymbolMark) -> None:
        """What has left the engine's memory says here that ids are unexplained which may belong to it."""
        for ids in mark.unexplained:
            for key, row in self.rows.items() if ids.outcome == "open" else ():
                if key[0] == mark.symbol and key[2] <= ids.to_time and next_open(*key[1:]) > ids.from_time:
                    row["flags"] = row["flags"] & ~FINAL | UNEXPLAINED
                    self.unproven[mark.symbol].discard(key)

    def prove(self, mark: SymbolMark) -> None:
        """What has left the engine's memory becomes final here."""
        if mark.lacking:
            return
        for key in list(self.unproven[mark.symbol]):
            if self.rows[key]["flags"] & CLOSED and next_open(key[1], key[2]) <= mark.proven_time:
                self.rows[key]["flags"] |= FINAL
                self.unproven[mark.symbol].discard(key)

    def die(self) -> None:
        self.life += 1
        self.session += 1
