"""What REST says of the exchange itself: its clock, its symbols, and their 24 h volumes.

Decides what is asked first, and when it is asked again. What the answers mean is decided by clock.py and symbols.py.
`ready` says that the first answers are there; nothing has to wait for them. A crash here costs nothing.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from services.ingest.binance.endpoints import Request, Venue
from services.ingest.binance.messages import Listing, Malformed, read_exchange_info, read_time, read_volumes
from services.ingest.clock import ClockSync
from services.ingest.rate_limit import WeightBudget
from services.ingest.rest import Answer, Priority, Rest, RestError
from services.ingest.symbols import Symbols
from services.ingest.throttled_log import ThrottledLog
from shared.interval import utc

CLOCK_S = 60.0
"""How often the exchange's clock is measured."""
CLOCK_SAMPLES = 5
"""At start; the quickest of them counts."""
CLOCK_SPACING_S = 2.0
"""Between two measurements."""
CONFIRM_S = 0.1
"""After an answer that is not confirmed, the next one is asked for so soon; doubled each time, up to `CLOCK_S`."""
REFRESH_SPACING_S = 2.0
"""Between two readings of the list of symbols."""
RETRY_MAX_S = 2.0
"""Between two attempts at start."""

log = logging.getLogger(__name__)


class Metadata:
    def __init__(
        self,
        rest: Rest,
        venue: Venue,
        weight_budget: WeightBudget,
        clock_sync: ClockSync,
        symbols: Symbols,
        throttled_log: ThrottledLog,
        refresh_ms: int,
        removed: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        """Read the list of symbols every `refresh_ms`; `removed` gets those that trade no more.

        `changed` is called whenever the list was read, so that new symbols may be announced.
        """
        self._rest = rest
        self._venue = venue
        self._weight_budget = weight_budget
        self._clock_sync = clock_sync
        self._symbols = symbols
        self._throttled_log = throttled_log
        self._refresh_ms = refresh_ms
        self._removed = removed
        self._changed = changed
        self._refresh_due = asyncio.Event()
        self._measurement_due = asyncio.Event()
        self.ready = asyncio.Event()
        """REST has answered once, with all that is asked at start."""

    def refresh_symbols(self) -> None:
        """Read the list of symbols soon."""
        self._refresh_due.set()

    def measure_clock(self) -> None:
        """Measure the exchange's clock soon."""
        self._measurement_due.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        await self._begin()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_time())
            tasks.create_task(self._keep_symbols())

    async def _begin(self) -> None:
        attempt = 0
        while not self.ready.is_set():
            try:
                # First exchangeInfo, which says the limit: what was spent may be more than we take to be allowed.
                listings = await self._listings(starting=True)
                for _ in range(CLOCK_SAMPLES):
                    await self._measure_time(starting=True)
                volumes = await self._ask(self._venue.tickers(), starting=True)
                self._symbols.set_volumes(read_volumes(volumes.body))
                self._take(listings)
                self.ready.set()
            except (RestError, Malformed) as error:
                if not attempt:
                    log.info("waiting for the exchange: %s", error)
                attempt += 1
                await asyncio.sleep(random.uniform(0.05, min(RETRY_MAX_S, 0.2 * 2.0 ** min(attempt, 8))))

    async def _keep_time(self) -> None:
        confirm_s = CONFIRM_S
        while True:
            if not self._clock_sync.unconfirmed:
                confirm_s = CONFIRM_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._measurement_due.wait(), CLOCK_S)
            self._measurement_due.clear()
            try:
                await self._measure_time()
            except (RestError, Malformed) as error:
                self._throttled_log.warn("time not read", str(error))
            if self._clock_sync.unconfirmed:
                await asyncio.sleep(confirm_s)
                confirm_s = min(2 * confirm_s, CLOCK_S)
            else:
                await asyncio.sleep(CLOCK_SPACING_S)

    async def _keep_symbols(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._refresh_due.wait(), self._refresh_ms / 1000)
            self._refresh_due.clear()
            try:
                self._take(await self._listings())
            except (RestError, Malformed) as error:
                self._throttled_log.warn("symbols not read", str(error))
            await asyncio.sleep(REFRESH_SPACING_S)

    def _ask(self, request: Request, starting: bool = False) -> Coroutine[Any, Any, Answer]:
        """Ask for metadata. At start much depends on it: it may use the reserve, and each attempt is one request."""
        if starting:
            return self._rest.get(request, Priority.TRADES, attempts_max=1)
        return self._rest.get(request, Priority.METADATA)

    async def _measure_time(self, starting: bool = False) -> None:
        answer = await self._ask(self._venue.time(), starting)
        if not self._clock_sync.measured:
            # An answer ends a ban that was counted by this machine's clock.
            self._weight_budget.stopped_until = 0
        exchange_ms = read_time(answer.body)
        expected = self._clock_sync.rest_now(answer.received_ns)
        self._clock_sync.take_answer(exchange_ms, answer.sent_ns, answer.received_ns, time.time_ns() // 1_000_000)
        if expected and self._clock_sync.unconfirmed:
            self._throttled_log.warn(
                "time not confirmed", f"the exchange says {utc(exchange_ms)} where {utc(expected)} was expected"
            )

    async def _listings(self, starting: bool = False) -> list[Listing]:
        answer = await self._ask(self._venue.exchange_info(), starting)
        listings, limit = read_exchange_info(answer.body, self._throttled_log.refuse)
        if limit:
            self._weight_budget.set_limit(limit)
        return listings

    def _take(self, listings: list[Listing]) -> None:
        first = not self._symbols.listed
        unknown_before = self._symbols.unknown
        changes = self._symbols.refresh(listings)
        for name, nearest in self._symbols.unknown.items():
            if name not in unknown_before:
                log.error(
                    "exchange.symbols: there is no symbol %r%s", name, f"; the nearest is {nearest}" if nearest else ""
                )
        if first:
            log.info("%d symbols trade", self._symbols.trading_count)
        elif changes.listed:
            log.info("listed: %s", " ".join(changes.listed))
        for symbol in changes.removed:
            log.info("trades no more: %s", symbol)
            self._removed(symbol)
        self._changed()
