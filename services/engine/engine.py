"""The engine's state machine: events in, rows and wishes out. It owns all kline state.

Pure: no socket, no file, no environment, no log, and no clock but the `monotonic_ns` it is given. Decides when klines
open and close, which trades are missing and must be asked for, what is saved when, and how a symbol begins. How a trade
gets into the rows is the kernel's; how a row looks to a subscriber is snapshots.py's.

How it lives:

1. It begins when it knows the exchange's time (`FeedState`) and what the store holds (`Restored`). Until then trades do
   not count: they are found missing later, by their ids.
2. It tells ingest every symbol that it knows; ingest announces all others (`AddSymbol`).
3. Whatever begins, begins at a *seam*: trades before it are in the exchange's own klines, trades from it on are applied
   by id. A restored symbol's seam is past and only its frontier matters; one that was away for long is reseeded.
4. What is missing is asked for (repair.py). A symbol that cannot be repaired by id is reseeded, from where it lacks
   something: at another seam, with the exchange's own klines before it.
5. A batch for the store is a consistent cut of rows and frontiers, and there is one at a time.
"""

from typing import assert_never

import numpy as np
from msgspec.structs import replace

from services.engine.audit import Audit
from services.engine.backfill import put_rows
from services.engine.book import (
    lay_out,
    memory_begin,
    next_minute,
    set_calendars,
    settle,
    would_lose,
)
from services.engine.gaps import missing_ids
from services.engine.kernel import apply_trades
from services.engine.liveness import Liveness
from services.engine.marks import Marks
from services.engine.passing import Passing
from services.engine.repair import Repair
from services.engine.rewriting import Rewriting
from services.engine.saving import Saving
from services.engine.seeding import Seeding, grid_3d_of
from services.engine.symbols import SymbolTable, coarser
from services.engine.validation import Validation
from shared.arrays import Rows
from shared.clock import ExchangeClock
from shared.compiled import fixed
from shared.config import AuditConfig, EngineConfig
from shared.interval import INTERVAL_INDEX
from shared.kline import FINAL, TRADE
from shared.merging import rescale
from shared.wire import (
    AddSymbol,
    AppEvent,
    Command,
    DirtyBatch,
    FeedState,
    FetchTrades,
    Klines,
    Listed,
    Persisted,
    Prefer,
    RemoveSymbol,
    Restored,
    StoreState,
    Subscribe,
    SymbolMark,
    Trades,
    Unsubscribe,
    kline_rows,
    placed_rows,
    trade_rows,
)

FUTURE_MAX_MS = 30_000
"""A trade further ahead of the exchange's clock than our measurement of it can be wrong is impossible."""
SETTLED_MS = 5_000
"""So long after its end a minute of the exchange's is there: ingest waits for three seconds."""
INTRODUCE_AGAIN_MS = 1_500
"""An ingest that does not know us after this long has not heard us: it was not there yet, or died with the message."""


class KlineEngine:
    def __init__(
        self, config: EngineConfig, clock_speed: float = 1.0, session: int = 0, audit: AuditConfig | None = None
    ) -> None:
        """`session` differs from that of every engine before it."""
        self._config = config
        self.session = session
        self.clock = ExchangeClock(clock_speed)
        self.book, trackers = lay_out(config.symbols_max, config.window)
        self.unsaved, self.changed, self._gapped = trackers
        self._minute = self.book.calendars[0, 0]
        self._passing = Passing()
        self.table = SymbolTable(self.book, self._passing)
        self.symbols = self.table.names
        """By the book's index."""
        self.repair = Repair(config, self.book, self.symbols, replays=clock_speed == 0)
        self.audit = Audit(audit or AuditConfig(), self.book, self.symbols)
        self._marks = Marks(self.book, self.table, self.repair, self.audit)
        self.saving = Saving(config, session, self.book, self.unsaved, self.table, self._passing, self._marks)
        self._validation = Validation(self.clock, session, self.saving)
        self._seeding = Seeding(self.book, self.table, self.repair, self.audit)
        nothing = np.zeros(0, np.int64)
        self._apply_rows = fixed(apply_trades, self.book, np.zeros(0, TRADE), 0, nothing, nothing, nothing, 0, 0)
        self.feed: FeedState | None = None
        self._rewriting = Rewriting(self.book, self.unsaved, self.table, self.repair)
        self.store_changes = 0
        """How often the store turned out to be set back, emptied or another, and all was saved again."""
        self.lag_ms = 0
        """How old the feed's newest trades were when they came, by the exchange's clock: the load that is too much."""
        self.liveness = Liveness()
        self.listed: list[str] | None = None
        """What trades, says ingest, known to the engine or not; None: it has not said."""
        self.started = False
        self.reseeded = 0
        """Symbols whose gaps were filled with the exchange's own klines."""
        self.dropped: dict[str, int] = {}
        """What was not taken, by reason; the kernel's own counters are in `book.counters`."""

        self._commands: list[Command] = []
        self._restored: list[Restored] = []
        self._resumes = False
        self._absent: dict[str, SymbolMark] = {}
        """Symbols that are reseeded and what was known of them: from their proven time on, something is lacking."""
        self._introduce_at = 0
        self._held: list[Trades] = []
        """Of a replay: trades that would push rows out of memory which are unsaved, or lack what is being asked for."""

    # Events.

    def apply(self, event: AppEvent, now_ns: int) -> None:
        """Take an event: the only way to change state, clock ticks aside. Raises WireError on rows that are none."""
        if not isinstance(event, Trades):
            settle(self.book, False)
            if objection := self._validation.objection(event, now_ns):
                self._drop(objection)
                return
        match event:
            case Trades():
                self._apply_trades(event, now_ns)
            case FeedState():
                self._apply_feed(event, now_ns)
            case AddSymbol():
                self._add(event, now_ns)
            case RemoveSymbol():
                self._remove(event.symbol)
            case Klines():
                self._take_klines(event, now_ns)
            case Restored():
                self._restore(event, now_ns)
            case Persisted():
                self._persisted(event, now_ns)
            case StoreState():
                self._store_changed(event)
            case Listed():
                self.listed = event.symbols
            case _:
                assert_never(event)

    def tick(self, now_ns: int) -> bool:
        """Open the minutes that the exchange's clock has reached, and ask again for what is still missing.

        Return whether rows may have changed.
        """
        if not self.started:
            return False
        rows_changed = bool(self._held)
        if self._held:
            self._replay_held(now_ns)
        if not self._held:
            minute_end = self.minute_end
            self._open_minutes(self.clock.now(now_ns))
            if self.minute_end != minute_end:
                rows_changed = True
                self._commands += self.audit.due(self.minute_end)
        due = self.repair.due(now_ns, self.minute_end, self.saving.refused)
        self._commands += due.commands
        if due.unrepairable:
            self._reseed(due.unrepairable, now_ns)
        return rows_changed

    def take_commands(self) -> list[Command]:
        """Return what is to be asked of ingest, in order."""
        commands, self._commands = self._commands, []
        return commands

    def wait_ms(self, now_ns: int) -> int | None:
        """Return how long until there is something to do without an event, ms; None if there is nothing."""
        if not self.started:
            return None
        waits = []
        minute = self.clock.wait_ms(self.minute_end, now_ns)
        if minute is not None:
            waits.append(minute)
        for at in (self.repair.due_at(), self.saving.due_at()):
            if at is not None:
                waits.append(max(0, at - now_ns) // 1_000_000)
        return min(waits, default=None)

    def prefer(self, symbols: list[str]) -> None:
        """Let these begin before all others that wait."""
        self._commands.append(Prefer(symbols))

    @property
    def minute_end(self) -> int:
        """The end of the newest 1m klines, exclusive; 0 before the start."""
        return int(self._minute["end_time"])

    # Trades.

    def _apply_trades(self, batch: Trades, now_ns: int) -> None:
        if not self.started:
            self._drop("trades before the start", len(trade_rows(batch.rows)))
            return
        if batch.event_time:
            if self.clock.speed == 0:
                self.clock.at_least(batch.event_time, now_ns)
            now = self.clock.now(now_ns)
            self.lag_ms = max(0, now - batch.event_time)
            self.liveness.traded(min(batch.event_time, now + FUTURE_MAX_MS), self.lag_ms, now_ns)
        if self._held and batch.event_time:
            self._held.append(batch)
            return
        if (left := self._apply_batch(batch, now_ns)) is not None:
            self._held.append(left)

    def _apply_batch(self, batch: Trades, now_ns: int) -> Trades | None:
        """Apply a batch and return what of it must wait, if anything."""
        table, rows = self.table.table_of(batch), trade_rows(batch.rows)
        symbols, price_factors, quantity_factors, finer = table
        for instrument, divisors in finer.items():
            if (rows["symbol"] == instrument).any():
                rows, symbols = rows.copy(), symbols.copy()
                if not coarser(rows, instrument, *divisors):
                    self._drop("trades whose decimals do not fit")
                    symbols[instrument] = -1
        limits = self.clock.now(now_ns) + FUTURE_MAX_MS, int(self.clock.speed == 0)
        done = 0
        while True:
            done = self._apply_rows(self.book, rows, done, symbols, price_factors, quantity_factors, *limits)
            if done == len(rows) or not self._open_minutes(int(rows[done]["time"])):
                break
        if len(self._gapped):
            self._note_gapped(now_ns)
        if done < len(rows):
            return Trades(batch.instruments, rows[done:].tobytes(), batch.event_time, batch.covered)
        parts = [part for part in batch.covered if 0 <= part.instrument < len(symbols)]
        for part in parts:
            if symbols[part.instrument] >= 0:
                self.repair.take_answer(int(symbols[part.instrument]), part, rows, now_ns)
        if not batch.event_time:
            known = symbols[symbols >= 0]
            covered = {int(symbols[part.instrument]): part.last_id for part in parts}
            self.repair.note_answer(known, now_ns, covered)
        return None

    def _note_gapped(self, now_ns: int) -> None:
        """Ask for what has turned out to be missing; symbols whose ids restart do so themselves."""
        gapped = self._gapped.drain()
        self.repair.note(gapped, now_ns)
        for symbol in gapped[self.book.symbols["contradicted"][gapped] > 0].tolist():
            if self.clock.speed:
                self._wait_for_seam(symbol, now_ns)
            else:
                self.book.symbols[symbol]["contradicted"] = 0

    def _wait_for_seam(self, symbol: int, now_ns: int) -> None:
        """Let a symbol whose ids have restarted do so itself once that minute is over: trades of both are in it."""
        wait_ms = self.clock.wait_ms(int(self.book.symbols[symbol]["contradicted"]), now_ns) or 0
        self.repair.contradict(symbol, now_ns + (wait_ms + SETTLED_MS) * 1_000_000)

    def gaps(self, symbol: int) -> list[tuple[int, int]]:
        """Return the missing ids below a symbol's last id: ascending ranges, both ends inclusive."""
        return missing_ids(self.book.symbols[symbol], self.book.gaps[symbol])

    # The clock.

    def _open_minutes(self, time_ms: int) -> bool:
        """Open all minutes up to the one of `time_ms`. Return False if that must wait, in a replay."""
        while self.minute_end <= time_ms:
            if self.clock.speed == 0 and would_lose(self.book, len(self.symbols)):
                return False
            next_minute(self.book, len(self.symbols))
        return True

    def _replay_held(self, now_ns: int) -> None:
        while self._held:
            left = self._apply_batch(self._held[0], now_ns)
            if left is not None:
                self._held[0] = left
                self.saving.save_now()
                return
            del self._held[0]

    def _apply_feed(self, state: FeedState, now_ns: int) -> None:
        if self.clock.speed:
            self.clock.set(state.exchange_time, state.monotonic_ns)
        else:
            self.clock.at_least(state.exchange_time, now_ns)
        known, self.feed = self.feed, state
        self.liveness.fed(state.session, now_ns)
        if not self.started:
            self._try_to_start(now_ns)
            return
        another = known is None or known.session != state.session
        if state.engine != self.session and (another or now_ns >= self._introduce_at):
            self._introduce(now_ns)
        if known is None or (known.session, known.since) != (state.session, state.since):
            self.repair.note_silence(state.since, now_ns)

    # How it begins.

    def _restore(self, part: Restored, now_ns: int) -> None:
        if self.started or part.session != self.session:
            self._drop("rows restored for another engine")
            return
        self._restored.append(part)
        self._try_to_start(now_ns)

    def _try_to_start(self, now_ns: int) -> None:
        if not self.clock.known or not self._restored:
            return
        parts, self._restored = self._restored, []
        now = self.clock.now(now_ns)
        if not self.minute_end:
            stored_time = parts[0].exchange_time
            self._resumes = 0 <= now - stored_time <= self._config.resume_max_ms
            set_calendars(self.book, stored_time if self._resumes else now)
        for part in parts:
            rows = placed_rows(part.rows)
            rows = rows[np.lexsort((rows["interval"], rows["symbol"]))]
            ends = np.searchsorted(rows["symbol"], np.arange(len(part.marks)), "right")
            begin = 0
            for mark, end in zip(part.marks, ends.tolist(), strict=True):
                newest = int(rows["kline"]["open_time"][begin:end].max(initial=0))
                if self._resumes and mark.active and (now - newest <= self._config.resume_max_ms or begin == end):
                    self._resume(mark, rows[begin:end], now_ns)
                else:
                    self._absent[mark.symbol] = mark
                begin = end
        if parts[-1].last:
            self.started = True
            self.saving.point = parts[-1].point
            self.saving.wait(now_ns)
            self._open_minutes(now)
            self._introduce(now_ns)
            self.repair.note_silence(self.feed.since if self.feed else 0, now_ns)

    def _resume(self, mark: SymbolMark, rows: Rows, now_ns: int) -> None:
        symbol = self._add_symbol(mark.symbol, mark.stream, mark.grid_3d)
        if symbol >= 0:
            self._seeding.resume(symbol, mark, rows, now_ns)

    def _introduce(self, now_ns: int) -> None:
        """Tell ingest all we know: it subscribes that, and announces every other symbol that trades."""
        self._introduce_at = now_ns + INTRODUCE_AGAIN_MS * 1_000_000
        active = self.book.symbols["active"]
        live = set(np.flatnonzero(active[: len(self.symbols)]).tolist()) - self.repair.unrepairable
        streams = [self.table.streams[symbol] for symbol in sorted(live)]
        self._commands.append(Subscribe(streams, complete=True, engine=self.session))
        self.repair.ask_again()

    def _reseed(self, symbols: list[int], now_ns: int) -> None:
        """Have symbols announced again: what they lack from their first gap on comes as the exchange's own klines."""
        self._absent |= {mark.symbol: mark for mark in self._marks.of(np.array(symbols))}
        self.reseeded += len(symbols)
        self._introduce(now_ns)

    def _add_symbol(self, name: str, stream: str, grid_3d: int) -> int:
        """Return the index of a symbol that begins from nothing; -1 if the book is full."""
        symbol = self.table.add(name, stream, grid_3d)
        if symbol < 0:
            self._drop("symbols beyond symbols_max")
        return symbol

    def _add(self, event: AddSymbol, now_ns: int) -> None:
        if not self.started:
            self._drop("symbols announced before the start")
            return
        announced = self._seeding.announced(event)
        if announced is None:
            self._drop("symbols whose klines do not fit")
            return
        known = self.table.index.get(event.symbol, -1)
        absent = self._absent.get(event.symbol)
        if absent is not None and known >= 0 and event.klines_until < self.book.symbols[known]["contradicted"]:
            self._wait_for_seam(known, now_ns)
            return
        self._absent.pop(event.symbol, None)
        if known >= 0 and self.book.symbols[known]["active"] and absent is None:
            self._commands.append(Subscribe([event.stream]))
            return
        symbol = self._add_symbol(event.symbol, event.stream, grid_3d_of(event, announced))
        if symbol < 0:
            return
        if self.clock.speed == 0:
            self.clock.at_least(event.event_time, now_ns)
        self._open_minutes(max(event.klines_until, self.clock.now(now_ns)))
        off = self._seeding.begin(symbol, event, announced, absent, now_ns)
        if off:
            self._drop("klines off the calendar", off)
        self._commands.append(Subscribe([event.stream]))
        self._commands.append(FetchTrades(event.symbol, 0, -1, event.klines_until))

    def _remove(self, name: str) -> None:
        symbol = self.table.index.get(name, -1)
        if symbol < 0 or not self.book.symbols[symbol]["active"]:
            return
        self.book.symbols[symbol]["active"] = 0
        self.book.symbols[symbol]["mark_changed"] = 1
        self._commands.append(Unsubscribe([self.table.streams[symbol]]))

    # Klines of the exchange that were asked for.

    def _take_klines(self, event: Klines, now_ns: int) -> None:
        """Take the exchange's own klines: into memory where it has no proven ones, and what is older to the store."""
        symbol = self.table.index.get(event.symbol, -1)
        interval = INTERVAL_INDEX.get(event.interval, -1)
        rows = kline_rows(event.rows)
        if symbol < 0 or interval < 0 or not self._passing.has_capacity(len(rows)):
            self._drop("klines that nobody asked for", len(rows))
            return
        state = self.book.symbols[symbol]
        if not self.table.grow(symbol, event.price_decimals, event.quantity_decimals):
            self._drop("klines whose decimals do not fit", len(rows))
            return
        rows = rows.copy()
        price_factor = 10 ** (int(state["price_decimals"]) - event.price_decimals)
        rescale(rows, price_factor, 10 ** (int(state["quantity_decimals"]) - event.quantity_decimals))
        if event.audit:
            self._compare(symbol, rows, now_ns)
            return
        last = int(rows[-1]["open_time"]) if len(rows) else None
        self.repair.klines_came(symbol, interval, event.start_time, last)
        held = self.book.rows[symbol, interval]
        proven = held["open_time"][(held["flags"] & FINAL) != 0]
        older = rows["open_time"] < memory_begin(self.book, symbol, interval)
        put_rows(self.book, symbol, interval, rows[~older & ~np.isin(rows["open_time"], proven)], True)
        if older.any():
            self._passing.add(symbol, interval, rows[older])

    def _compare(self, symbol: int, rows: Rows, now_ns: int) -> None:
        """Compare a symbol's minutes with the exchange's own."""
        if self.repair.unexplained(symbol):
            reseed_from = self.repair.settle(symbol, *self.audit.equal(symbol, rows))
            if reseed_from is not None and symbol not in self.repair.unrepairable:
                self.repair.unrepairable.add(symbol)
                self._reseed([symbol], now_ns)
                return
        mismatches, unproven = self.audit.take(symbol, rows)
        self.book.symbols[symbol]["mark_changed"] = 1
        if unproven:
            self.repair.suspect(symbol, now_ns)
        if mismatches and self.audit.adopts and self.symbols[symbol] not in self._absent:
            (mark,) = self._marks.of(np.array([symbol]))
            self._absent[mark.symbol] = replace(mark, proven_time=min(mark.proven_time, mismatches[0].open_time))
            self.repair.unrepairable.add(symbol)
            self._introduce(now_ns)

    # Saving.

    def take_batch(self, now_ns: int, last: bool = False) -> DirtyBatch | None:
        """Return the next batch for the store if one is due, or with `last` whatever is unsaved.

        Its caller sends it, or calls `saving.lost`.
        """
        if not self.started or not (self.saving.due(now_ns) or (last and not self.saving.under_way)):
            return None
        settle(self.book, False)
        if self.book.any_lost[0]:
            self._rewriting.want_lost()
        return self.saving.take(now_ns, self.clock.now(now_ns))

    def _persisted(self, event: Persisted, now_ns: int) -> None:
        if self.saving.acknowledge(event, now_ns):
            self.liveness.saved(now_ns)
        else:
            self._drop("acknowledgements of nothing")

    def _store_changed(self, state: StoreState) -> None:
        self.liveness.seen("persist", state.session)
        if self.started and not state.point.continues(self.saving.point, self.session):
            self.store_changes += 1
            self._rewriting.all_of(state, self._passing.begins())
            self.saving.point = state.point
        self.saving.lost(0)
        self.saving.save_now()

    # Figures.

    def _drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
