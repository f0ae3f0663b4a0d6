"""Missing trades, from memory and by REST.

Decides which pages are asked for and when a failure is tried again, and which ids an answer covers: an id is covered if
the exchange was asked for it and either named it or named one after it. What REST cannot answer is not answered, so
that the engine keeps its gap and shows it. Knows no websocket, and nothing of why trades are missing.

A crash here costs nothing: the engine asks again.
"""

import time
from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from services.ingest.binance.endpoints import KEYED_PAGE_MAX, PAGE_MAX, Request, Venue
from services.ingest.binance.messages import Malformed, TradePage, read_agg_trades, read_trades
from services.ingest.decimals import Decimals, trade_rows
from services.ingest.recent import TOGETHER_MAX, Recent
from services.ingest.rest import ATTEMPTS_MAX, Priority, Rest, RestError
from services.ingest.throttled_log import ThrottledLog
from shared.bounds import ID_MAX
from shared.interval import MINUTE_MS
from shared.kline import TRADE
from shared.wire import AppEvent, Covered, FetchTrades, Instrument, Trades, pack_instruments

PAGES_MAX = 500
"""Pages of one answer, half a million trades; the engine asks for the rest if it still wants it."""
RECENT_MS = 3_600_000
UNREACHABLE_S = 600.0
"""How long a request that REST cannot answer is not sent again: it costs weight each time."""
UNREACHABLE_MAX = 10_000
BACKOFF_S, BACKOFF_MAX_S = 2.0, 60.0
"""After a failure, and at the most. A page of trades costs a weight of 20, of 2,400 a minute: a symbol whose trades
REST fails to answer costs one page a minute in the end; if many fail in a row and none succeeds, all of them do so
together."""
FAILURES_MAX = 8
"""Failures in a row, of whichever symbols, that may be the fault of these symbols alone."""
FAILED_MAX = 10_000
"""Symbols whose failures are remembered."""


@dataclass(eq=False)
class IdRange:
    """Ids that are being fetched from REST, both ends inclusive."""

    first: int
    """0 while it is not known."""
    last: int
    started: bool = False
    """Its first page has come."""


class TradeBackoff:
    """When a symbol is asked about again whose trades REST failed to answer. Times are of the monotonic clock, s."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}
        self._in_a_row = 0
        self._all_retry_at = 0.0

    def may_ask(self, symbol: str, now_s: float) -> bool:
        return now_s >= max(self._retry_at.get(symbol, 0.0), self._all_retry_at)

    def has_failed(self, symbol: str) -> bool:
        """Say whether the last request for a symbol's trades failed: then it is sent once, without retries."""
        return symbol in self._failures or self._in_a_row >= FAILURES_MAX

    def failed(self, symbol: str, now_s: float) -> None:
        if len(self._failures) >= FAILED_MAX:
            self._failures.clear()
            self._retry_at.clear()
        failures = self._failures[symbol] = self._failures.get(symbol, 0) + 1
        self._retry_at[symbol] = now_s + _wait_s(failures)
        self._in_a_row += 1
        if self._in_a_row >= FAILURES_MAX:
            self._all_retry_at = now_s + _wait_s(self._in_a_row - FAILURES_MAX + 1)

    def answered(self, symbol: str) -> None:
        self._failures.pop(symbol, None)
        self._retry_at.pop(symbol, None)
        self._in_a_row, self._all_retry_at = 0, 0.0


class TradeFetch:
    def __init__(
        self,
        rest: Rest,
        venue: Venue,
        kind: str,
        decimals: Decimals,
        exchange_time: Callable[[int], int],
        throttled_log: ThrottledLog,
        recent: Recent,
        wait_delivered: Callable[[str], Awaitable[None]],
        send: Callable[[AppEvent], None],
    ) -> None:
        """Answer by `send`. `exchange_time` returns the exchange's time, ms, at a time of the monotonic clock, ns.

        `wait_delivered` waits until the stream of a symbol has begun.
        """
        self._rest = rest
        self._venue = venue
        self._kind = kind
        self._decimals = decimals
        self._exchange_time = exchange_time
        self._throttled_log = throttled_log
        self._recent = recent
        self._wait_delivered = wait_delivered
        self._send = send
        self._unreachable: dict[FetchTrades, float] = {}
        """Requests that REST cannot answer, and until when they are not sent again, monotonic s."""
        self._backoff = TradeBackoff()
        self._ranges: dict[str, list[IdRange]] = {}
        """By symbol: the ids that are being fetched."""

    async def fetch(self, ask: FetchTrades) -> None:
        """Answer a request from memory, and the rest of it in pages of REST. A failure is counted and not answered."""
        known = self._recent.answer(ask)
        for part in known.parts:
            self._throttled_log.counts["trades from memory"] += len(part.rows) // TRADE.itemsize
            self._send(part)
        for rest in known.rest:
            if rest.last_id < 0:
                await self._wait_delivered(rest.symbol)
            if not self.is_under_way(rest):
                await self._fetch_from_rest(rest)

    def is_under_way(self, ask: FetchTrades) -> bool:
        """Say whether ids, or the first of them, are being fetched. A page that was not sent yet takes them along.

        The weight is scarce: the engine asks again for a large gap as it shrinks, and many small ones fit one page.
        """
        for ids in self._ranges.get(ask.symbol, ()):
            if not ids.started and ids.first <= ask.first_id <= ask.last_id < ids.first + TOGETHER_MAX:
                ids.last = max(ids.last, ask.last_id)
                return True
            if ids.first <= ask.first_id <= min(ids.last, ask.last_id):
                return True
        return False

    async def _fetch_from_rest(self, ask: FetchTrades) -> None:
        if self._unreachable.get(ask, 0.0) > time.monotonic():
            self._throttled_log.counts["trades unreachable"] += 1
            return
        if not self._backoff.may_ask(ask.symbol, time.monotonic()):
            self._throttled_log.counts["trades not asked again yet"] += 1
            return
        ranges = self._ranges.setdefault(ask.symbol, [])
        ids = IdRange(ask.first_id, ask.last_id if ask.last_id >= 0 else ID_MAX)
        if ask.first_id and ask.last_id >= 0:
            ranges.append(ids)
        try:
            await (self._agg_trades(ask, ids) if self._kind == "aggTrade" else self._single_trades(ask, ids))
        except Malformed as error:
            self._throttled_log.refuse("trades answer", str(error).encode())
            self._give_up(ask, str(error))
        except RestError as error:
            if 400 <= error.status < 500:
                self._give_up(ask, str(error))
            else:
                self._backoff.failed(ask.symbol, time.monotonic())
                self._throttled_log.warn(
                    "trades not answered", f"{ask.symbol} {ask.first_id} to {ask.last_id}: {error}"
                )
        finally:
            if ids in ranges:
                ranges.remove(ids)

    def _give_up(self, ask: FetchTrades, why: str) -> None:
        self._throttled_log.warn("trades unreachable", f"{ask.symbol} {ask.first_id} to {ask.last_id}: {why}")
        if len(self._unreachable) >= UNREACHABLE_MAX:
            self._unreachable.clear()
        self._unreachable[ask] = time.monotonic() + UNREACHABLE_S

    async def _agg_trades(self, ask: FetchTrades, ids: IdRange) -> None:
        older_to = -1
        if ids.first and ask.last_id < 0:
            page = await self._agg_page(ask.symbol, self._urgency(ask))
            if page.ids and page.ids[-1] < ids.first:
                # The newest trade: there is no newer one, or, if its id is lower, ids have begun again.
                self._answer(ask.symbol, page, page.ids[-1], page.ids[-1])
                return
            if page.ids and page.ids[0] > ids.first:
                page = await self._agg_page(ask.symbol, self._urgency(ask), from_id=ids.first)
        elif ids.first:
            page = await self._agg_page(ask.symbol, self._urgency(ask), from_id=ids.first)
        else:
            page, older_to = await self._since(ask.symbol, ask.from_time)
            if not page.ids:
                self._answer(ask.symbol, None, 0, older_to, older_to=older_to)
                return
        ids.started = True
        for _ in range(PAGES_MAX):
            if not page.ids:
                break
            reached = min(page.ids[-1], ids.last)
            self._answer(ask.symbol, page, ids.first, reached, older_to=older_to)
            older_to = -1
            if reached == ids.last or len(page.ids) < PAGE_MAX:
                return
            ids.first = reached + 1
            page = await self._agg_page(ask.symbol, self._urgency(ask), from_id=ids.first)
        if ids.first == ask.first_id:
            # The exchange has nothing from there on. The engine knows that these ids exist: that is an answer.
            self._answer(ask.symbol, None, ids.first, ask.last_id)

    async def _since(self, symbol: str, from_time: int) -> tuple[TradePage, int]:
        """Return (the trades since a time, the id of the last one before it; -1 if there is none).

        Only an older trade proves that none of them is missing, not a page that begins at the right time.
        """
        page = await self._agg_page(symbol)
        wanted = bisect_left(page.times, from_time)
        if wanted or len(page.ids) < PAGE_MAX:
            return page.from_index(wanted), _last_before(page, wanted)
        page = await self._agg_page(symbol, start_time=max(1, from_time))
        if not page.ids:
            raise Malformed(f"no trades since {from_time}, and a thousand of them")
        before = await self._agg_page(symbol, from_id=max(0, page.ids[0] - PAGE_MAX))
        older = bisect_left(before.times, from_time)
        return page, _last_before(before, older)

    async def _agg_page(self, symbol: str, priority: Priority = Priority.TRADES, **parameters: int) -> TradePage:
        return read_agg_trades(await self._page(symbol, self._venue.agg_trades(symbol, **parameters), priority))

    async def _page(self, symbol: str, request: Request, priority: Priority) -> bytes:
        attempts = 1 if self._backoff.has_failed(symbol) else ATTEMPTS_MAX
        body = (await self._rest.get(request, priority, attempts)).body
        self._backoff.answered(symbol)
        return body

    async def _single_trades(self, ask: FetchTrades, ids: IdRange) -> None:
        """Answer about the `trade` stream: recent trades need no key, older ones do, and void ids are in neither."""
        recent = await self._trade_page(ask.symbol, self._venue.recent_trades(ask.symbol), self._urgency(ask))
        ids.started = True
        if not recent.ids:
            self._answer(ask.symbol, None, 0, -1)
            return
        end = min(ids.last, recent.ids[-1])
        # Fewer than a page are all trades that the symbol ever had: ids before the first do not exist.
        oldest = recent.ids[0] if len(recent.ids) >= PAGE_MAX else 0
        if ask.last_id >= 0 and recent.ids[-1] < ask.first_id:
            # As with aggregates, nothing from there on is an answer. The last ids are void at times.
            self._answer(ask.symbol, None, ask.first_id, ask.last_id)
            return
        if ask.first_id:
            self._answer(ask.symbol, recent, max(ask.first_id, oldest), end)
            await self._keyed_range(ask.symbol, ask.first_id, min(end, oldest - 1))
            return
        wanted = bisect_left(recent.times, ask.from_time)
        if wanted or not oldest:
            self._answer(ask.symbol, recent, 0, end, from_index=wanted, older_to=_last_before(recent, wanted))
            return
        self._answer(ask.symbol, recent, oldest, end)
        await self._keyed_since(ask.symbol, ask.from_time, oldest, end)

    async def _keyed_range(self, symbol: str, first: int, last: int) -> None:
        """Answer [first, last], in ascending pages."""
        for _ in range(PAGES_MAX):
            if first > last:
                return
            page = await self._keyed_page(symbol, first)
            reached = min(page.ids[-1], last)
            self._answer(symbol, page, first, reached)
            first = reached + 1

    async def _keyed_since(self, symbol: str, from_time: int, before: int, end: int) -> None:
        """Answer the ids below `before` that are not older than `from_time`, in descending pages."""
        for _ in range(PAGES_MAX):
            start = max(0, before - KEYED_PAGE_MAX)
            # A page has as many rows as there are ids up to `before`, so that it reaches it even if some are void.
            page = await self._keyed_page(symbol, start)
            wanted = bisect_left(page.times, from_time)
            # Void ids are few: a page without any id below `before` means that nothing is older. Ids below a page's
            # first one may be void, or may never have existed: the next page tells.
            done = wanted > 0 or start == 0 or page.ids[0] >= before
            first, older_to = (0, _last_before(page, wanted)) if done else (page.ids[0], -1)
            self._answer(symbol, page, first, min(before - 1, end), from_index=wanted, older_to=older_to)
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
        self, symbol: str, page: TradePage | None, first: int, last: int, from_index: int = 0, older_to: int = -1
    ) -> None:
        """Send the trades of a page whose ids lie in [first, last], in an answer that covers all of these ids.

        If the range is empty, the answer covers nothing. Rows before `from_index`, and ids up to `older_to`, are older
        than the time that was asked for.
        """
        if page is None or first > last:
            page = TradePage([], [], [], [], [], [])
        start, stop = max(bisect_left(page.ids, first), from_index), bisect_left(page.ids, last + 1)
        fields = array("q")
        for n in range(start, stop):
            fields.extend((0, page.ids[n], page.times[n], page.trade_counts[n], page.buyer_is_maker[n]))
        decimals = np.array([self._decimals.of(symbol)], np.int64)
        rows, refused = trade_rows(page.prices[start:stop], page.quantities[start:stop], fields, decimals)
        if refused:
            raise Malformed(f"{refused[0][1]} in the trades of {symbol} from {first} to {last}")
        price_decimals, quantity_decimals = self._decimals.grow(symbol, *decimals[0].tolist())
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


def _wait_s(failures: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failures - 1, 10))


def _last_before(page: TradePage, wanted: int) -> int:
    """Return the id of the last trade of a page before the index `wanted`; -1 if there is none."""
    return page.ids[wanted - 1] if wanted else -1


def urgency(ask: FetchTrades, now: int) -> Priority:
    """Return the priority of a request: missing ids before the question for newer ones, newer ids before older."""
    if ask.last_id < 0:
        return Priority.HISTORY if ask.first_id else Priority.TRADES
    if now - ask.to_time < MINUTE_MS:
        return Priority.OPEN_TRADES
    return Priority.TRADES if now - ask.to_time < RECENT_MS else Priority.OLD_TRADES
