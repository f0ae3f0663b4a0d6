"""The tables, and a persist that takes its time and ends at any moment."""

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
    StorePoint,
    StoreState,
    SymbolMark,
    placed_rows,
)
from tests.engine.played import FIELDS, MINUTE, START, next_open, number
from tests.seeds.world import World


class Store:
    """The tables, and a persist that takes its time and ends at any moment."""

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
        self.point = StorePoint()
        self.refuses = ""
        """A symbol that the database does not take at present."""

    def backed_up(self) -> Callable[[], None]:
        """Return what sets the store back to what it has, as a restore does, or a failover that lagged."""
        rows = {key: row.copy() for key, row in self.rows.items()}
        unproven = {name: set(keys) for name, keys in self.unproven.items()}
        marks, time, point = dict(self.marks), self.time, self.point

        def set_back() -> None:
            if self.world.faults:
                self.rows, self.unproven = rows, defaultdict(set, unproven)
                self.marks, self.time, self.point = marks, time, point

        return set_back

    def empty(self) -> None:
        self.rows, self.unproven, self.marks, self.time, self.point = {}, defaultdict(set), {}, 0, StorePoint()

    def state(self) -> StoreState:
        lacking = [(name, *part) for name, mark in self.marks.items() for part in mark.lacking]
        open_times: dict[tuple[str, str], list[int]] = defaultdict(list)
        for (name, interval, time), row in self.rows.items():
            if not row["flags"] & FINAL:
                # After one that was still open there may be more to come.
                open_times[name, interval] += [time] if row["flags"] & CLOSED else [time, 2**53]
        unproven = [(*key, min(times), max(times)) for key, times in open_times.items()]
        return StoreState(self.session, self.point, self.time, unproven + lacking)

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
            for index, key in enumerate(keys):
                rows[index]["interval"] = INTERVAL_NAMES.index(key[1])
                rows[index]["kline"] = self.rows[key]
            parts.append(Restored(request.session, [mark], rows.tobytes(), False, self.time, self.point))
        return [*parts, Restored(request.session, [], b"", True, self.time, self.point)]

    def take(self, saved: DirtyBatch, answer: Callable[[Persisted | StoreState], None]) -> None:
        """Save a batch once the database is there, unless this persist ends before."""
        life = self.life

        def commit() -> None:
            if life != self.life or saved.session != self.engine_session:
                return
            if self.world.now < self.away_until:
                self.world.after(1_000, commit)
                return
            if not self.point.continues(saved.after, saved.session):
                answer(self.state())
                return
            refused = [mark.symbol for mark in saved.marks if mark.symbol == self.refuses]
            for placed in placed_rows(saved.rows):
                name = saved.marks[placed["symbol"]].symbol
                if name in refused:
                    continue
                kline = placed["kline"].copy()
                key = name, INTERVAL_NAMES[placed["interval"]], int(kline["open_time"])
                self.judge(key, kline)
                self.rows[key] = kline
                if kline["flags"] & (FINAL | UNEXPLAINED):
                    self.unproven[name].discard(key)
                else:
                    self.unproven[name].add(key)
            taken = [mark for mark in saved.marks if mark.symbol not in refused]
            self.marks |= {mark.symbol: mark for mark in taken}
            for mark in taken:
                self.flag(mark)
                self.prove(mark)
            self.time = saved.exchange_time
            self.point = StorePoint(self.point.tables or f"made at {self.world.now}", saved.session, saved.batch)
            if not self.world.fails(0.05):
                answer(Persisted(saved.session, saved.batch, self.point.tables, refused))
            else:
                self.end()

        self.world.after(self.world.source.expovariate(1 / 50), commit)

    def judge(self, key: tuple[str, str, int], kline: np.void) -> None:
        """Note a kline that was final and has other numbers now: it was said of what was not proven."""
        before = self.rows.get(key)
        names = FIELDS[:9] if kline["trade_count"] else FIELDS[4:9]
        changed = {}
        if before is not None and before["flags"] & FINAL:
            both = {name: (number(before, name), number(kline, name)) for name in names}
            changed = {name: (was, is_) for name, (was, is_) in both.items() if was != is_}
        if changed:
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

    def end(self) -> None:
        self.life += 1
        self.session += 1
