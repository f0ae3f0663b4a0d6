"""What REST knows of the past, in the shape that the engine asked for it.

Decides which pages are asked, and which ids an answer may claim to cover: an id is covered if the exchange was asked
for it and either named it or named one after it. What REST cannot reach is not answered, so that the engine keeps its
gap and shows it. Knows no klines of ours and no websocket.

A crash here costs nothing: the engine asks again.
"""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from services.ingest.binance import (
    TIME_MAX,
    Malformed,
    TradePage,
    read_agg_trades,
    read_klines,
    read_trades,
    stream_name,
)
from services.ingest.complaints import Complaints
from services.ingest.exact import trade_rows
from services.ingest.klines import Parsed, decimals_for, kline_rows, parse
from services.ingest.patience import Patience
from services.ingest.recent import TOGETHER_MAX, Recent
from services.ingest.rest import ATTEMPTS_MAX, Answer, Priority, Rest, RestError
from services.ingest.scan import plain_klines
from services.ingest.symbols import Symbols
from services.ingest.venue import KEYED_PAGE_MAX, PAGE_MAX, Request, Venue
from shared.bounds import ID_MAX
from shared.calendar import next_open_time
from shared.interval import DAY_MS, INTERVAL_INDEX, INTERVAL_NAMES, INTERVALS, MINUTE_MS
from shared.kline import TRADE
from shared.wire import (
    AddSymbol,
    AppEvent,
    Covered,
    FetchKlines,
    FetchTrades,
    Instrument,
    IntervalKlines,
    Klines,
    Trades,
    pack_instruments,
)

SETTLE_MS = 3_000
"""A kline counts as closed this long after its end: our clock is not the exchange's, and its last trades take a moment
to be in it. Whatever is younger comes trade by trade."""
PAGES_MAX = 500
"""Pages of one answer, half a million trades; the engine asks for the rest if it still wants it."""
RECENT_MS = 3_600_000
UNREACHABLE_S = 600.0
"""How long a question that REST cannot answer is not asked again: it costs weight each time."""
UNREACHABLE_MAX = 10_000
ASKED_MAX = 5_000
"""Questions of the engine under way: a few for every symbol. It asks again for what was dropped."""
SHORTEST_MONTH_MS = 28 * DAY_MS


@dataclass(eq=False)
class Fetch:
    """A range of ids that is fetched from REST."""

    first: int
    """What comes next; 0: not known yet."""
    last: int
    begun: bool = False
    """Its first page is here."""


class History:
    def __init__(
        self,
        rest: Rest,
        venue: Venue,
        kind: str,
        symbols: Symbols,
        exchange_time: Callable[[int], int],
        complaints: Complaints,
        recent: Recent,
        delivers: Callable[[str], Awaitable[None]],
        send: Callable[[AppEvent], None],
    ) -> None:
        """Answer by `send`. `exchange_time` tells the exchange's time, ms, at a moment of the monotonic clock, ns.

        `delivers` waits until the stream of a symbol has begun.
        """
        self._rest = rest
        self._venue = venue
        self._kind = kind
        self._symbols = symbols
        self._exchange_time = exchange_time
        self._complaints = complaints
        self._recent = recent
        self._delivers = delivers
        self._send = send
        self._unreachable: dict[FetchTrades, float] = {}
        self._patience = Patience()
        self._asked: set[FetchTrades | FetchKlines] = set()
        self._fetches: dict[str, list[Fetch]] = {}
        """By symbol: the ranges of ids that are on their way."""

    async def announcement(self, symbol: str, rows: int) -> AddSymbol:
        """Fetch a symbol's last closed klines of all intervals, at most `rows` each. Raises RestError, Malformed.

        The engine merges what of an hour is over of its minutes, up to 59, of a day of its hours, and of a month of its
        days: `rows` is no less than that.
        """
        parts, until, grid_3d = await self._closed_klines(symbol, rows)
        price_decimals, quantity_decimals = self._grown(symbol, parts)
        klines = []
        for part in parts:
            await asyncio.sleep(0)  # Trades come first, whatever else there is to read.
            content, left_out = kline_rows(part, price_decimals, quantity_decimals)
            self._count_refused(symbol, part.interval, left_out)
            if len(content):
                klines.append(IntervalKlines(part.interval, content.tobytes()))
        return AddSymbol(
            symbol,
            price_decimals,
            quantity_decimals,
            stream_name(symbol, self._kind),
            klines,
            until,
            self._exchange_time(time.monotonic_ns()),
            grid_3d,
        )

    async def _closed_klines(self, symbol: str, rows: int) -> tuple[list[Parsed], int, int]:
        """Return (rows of each interval, the time before which all trades are in them, an open time of 3d or 0)."""
        # Every page ends where all others do. However long one has to wait for its turn, it lacks nothing before that.
        until = self._settled(time.monotonic_ns())
        whole: list[Parsed] = []
        for outcome in await asyncio.gather(
            *(self._klines(symbol, interval, rows + 1, until - 1) for interval in INTERVAL_NAMES),
            return_exceptions=True,
        ):
            if isinstance(outcome, BaseException):
                raise outcome
            whole.append(outcome)
        grid_3d = int(whole[INTERVAL_INDEX["3d"]].open_times.max(initial=0))
        parts = [part.closed_before(until) for part in whole]
        minutes = parts[INTERVAL_INDEX["1m"]].open_times
        if len(minutes) and int(minutes[-1]) + MINUTE_MS < until:
            # The exchange's minutes end earlier than its clock: trades from there on come one by one.
            until = int(minutes[-1]) + MINUTE_MS
            parts = [part.closed_before(until) for part in parts]
        return [part.newest(rows) for part in parts], until, grid_3d

    async def _klines(self, symbol: str, interval: str, rows: int, end_time: int) -> Parsed:
        """Return a symbol's last klines that open by a time. Raises RestError, Malformed."""
        request = self._venue.klines(symbol, interval, rows, end_time=end_time)
        return self._parse(symbol, interval, await self._rest.get(request, Priority.HISTORY))

    def answer(self, ask: FetchTrades | FetchKlines, tasks: asyncio.TaskGroup) -> None:
        """Fetch what the engine asks for, once however often it asks."""
        if not is_possible(ask):
            self._complaints.refuse("question", str(ask).encode())
            return
        is_under_way = ask in self._asked or (isinstance(ask, FetchTrades) and self._is_on_its_way(ask))
        if is_under_way or len(self._asked) >= ASKED_MAX:
            self._complaints.counts["repairs asked twice" if is_under_way else "repairs dropped"] += 1
            return
        self._asked.add(ask)
        work = self.fetch_trades(ask) if isinstance(ask, FetchTrades) else self.fetch_klines(ask)
        tasks.create_task(work).add_done_callback(lambda _: self._asked.discard(ask))

    async def fetch_klines(self, ask: FetchKlines) -> None:
        """Answer in pages, the last of which may be empty. What cannot be had is counted and not answered."""
        length = INTERVALS[INTERVAL_INDEX[ask.interval]].length_ms or SHORTEST_MONTH_MS
        start = ask.start_time
        try:
            for _ in range(PAGES_MAX):
                limit = max(1, min(self._venue.klines_max, (ask.end_time - start) // length + 1))
                answer = await self._rest.get(
                    self._venue.klines(ask.symbol, ask.interval, limit, start, ask.end_time),
                    Priority.AUDIT if ask.audit else Priority.KLINES,
                )
                page = self._parse(ask.symbol, ask.interval, answer)
                closed = page.closed_before(self._settled(answer.sent_ns))
                price_decimals, quantity_decimals = self._grown(ask.symbol, [closed])
                rows, left_out = kline_rows(closed, price_decimals, quantity_decimals)
                self._count_refused(ask.symbol, ask.interval, left_out)
                self._send(
                    Klines(ask.symbol, price_decimals, quantity_decimals, ask.interval, rows.tobytes(), ask.audit)
                )
                if len(page.open_times) < limit:
                    return
                start = next_open_time(ask.interval, int(page.open_times[-1]))
                if start > ask.end_time:
                    return
        except Malformed as error:
            self._complaints.refuse("klines answer", str(error).encode())
        except RestError as error:
            self._complaints.note("klines not answered", f"{ask.symbol} {ask.interval}: {error}")

    async def fetch_trades(self, ask: FetchTrades) -> None:
        """Answer from memory, and in pages of trades. What cannot be had is counted, said once, and not answered."""
        known = self._recent.answer(ask)
        for part in known.parts:
            self._complaints.counts["trades from memory"] += len(part.rows) // TRADE.itemsize
            self._send(part)
        for rest in known.rest:
            if rest.last_id < 0:
                await self._delivers(rest.symbol)
            if not self._is_on_its_way(rest):
                await self._fetch_from_rest(rest)

    def _is_on_its_way(self, ask: FetchTrades) -> bool:
        """Say whether ids, or the first of them, are being fetched. A page that is waited for takes along what it has.

        Budgets are small; a large gap is asked for anew as it shrinks, and many small ones lie together.
        """
        for fetch in self._fetches.get(ask.symbol, ()):
            if not fetch.begun and fetch.first <= ask.first_id <= ask.last_id < fetch.first + TOGETHER_MAX:
                fetch.last = max(fetch.last, ask.last_id)
                return True
            if fetch.first <= ask.first_id <= min(fetch.last, ask.last_id):
                return True
        return False

    async def _fetch_from_rest(self, ask: FetchTrades) -> None:
        if self._unreachable.get(ask, 0.0) > time.monotonic():
            self._complaints.counts["trades unreachable"] += 1
            return
        if not self._patience.may_ask(ask.symbol, time.monotonic()):
            self._complaints.counts["trades not asked again yet"] += 1
            return
        fetches = self._fetches.setdefault(ask.symbol, [])
        fetch = Fetch(ask.first_id, ask.last_id if ask.last_id >= 0 else ID_MAX)
        if ask.first_id and ask.last_id >= 0:
            fetches.append(fetch)
        try:
            await (self._agg_trades(ask, fetch) if self._kind == "aggTrade" else self._single_trades(ask, fetch))
        except Malformed as error:
            self._complaints.refuse("trades answer", str(error).encode())
            self._give_up(ask, str(error))
        except RestError as error:
            if 400 <= error.status < 500:
                self._give_up(ask, str(error))
            else:
                self._patience.failed(ask.symbol, time.monotonic())
                self._complaints.note("trades not answered", f"{ask.symbol} {ask.first_id} to {ask.last_id}: {error}")
        finally:
            if fetch in fetches:
                fetches.remove(fetch)

    def _give_up(self, ask: FetchTrades, why: str) -> None:
        self._complaints.note("trades unreachable", f"{ask.symbol} {ask.first_id} to {ask.last_id}: {why}")
        if len(self._unreachable) >= UNREACHABLE_MAX:
            self._unreachable.clear()
        self._unreachable[ask] = time.monotonic() + UNREACHABLE_S

    async def _agg_trades(self, ask: FetchTrades, fetch: Fetch) -> None:
        older_to = -1
        if fetch.first and ask.last_id < 0:
            page = await self._agg_page(ask.symbol, self._urgency(ask))
            if page.ids and page.ids[-1] < fetch.first:
                # The newest trade says that there is no newer one, or, if its id is lower, that ids have begun anew.
                self._answer(ask.symbol, page, page.ids[-1], page.ids[-1])
                return
            if page.ids and page.ids[0] > fetch.first:
                page = await self._agg_page(ask.symbol, self._urgency(ask), from_id=fetch.first)
        elif fetch.first:
            page = await self._agg_page(ask.symbol, self._urgency(ask), from_id=fetch.first)
        else:
            page, older_to = await self._since(ask.symbol, ask.from_time)
            if not page.ids:
                self._answer(ask.symbol, None, 0, older_to, older_to=older_to)
                return
        fetch.begun = True
        for _ in range(PAGES_MAX):
            if not page.ids:
                break
            reached = min(page.ids[-1], fetch.last)
            self._answer(ask.symbol, page, fetch.first, reached, older_to=older_to)
            older_to = -1
            if reached == fetch.last or len(page.ids) < PAGE_MAX:
                return
            fetch.first = reached + 1
            page = await self._agg_page(ask.symbol, self._urgency(ask), from_id=fetch.first)
        if fetch.first == ask.first_id:
            # Nothing from there on, as far as the exchange says; of ids that are known to be, that is an answer.
            self._answer(ask.symbol, None, fetch.first, ask.last_id)

    async def _since(self, symbol: str, from_time: int) -> tuple[TradePage, int]:
        """Return (the trades since a time, the id of the last one before it; -1 if there is none).

        That nothing is missing in front is said by a trade that is older, not by a page that begins where it should.
        """
        page = await self._agg_page(symbol)
        wanted = bisect_left(page.times, from_time)
        if wanted or len(page.ids) < PAGE_MAX:
            return page.beginning_at(wanted), _older(page, wanted)
        page = await self._agg_page(symbol, start_time=max(1, from_time))
        if not page.ids:
            raise Malformed(f"no trades since {from_time}, and a thousand of them")
        before = await self._agg_page(symbol, from_id=max(0, page.ids[0] - PAGE_MAX))
        older = bisect_left(before.times, from_time)
        return page, _older(before, older)

    async def _agg_page(self, symbol: str, priority: Priority = Priority.TRADES, **asked: int) -> TradePage:
        return read_agg_trades(await self._page(symbol, self._venue.agg_trades(symbol, **asked), priority))

    async def _page(self, symbol: str, request: Request, priority: Priority) -> bytes:
        attempts = 1 if self._patience.has_failed(symbol) else ATTEMPTS_MAX
        body = (await self._rest.get(request, priority, attempts)).body
        self._patience.answered(symbol)
        return body

    async def _single_trades(self, ask: FetchTrades, fetch: Fetch) -> None:
        """The `trade` stream: recent trades need no key, older ones do, and void ids are in neither."""
        recent = await self._trade_page(ask.symbol, self._venue.recent_trades(ask.symbol), self._urgency(ask))
        fetch.begun = True
        if not recent.ids:
            self._answer(ask.symbol, None, 0, -1)
            return
        end = min(fetch.last, recent.ids[-1])
        # Fewer than a page is the symbol's whole life: ids before the first do not exist.
        oldest = recent.ids[0] if len(recent.ids) >= PAGE_MAX else 0
        if ask.last_id >= 0 and recent.ids[-1] < ask.first_id:
            # As with aggregates: nothing from there on. Void ids are the last ones at times.
            self._answer(ask.symbol, None, ask.first_id, ask.last_id)
            return
        if ask.first_id:
            self._answer(ask.symbol, recent, max(ask.first_id, oldest), end)
            await self._older(ask.symbol, ask.first_id, min(end, oldest - 1))
            return
        wanted = bisect_left(recent.times, ask.from_time)
        if wanted or not oldest:
            self._answer(ask.symbol, recent, 0, end, from_place=wanted, older_to=_older(recent, wanted))
            return
        self._answer(ask.symbol, recent, oldest, end)
        await self._back_to(ask.symbol, ask.from_time, oldest, end)

    async def _older(self, symbol: str, first: int, last: int) -> None:
        """Answer [first, last], forwards."""
        for _ in range(PAGES_MAX):
            if first > last:
                return
            page = await self._keyed_page(symbol, first)
            reached = min(page.ids[-1], last)
            self._answer(symbol, page, first, reached)
            first = reached + 1

    async def _back_to(self, symbol: str, from_time: int, before: int, end: int) -> None:
        """Answer the ids below `before` that are no older than `from_time`, backwards: its first id is not known."""
        for _ in range(PAGES_MAX):
            start = max(0, before - KEYED_PAGE_MAX)
            # As many rows as ids lie between, so the page reaches `before` however many of them are void.
            page = await self._keyed_page(symbol, start)
            wanted = bisect_left(page.times, from_time)
            # Void ids are few: a page without anything below `before` means that nothing is older. What lies before a
            # page's first trade may be void, or before the symbol's life: the next page tells.
            done = wanted > 0 or start == 0 or page.ids[0] >= before
            first, older_to = (0, _older(page, wanted)) if done else (page.ids[0], -1)
            self._answer(symbol, page, first, min(before - 1, end), from_place=wanted, older_to=older_to)
            if done:
                return
            before = first

    async def _keyed_page(self, symbol: str, from_id: int) -> TradePage:
        if not self._venue.api_key:
            raise RestError("/historicalTrades", 401, 0, "needs exchange.api_key")
        page = await self._trade_page(symbol, self._venue.keyed_trades(symbol, from_id))
        if not page.ids:
            raise RestError("/historicalTrades", 400, 0, f"knows nothing from id {from_id} on")
        return page

    async def _trade_page(self, symbol: str, request: Request, priority: Priority = Priority.TRADES) -> TradePage:
        return read_trades(await self._page(symbol, request, priority))

    def _answer(
        self, symbol: str, page: TradePage | None, first: int, last: int, from_place: int = 0, older_to: int = -1
    ) -> None:
        """Send the trades of a page whose ids lie in [first, last], and say that the answer is about all of them.

        An empty range says that there is nothing to say. Rows before `from_place`, and ids up to `older_to`, are older
        than was asked for.
        """
        if page is None or first > last:
            page = TradePage([], [], [], [], [], [])
        start, stop = max(bisect_left(page.ids, first), from_place), bisect_left(page.ids, last + 1)
        fields = array("q")
        for place in range(start, stop):
            fields.extend((0, page.ids[place], page.times[place], page.trade_counts[place], page.buyer_is_maker[place]))
        decimals = np.array([self._symbols.decimals.of(symbol)], np.int64)
        rows, refused = trade_rows(page.prices[start:stop], page.quantities[start:stop], fields, decimals)
        if refused:
            raise Malformed(f"{refused[0][1]} in the trades of {symbol} from {first} to {last}")
        price_decimals, quantity_decimals = self._symbols.decimals.grow(symbol, *decimals[0].tolist())
        self._send(
            Trades(
                pack_instruments([Instrument(symbol, price_decimals, quantity_decimals)]),
                rows.tobytes(),
                0,
                [Covered(0, first, last, older_to)] if first <= last else [],
            )
        )

    def _urgency(self, ask: FetchTrades) -> Priority:
        return urgency(ask, self._exchange_time(time.monotonic_ns()))

    def _settled(self, at_ns: int) -> int:
        return (self._exchange_time(at_ns) - SETTLE_MS) // MINUTE_MS * MINUTE_MS

    def _parse(self, symbol: str, interval: str, answer: Answer) -> Parsed:
        parsed, refused = parse(interval, plain_klines(answer.body) or read_klines(answer.body))
        self._count_refused(symbol, interval, refused)
        return parsed

    def _count_refused(self, symbol: str, interval: str, count: int) -> None:
        for _ in range(count):
            self._complaints.refuse("kline row", f"{symbol} {interval}".encode())

    def _grown(self, symbol: str, parts: list[Parsed]) -> tuple[int, int]:
        return self._symbols.decimals.grow(symbol, *decimals_for(parts, *self._symbols.decimals.of(symbol)))


def is_possible(ask: FetchTrades | FetchKlines) -> bool:
    """Say whether a question can be asked at all."""
    if isinstance(ask, FetchTrades):
        return 0 <= ask.first_id <= ID_MAX and -1 <= ask.last_id <= ID_MAX and 0 <= ask.from_time <= TIME_MAX
    return ask.interval in INTERVAL_INDEX and 0 <= ask.start_time <= TIME_MAX and ask.end_time <= TIME_MAX


def _older(page: TradePage, wanted: int) -> int:
    """Return the id of the last trade of a page that is too old; -1 if none is."""
    return page.ids[wanted - 1] if wanted else -1


def urgency(ask: FetchTrades, now: int) -> Priority:
    """Return how urgent it is: ids that are missing are, the newer the more; whether there are newer ones is not."""
    if ask.last_id < 0:
        return Priority.HISTORY if ask.first_id else Priority.TRADES
    if now - ask.to_time < MINUTE_MS:
        return Priority.OPEN_TRADES
    return Priority.TRADES if now - ask.to_time < RECENT_MS else Priority.OLD_TRADES
