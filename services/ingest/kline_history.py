"""The exchange's own klines, by REST: of a symbol that is announced, of a repair, of an audit, of a command.

Decides which pages are asked for, and from when on a kline counts as closed. What REST cannot answer is not answered,
and the engine asks again. `KlineHistory` serves the engine; `ExchangeMinutes` serves a command that compares, without
any engine or websocket. Knows no klines of ours.

A crash here costs nothing: the engine asks again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import aiohttp
import numpy as np

from services.ingest.binance.endpoints import Venue, venue_of
from services.ingest.binance.messages import Malformed, read_klines, stream_name
from services.ingest.binance.scan import plain_klines
from services.ingest.decimals import Decimals
from services.ingest.klines import ParsedKlines, decimals_for, kline_rows, parse
from services.ingest.rate_limit import WeightBudget, read_ban
from services.ingest.rest import TIMEOUT_S, Answer, Priority, Rest, RestError
from services.ingest.throttled_log import ThrottledLog
from shared.arrays import Rows
from shared.calendar import next_open_time
from shared.config import Config
from shared.interval import DAY_MS, INTERVAL_INDEX, INTERVAL_NAMES, INTERVALS, MINUTE_MS
from shared.kline import KLINE
from shared.wire import AddSymbol, AppEvent, FetchKlines, IntervalKlines, Klines

CLOSED_AFTER_MS = 3_000
"""A kline counts as closed this long after its end: our clock is not the exchange's, and its last trades take a moment
to be in it. Trades after that come one by one."""
PAGES_MAX = 500
"""Pages of one answer; the engine asks for the rest if it still wants it."""
SHORTEST_MONTH_MS = 28 * DAY_MS
PAGE_MINUTES = 1_000
"""Minutes of a page of `ExchangeMinutes`."""


class KlineHistory:
    def __init__(
        self,
        rest: Rest,
        venue: Venue,
        kind: str,
        decimals: Decimals,
        exchange_time: Callable[[int], int],
        throttled_log: ThrottledLog,
        send: Callable[[AppEvent], None],
    ) -> None:
        """Answer by `send`. `exchange_time` returns the exchange's time, ms, at a time of the monotonic clock, ns."""
        self._rest = rest
        self._venue = venue
        self._kind = kind
        self._decimals = decimals
        self._exchange_time = exchange_time
        self._throttled_log = throttled_log
        self._send = send

    async def announcement(self, symbol: str, rows: int) -> AddSymbol:
        """Fetch a symbol's last closed klines of all intervals, at most `rows` each. Raises RestError, Malformed.

        The engine builds open klines of closed ones: an hour of up to 59 minutes, a day of its hours, a month of its
        days. `rows` is no less than that.
        """
        parts, until, grid_3d = await self._closed_klines(symbol, rows)
        price_decimals, quantity_decimals = self._grow(symbol, parts)
        klines = []
        for part in parts:
            await asyncio.sleep(0)  # Trades come first, however much there is to convert.
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

    async def _closed_klines(self, symbol: str, rows: int) -> tuple[list[ParsedKlines], int, int]:
        """Return (rows of each interval, the time before which all trades are in them, an open time of 3d or 0)."""
        # All pages end at the same time: however long a request waits, its page lacks nothing before that.
        until = self._closed_until(time.monotonic_ns())
        whole: list[ParsedKlines] = []
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

    async def _klines(self, symbol: str, interval: str, rows: int, end_time: int) -> ParsedKlines:
        """Return a symbol's last klines that open by a time. Raises RestError, Malformed."""
        request = self._venue.klines(symbol, interval, rows, end_time=end_time)
        return self._parse(symbol, interval, await self._rest.get(request, Priority.HISTORY))

    async def fetch(self, ask: FetchKlines) -> None:
        """Answer a request in pages, the last of which may be empty. A failure is counted and not answered."""
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
                closed = page.closed_before(self._closed_until(answer.sent_ns))
                price_decimals, quantity_decimals = self._grow(ask.symbol, [closed])
                rows, left_out = kline_rows(closed, price_decimals, quantity_decimals)
                self._count_refused(ask.symbol, ask.interval, left_out)
                decimals = price_decimals, quantity_decimals
                self._send(Klines(ask.symbol, *decimals, ask.interval, rows.tobytes(), ask.audit, start))
                if len(page.open_times) < limit:
                    return
                start = next_open_time(ask.interval, int(page.open_times[-1]))
                if start > ask.end_time:
                    return
        except Malformed as error:
            self._throttled_log.refuse("klines answer", str(error).encode())
        except RestError as error:
            self._throttled_log.warn("klines not answered", f"{ask.symbol} {ask.interval}: {error}")

    def _closed_until(self, at_ns: int) -> int:
        return (self._exchange_time(at_ns) - CLOSED_AFTER_MS) // MINUTE_MS * MINUTE_MS

    def _parse(self, symbol: str, interval: str, answer: Answer) -> ParsedKlines:
        parsed, refused = parse(interval, plain_klines(answer.body) or read_klines(answer.body))
        self._count_refused(symbol, interval, refused)
        return parsed

    def _count_refused(self, symbol: str, interval: str, count: int) -> None:
        for _ in range(count):
            self._throttled_log.refuse("kline row", f"{symbol} {interval}".encode())

    def _grow(self, symbol: str, parts: list[ParsedKlines]) -> tuple[int, int]:
        return self._decimals.grow(symbol, *decimals_for(parts, *self._decimals.of(symbol)))


class MinuteRange(NamedTuple):
    """Minutes of a symbol, from one open time to another, and the symbol's decimals."""

    symbol: str
    first: int
    last: int
    price_decimals: int
    quantity_decimals: int


class ExchangeMinutes:
    """The closed minutes of a configuration's exchange, for a command that compares them with ours.

    It keeps to the weight limit, of which a running ingest spends its part (answers say how much), and to a ban that
    ingest has written down.
    """

    def __init__(self, config: Config, session: aiohttp.ClientSession) -> None:
        self._venue = venue_of(config)
        weight_budget = WeightBudget(self._venue.weight_limit, config.exchange.weight_share)
        banned_until = read_ban(config.data_path / "ban", self._venue.rest)
        if banned_until > _machine_ms():
            weight_budget.stop(banned_until, _machine_ms())
        # A ban is not written from here: the running ingest is banned with us, and writes it.
        self._rest = Rest(session, self._venue, weight_budget, _machine_ms, lambda _: None)

    async def rows(self, minutes: MinuteRange) -> Rows:
        """Return the exchange's 1m klines, KLINE[n] ascending. Raises RestError, Malformed."""
        parts = [np.zeros(0, KLINE)]
        start = minutes.first
        while start <= minutes.last:
            limit = min(PAGE_MINUTES, (minutes.last - start) // MINUTE_MS + 1)
            request = self._venue.klines(minutes.symbol, "1m", limit, start, minutes.last)
            answer = await self._rest.get(request, Priority.AUDIT)
            page, _ = parse("1m", plain_klines(answer.body) or read_klines(answer.body))
            rows, _ = kline_rows(page, minutes.price_decimals, minutes.quantity_decimals)
            parts.append(rows)
            if not len(page.open_times):
                break
            start = int(page.open_times[-1]) + MINUTE_MS
        return np.concatenate(parts)


def http_session() -> aiohttp.ClientSession:
    """Return a session for `ExchangeMinutes`."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, connect=TIMEOUT_S / 3))


def _machine_ms() -> int:
    return time.time_ns() // 1_000_000
