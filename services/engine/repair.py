"""What is missing, and how it is brought in: trades by their ids, and where that cannot be, the exchange's own klines.

Decides what is asked when, and when to give up on trades. Knows no messages that come in and changes no row.

1. A missing id is asked for at once, and again while it stays missing: soon where nobody has answered, later and later
   where an answer has left it out. After `LEFT_OUT_MAX` of those it is *unexplained*, and asked for no more.
2. A symbol whose missing ids are too many, or too old for their rows to be in memory, or that nobody answers for, is
   *unrepairable*: it is reseeded at a later seam, from the exchange's own klines.
3. What was traded last before the feed came up shows by the next id only; a symbol that stays silent is asked
   about, until somebody answers.
4. Klines that the store lacks and memory no longer has are asked of the exchange, a few at a time.
5. Whether unexplained ids carry trades is settled by the exchange's own klines of the minutes that they may belong to
   (`settle`): where those are ours, the ids carry none, and where they are not, the symbol is reseeded from there.

A recording has nobody else to ask: one answer is all there is, nothing settles it, and no symbol is reseeded.
"""

from collections.abc import Container
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.engine.book import Book
from services.engine.gaps import LEFT_OUT_MS, missing_ids, remove
from services.engine.kernel import apply_answer
from services.engine.proof import flag_unexplained
from shared.arrays import Rows
from shared.bounds import ID_MAX
from shared.calendar import next_open_time
from shared.config import EngineConfig
from shared.interval import INTERVAL_NAMES, MINUTE_MS
from shared.wire import Command, Covered, FetchKlines, FetchTrades, Unexplained

ASK_AGAIN_MS = 1_000
"""After an answer, the rest of a gap may be on its way for this long."""
ASKS_MAX = 8
"""Gaps of one symbol asked for at once."""
IDS_MAX = 1_000_000
"""Missing ids of all symbols that are worth asking for: some ten minutes of the exchange's request budget. The klines
of a symbol cost less than a thousand of its trades."""
IDS_MIN = 2_000
"""A symbol's share of that, at the least."""
NEVER = 2**62
PATIENCE_MS = 300_000
"""How long nobody may have an answer, however often missing ids, or the newest, are asked for."""
LEFT_OUT_MAX = len(LEFT_OUT_MS) + 1
SLOW_AFTER_MS, SLOW_MS = 300_000, 60_000
"""A symbol some of whose ids are left out for so long is asked about one range a minute: 1 % of the request budget."""
SETTLED_MS = 120_000
"""So long after its end a kline of the exchange's is not corrected any more, as far as was seen, ..."""
SETTLE_AGAIN_MS = 30_000
"""... and so soon is asked again for one that was not answered."""
SETTLE_MINUTES_MAX = 100
"""Of one question: they cost weight 1 (protocol §3.3). A hole over more of them is not worth a proof."""
UNEXPLAINED_MAX = 1_000
"""Ranges of a symbol that are remembered; the oldest are forgotten. Their rows say it all the same."""
KLINE_ASKS_MAX = 100
"""Ranges of klines asked for at once, ..."""
KLINES_AGAIN_MS = 5_000
"""... and how soon the next ones are, or those that were not answered."""


class Due(NamedTuple):
    commands: list[Command]
    unrepairable: list[int]
    """Symbols that are to be reseeded."""


class Repair:
    def __init__(self, config: EngineConfig, book: Book, symbols: list[str], replays: bool = False) -> None:
        """`symbols` are the engine's, by the book's index; `replays`: they are recorded, and nobody knows more."""
        self._config = config
        self._replays = replays
        self._left_out_max = 1 if replays else LEFT_OUT_MAX
        """After so many answers that leave it out an id is unexplained."""
        self._book = book
        self._symbols = symbols
        self._ask_at: dict[int, int] = {}
        """Symbols with missing ids, and when (monotonic ns) to ask for them."""
        self._soonest = 0
        """None of them is due before: a start has hundreds of them, and most turns none that is due."""
        self._suspected: dict[int, int] = {}
        """Symbols whose newest trades were asked for, and nobody has said what they are; their last ids then."""
        self._left_out_since: dict[int, int] = {}
        """Symbols that answers have left ids out of, and since when (monotonic ns) they have lacked some."""
        self._unchanged: dict[int, tuple[int, int]] = {}
        """How many ids a symbol was missing when last asked for, and since when they were so many."""
        self.unrepairable: set[int] = set()
        """Symbols that wait for their beginning."""
        self._contradicted: dict[int, int] = {}
        """Symbols whose ids have restarted, and when (monotonic ns) they may."""
        self._unheard: dict[int, int] = {}
        """Symbols and their last ids when the feed came up, ..."""
        self._heard_since = self._unheard_at = 0
        """... and when (monotonic ns) those that are still there are asked about."""
        self._settled: dict[int, list[Unexplained]] = {}
        """What was unexplained of a symbol, and what came of it."""
        self._settle_at: dict[int, int] = {}
        """Symbols with unexplained ids, and when (monotonic ns) to ask for klines that settle them."""
        self._klines: dict[tuple[int, int], list[tuple[int, int]]] = {}
        """By symbol and interval: the open times between which the store lacks klines, and memory too."""
        self._klines_at = 0

    def note(self, symbols: NDArray[np.int64], now_ns: int) -> None:
        """These symbols have gaps that may be new."""
        for symbol in symbols[self._book.symbols["gap_count"][symbols] > 0].tolist():
            soon_ns = now_ns + self._config.gap_retry_ms * 1_000_000
            self._plan(symbol, min(self._ask_at.get(symbol, now_ns), soon_ns))
            if symbol not in self._settle_at and self._unexplained_gaps(symbol):
                self.note_unexplained(symbol, now_ns)

    def note_answer(self, symbols: NDArray[np.int64], now_ns: int, covered: dict[int, int]) -> None:
        """Somebody has answered for these symbols; `covered`: up to which id, for those of which there were any."""
        for symbol in symbols.tolist():
            if covered.get(symbol, ID_MAX) >= self._book.symbols[symbol]["last_id"]:
                self._suspected.pop(symbol, None)
            if symbol in self._ask_at:
                self._plan(symbol, min(self._ask_at[symbol], now_ns + self._again_ms(symbol, now_ns) * 1_000_000))

    def _is_slow(self, symbol: int, now_ns: int) -> bool:
        return now_ns - self._left_out_since.get(symbol, now_ns) > SLOW_AFTER_MS * 1_000_000

    def _again_ms(self, symbol: int, now_ns: int) -> int:
        """Return how soon to ask again, after an answer, for what is still missing of a symbol."""
        if self._is_slow(symbol, now_ns):
            return SLOW_MS
        gaps = self._missing_gaps(symbol)
        if symbol in self._suspected or not len(gaps):
            return ASK_AGAIN_MS
        return max(ASK_AGAIN_MS, int(_due_ms(gaps).min()) - now_ns // 1_000_000)

    def _missing_gaps(self, symbol: int) -> Rows:
        gaps = self._book.gaps[symbol, : self._book.symbols[symbol]["gap_count"]]
        missing: Rows = gaps[gaps["unexplained"] == 0]
        return missing

    # What is unexplained.

    def take_answer(self, symbol: int, part: Covered, trades: Rows, now_ns: int) -> None:
        """Take what an answer about a range of ids leaves out of it; its TRADE[n] were applied, or refused."""
        older_to = part.older_to
        if not part.first_id and older_to < 0 and self._is_new(symbol):
            # Its life, or a recording, begins with its first trade: what was before that is no hole.
            own = trades["id"][trades["symbol"] == part.instrument]
            older_to = int(own[0]) - 1 if len(own) else part.last_id
        at_ms = now_ns // 1_000_000
        if apply_answer(self._book, symbol, part.first_id, part.last_id, older_to, self._left_out_max, at_ms):
            self.note_unexplained(symbol, now_ns)
        gaps = self._book.gaps[symbol, : self._book.symbols[symbol]["gap_count"]]
        if ((gaps["left_out"] > 0) & (gaps["unexplained"] == 0)).any():
            self._left_out_since.setdefault(symbol, now_ns)

    def _is_new(self, symbol: int) -> bool:
        """Say whether there is no kline of a symbol from before its seam."""
        held = self._book.rows[symbol, 0]["open_time"]
        return not ((held > 0) & (held < self._book.symbols[symbol]["seam_time"])).any()

    def note_unexplained(self, symbol: int, now_ns: int) -> None:
        """Ids of a symbol have become unexplained: they are settled, or in a replay kept as what they are."""
        if self._replays:
            for gap in self._unexplained_gaps(symbol):
                self._settle(symbol, gap, "open")
        else:
            self._settle_at[symbol] = now_ns

    def settle(self, symbol: int, open_times: list[int], matches: list[bool]) -> int | None:
        """Take which of a symbol's minutes, ascending, are the same at the exchange: ids that may belong to no others
        carry no trade. Return the time from which the symbol must be reseeded; None if it need not.
        """
        if self._replays:
            return None
        match_of = dict(zip(open_times, matches, strict=True))
        for gap in self._unexplained_gaps(symbol):
            minutes = range(gap.from_time // MINUTE_MS * MINUTE_MS, gap.to_time + 1, MINUTE_MS)
            if not all(minute in match_of for minute in minutes):
                continue
            if not all(match_of[minute] for minute in minutes):
                return gap.from_time
            self._settle(symbol, gap, "audited")
            flag_unexplained(self._book, symbol, gap.from_time, gap.to_time, True)
        return None

    def unexplained(self, symbol: int) -> list[Unexplained]:
        """Return all that is remembered of a symbol's unexplained ids, ascending."""
        settled = self._settled.get(symbol, [])
        if not self._book.symbols[symbol]["gap_count"]:
            return settled
        return sorted(settled + self._unexplained_gaps(symbol), key=lambda ids: ids.first_id)

    def remember(self, symbol: int, unexplained: list[Unexplained], adopted: bool) -> None:
        """Go on with what was known of a symbol's unexplained ids; those that are open are its gaps', or `adopted`."""
        kept = [
            Unexplained(ids.first_id, ids.last_id, ids.from_time, ids.to_time, "adopted")
            if ids.outcome == "open"
            else ids
            for ids in unexplained
            if adopted or ids.outcome != "open"
        ]
        if kept:
            self._settled[symbol] = kept
        else:
            self._settled.pop(symbol, None)

    def _unexplained_gaps(self, symbol: int) -> list[Unexplained]:
        gaps = self._book.gaps[symbol, : self._book.symbols[symbol]["gap_count"]]
        gaps = gaps[gaps["unexplained"] != 0]
        columns = (gaps[name].tolist() for name in ("first_id", "last_id", "from_time", "to_time"))
        return [Unexplained(*gap) for gap in zip(*columns, strict=True)]

    def _settle(self, symbol: int, gap: Unexplained, outcome: str) -> None:
        """Ask and wait for a symbol's unexplained ids no more."""
        state, gaps = self._book.symbols[symbol], self._book.gaps[symbol]
        firsts = gaps["first_id"][: state["gap_count"]].tolist()
        remove(state, gaps, firsts.index(gap.first_id))
        settled = self._settled.setdefault(symbol, [])
        settled.append(Unexplained(gap.first_id, gap.last_id, gap.from_time, gap.to_time, outcome))
        del settled[:-UNEXPLAINED_MAX]
        state["mark_changed"] = 1

    def _ask_to_settle(self, symbol: int, now_ns: int, minute_end: int) -> list[Command]:
        """Ask for the klines of minutes that unexplained ids may belong to, once those are settled."""
        self._settle_at[symbol] = now_ns + SETTLE_AGAIN_MS * 1_000_000
        asks: list[Command] = []
        gaps = self._unexplained_gaps(symbol)
        for gap in gaps:
            first, last = gap.from_time // MINUTE_MS * MINUTE_MS, gap.to_time // MINUTE_MS * MINUTE_MS
            if minute_end >= last + MINUTE_MS + SETTLED_MS and len(asks) < ASKS_MAX:
                asks.append(FetchKlines(self._symbols[symbol], "1m", first, last, audit=True))
        if not gaps or symbol in self.unrepairable:
            del self._settle_at[symbol]
        return asks

    def begins(self, symbol: int, now_ns: int) -> None:
        """A symbol has begun, and its first trades were asked for."""
        self._unchanged.pop(symbol, None)
        self._left_out_since.pop(symbol, None)
        self._settle_at.pop(symbol, None)
        self.unrepairable.discard(symbol)
        self._suspected[symbol] = -1
        self._plan(symbol, now_ns + self._config.gap_retry_ms * 1_000_000)

    def note_silence(self, since: int, now_ns: int) -> None:
        """The feed has come up at a time of the exchange's: who trades no more from there on may have traded before."""
        last_ids = self._book.symbols["last_id"][: len(self._symbols)].tolist()
        self._unheard = {symbol: last_id for symbol, last_id in enumerate(last_ids) if last_id >= 0}
        self._heard_since = since
        self._unheard_at = now_ns + self._config.silence_ask_ms * 1_000_000

    def suspect(self, symbol: int, now_ns: int) -> None:
        """Somebody knows of trades of a symbol that we have not seen, and that no gap shows."""
        self._suspected[symbol] = int(self._book.symbols[symbol]["last_id"])
        self._plan(symbol, self._ask_at.get(symbol, now_ns))

    def contradict(self, symbol: int, at_ns: int) -> None:
        """A symbol's ids have restarted: nothing more is asked of it, and it is reseeded at this time."""
        self.unrepairable.add(symbol)
        self._contradicted.setdefault(symbol, at_ns)

    def ask_again(self) -> None:
        """Somebody else is to be asked: everything, at once."""
        self._ask_at = dict.fromkeys(self._ask_at, 0)
        self._soonest = 0
        self._klines_at = 0

    def want_klines(self, symbol: int, interval: int, start_time: int, end_time: int) -> None:
        """Want the exchange's klines that open in [start_time, end_time], none of which is older than 1970."""
        start_time = max(start_time, 0)
        if end_time < start_time:
            return
        ranges = self._klines.setdefault((symbol, interval), [])
        for known in [known for known in ranges if known[0] <= end_time + 1 and start_time <= known[1] + 1]:
            start_time, end_time = min(start_time, known[0]), max(end_time, known[1])
            ranges.remove(known)
        ranges.append((start_time, end_time))
        self._book.symbols[symbol]["mark_changed"] = 1
        self._klines_at = 0

    def klines_came(self, symbol: int, interval: int, start_time: int, last_open_time: int | None) -> None:
        """Klines of a range that begins here were answered up to this one; None: there are none.

        An answer to an older request says nothing of a range that begins elsewhere by now.
        """
        ranges = self._klines.get((symbol, interval), [])
        answered = next((known for known in ranges if known[0] == start_time), None)
        if answered is None:
            return
        ranges.remove(answered)
        _, end_time = answered
        if last_open_time is not None:
            begin = next_open_time(INTERVAL_NAMES[interval], last_open_time)
            if begin <= end_time:
                ranges.insert(0, (begin, end_time))
        if not ranges:
            del self._klines[symbol, interval]
        self._book.symbols[symbol]["mark_changed"] = 1

    def lacking(self) -> dict[int, list[tuple[str, int, int]]]:
        """Return which klines of which symbols are wanted of the exchange: interval, first and last open time."""
        wanted: dict[int, list[tuple[str, int, int]]] = {}
        for (symbol, interval), ranges in sorted(self._klines.items()):
            wanted.setdefault(symbol, []).extend((INTERVAL_NAMES[interval], start, end) for start, end in ranges)
        return wanted

    def due_at(self) -> int | None:
        """Return when there is something to ask, monotonic ns."""
        waits = [self._soonest] if self._ask_at else []
        waits += self._settle_at.values()
        waits += self._contradicted.values()
        if self._unheard:
            waits.append(self._unheard_at)
        if self._klines:
            waits.append(self._klines_at)
        return min(waits, default=None)

    def due(self, now_ns: int, minute_end: int, refused: Container[int] = ()) -> Due:
        """Return what is to be asked, and who is beyond asking. `minute_end`: the end of the newest minute.

        refused: symbols that the store does not take: klines for it are asked for when it does.
        """
        commands: list[Command] = []
        unrepairable = [symbol for symbol, at in self._contradicted.items() if at <= now_ns]
        for symbol in unrepairable:
            del self._contradicted[symbol]
        if self._unheard and now_ns >= self._unheard_at:
            self._suspect_silent(now_ns)
        if now_ns >= self._soonest:
            for symbol, ask_at in list(self._ask_at.items()):
                if ask_at > now_ns:
                    continue
                if self._book.symbols[symbol]["last_id"] > self._suspected.get(symbol, ID_MAX):
                    # Whatever was traded last shows by the ids that have come since.
                    del self._suspected[symbol]
                whole = not self._missing(symbol) and symbol not in self._suspected
                if symbol in self.unrepairable or whole:
                    del self._ask_at[symbol]
                    self._unchanged.pop(symbol, None)
                    self._left_out_since.pop(symbol, None)
                elif self._is_unrepairable(symbol, now_ns, minute_end):
                    unrepairable.append(symbol)
                    self.unrepairable.add(symbol)
                else:
                    retry_ms = max(self._config.gap_retry_ms, self._again_ms(symbol, now_ns))
                    self._ask_at[symbol] = now_ns + retry_ms * 1_000_000
                    commands += self._ask(symbol, 1 if self._is_slow(symbol, now_ns) else ASKS_MAX, now_ns)
            self._soonest = min(self._ask_at.values(), default=NEVER)
        for symbol in [symbol for symbol, at in self._settle_at.items() if at <= now_ns]:
            commands += self._ask_to_settle(symbol, now_ns, minute_end)
            if symbol in self._settle_at and self._is_too_old(symbol, minute_end):
                unrepairable.append(symbol)
                self.unrepairable.add(symbol)
        if self._klines and now_ns >= self._klines_at:
            self._klines_at = now_ns + KLINES_AGAIN_MS * 1_000_000
            for key in [key for key in self._klines if key[0] not in refused][:KLINE_ASKS_MAX]:
                # To the end: whoever is not answered must not keep the others waiting.
                ranges = self._klines[key] = self._klines.pop(key)
                commands.append(FetchKlines(self._symbols[key[0]], INTERVAL_NAMES[key[1]], *ranges[0]))
        return Due(commands, unrepairable)

    def _plan(self, symbol: int, at_ns: int) -> None:
        self._ask_at[symbol] = at_ns
        self._soonest = min(self._soonest, at_ns)

    def _ask(self, symbol: int, most: int, now_ns: int) -> list[Command]:
        state = self._book.symbols[symbol]
        missing = self._missing_gaps(symbol)
        gaps = missing[_due_ms(missing) <= now_ns // 1_000_000][-most:]
        columns = (gaps[name].tolist() for name in ("first_id", "last_id", "to_time"))
        ranges = list(zip(*columns, strict=True))
        if symbol in self._suspected or not len(missing):
            ranges.append((int(state["last_id"]) + 1, -1, 0))
        return [
            FetchTrades(self._symbols[symbol], first_id, last_id, 0 if first_id else int(state["seam_time"]), to_time)
            for first_id, last_id, to_time in ranges
        ]

    def _missing(self, symbol: int) -> list[tuple[int, int]]:
        return missing_ids(self._book.symbols[symbol], self._book.gaps[symbol])

    def _suspect_silent(self, now_ns: int) -> None:
        for symbol, last_id in self._unheard.items():
            state = self._book.symbols[symbol]
            # A trade from before, out of somebody's memory, says nothing of those behind it.
            if state["active"] and (state["last_id"] == last_id or state["newest_time"] < self._heard_since):
                self.suspect(symbol, now_ns)
        self._unheard = {}

    def _is_unrepairable(self, symbol: int, now_ns: int, minute_end: int) -> bool:
        if self._replays or not self._book.symbols[symbol]["active"]:
            return False
        if self._is_too_old(symbol, minute_end):
            return True
        # The ids before a symbol's first trade are no gap of its history.
        missing = sum(last_id - first_id + 1 for first_id, last_id in self._missing(symbol) if first_id)
        before, since = self._unchanged.get(symbol, (-1, now_ns))
        self._unchanged[symbol] = (missing, since if missing == before else now_ns)
        if missing == before and now_ns - since > PATIENCE_MS * 1_000_000:
            return True
        return missing > max(IDS_MIN, IDS_MAX // len(self._ask_at))

    def _is_too_old(self, symbol: int, minute_end: int) -> bool:
        """Say whether what a symbol lacks belongs to rows that leave memory, or to more than can be settled."""
        state = self._book.symbols[symbol]
        gaps = self._book.gaps[symbol, : state["gap_count"]]
        window_ms = (self._book.rows.shape[2] - 1) * MINUTE_MS
        if not len(gaps) or not state["active"]:
            return False
        wide = (gaps["to_time"] - gaps["from_time"] > SETTLE_MINUTES_MAX * MINUTE_MS) & (gaps["unexplained"] != 0)
        return bool(wide.any() or minute_end - int(gaps["from_time"].min()) > window_ms)


def _due_ms(gaps: Rows) -> NDArray[np.int64]:
    """Return when each of GAP[n] is to be asked for: at once, or some time after the last answer that left it out."""
    waits = np.array((0, *LEFT_OUT_MS), np.int64)
    due: NDArray[np.int64] = gaps["answered_at"] + waits[np.minimum(gaps["left_out"], len(LEFT_OUT_MS))]
    return due
