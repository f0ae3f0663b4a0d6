"""What REST says of the exchange itself: its clock, its symbols, and what they are worth.

Decides what is asked first, and when it is asked again. What the answers mean is decided by timekeeper.py and
symbols.py. Who cannot wait for the first answers goes without them: see `met`. A crash here costs nothing.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from services.ingest.binance import Listing, Malformed, read_exchange_info, read_time, read_volumes
from services.ingest.complaints import Complaints
from services.ingest.governor import Governor
from services.ingest.rest import Answer, Priority, Rest, RestError
from services.ingest.symbols import Symbols
from services.ingest.timekeeper import Timekeeper
from services.ingest.venue import Request, Venue
from shared.interval import utc

CLOCK_S = 60.0
"""How often the exchange's clock is measured."""
CLOCK_SAMPLES = 5
"""At start, of which the quickest counts."""
CLOCK_SPACING_S = 2.0
"""Between two measurements."""
DOUBT_S = 0.1
"""After an answer that is doubted, the next one is asked for so soon; doubled each time, up to `CLOCK_S`."""
LOOK_SPACING_S = 2.0
"""Between two readings of the list of symbols."""
WAIT_MAX_S = 2.0
"""Between two attempts to find the exchange at start."""

log = logging.getLogger(__name__)


class Metadata:
    def __init__(
        self,
        rest: Rest,
        venue: Venue,
        governor: Governor,
        clock: Timekeeper,
        symbols: Symbols,
        complaints: Complaints,
        refresh_ms: int,
        removed: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        """Read the list of symbols every `refresh_ms`; `removed` gets those that trade no more.

        `changed` is called whenever the list was read, so that what is new may be announced.
        """
        self._rest = rest
        self._venue = venue
        self._governor = governor
        self._time = clock
        self._symbols = symbols
        self._complaints = complaints
        self._refresh_ms = refresh_ms
        self._removed = removed
        self._changed = changed
        self._look = asyncio.Event()
        self._measure = asyncio.Event()
        self.met = asyncio.Event()
        """REST has said once what there is."""

    def look(self) -> None:
        """Read the list of symbols soon."""
        self._look.set()

    def measure(self) -> None:
        """Measure the exchange's clock soon."""
        self._measure.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        await self._meet()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_time())
            tasks.create_task(self._keep_symbols())

    async def _meet(self) -> None:
        attempt = 0
        while not self.met.is_set():
            try:
                # First of all the limit: what this address has spent may be beyond what is allowed elsewhere.
                listings = await self._listings(starting=True)
                for _ in range(CLOCK_SAMPLES):
                    await self._measure_time(starting=True)
                volumes = await self._ask(self._venue.tickers(), starting=True)
                self._symbols.set_volumes(read_volumes(volumes.body))
                self._take(listings)
                self.met.set()
            except (RestError, Malformed) as error:
                if not attempt:
                    log.info("waiting for the exchange: %s", error)
                attempt += 1
                await asyncio.sleep(random.uniform(0.05, min(WAIT_MAX_S, 0.2 * 2.0 ** min(attempt, 8))))

    async def _keep_time(self) -> None:
        doubt_s = DOUBT_S
        while True:
            if not self._time.in_doubt:
                doubt_s = DOUBT_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._measure.wait(), CLOCK_S)
            self._measure.clear()
            try:
                await self._measure_time()
            except (RestError, Malformed) as error:
                self._complaints.note("time not read", str(error))
            if self._time.in_doubt:
                await asyncio.sleep(doubt_s)
                doubt_s = min(2 * doubt_s, CLOCK_S)
            else:
                await asyncio.sleep(CLOCK_SPACING_S)

    async def _keep_symbols(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), self._refresh_ms / 1000)
            self._look.clear()
            try:
                self._take(await self._listings())
            except (RestError, Malformed) as error:
                self._complaints.note("symbols not read", str(error))
            await asyncio.sleep(LOOK_SPACING_S)

    def _ask(self, request: Request, starting: bool = False) -> Coroutine[Any, Any, Answer]:
        """Ask for metadata. At start much waits for it: it may use the reserve, and is not tried in vain."""
        if starting:
            return self._rest.get(request, Priority.TRADES, attempts_max=1)
        return self._rest.get(request, Priority.METADATA)

    async def _measure_time(self, starting: bool = False) -> None:
        answer = await self._ask(self._venue.time(), starting)
        if not self._time.measured:
            # What was counted by our own clock is over: there is an answer.
            self._governor.stopped_until = 0
        told = read_time(answer.body)
        known = self._time.rest_now(answer.received_ns)
        self._time.take(told, answer.sent_ns, answer.received_ns, time.time_ns() // 1_000_000)
        if known and self._time.in_doubt:
            self._complaints.note("time doubted", f"the exchange says {utc(told)} and should say {utc(known)}")

    async def _listings(self, starting: bool = False) -> list[Listing]:
        answer = await self._ask(self._venue.exchange_info(), starting)
        listings, limit = read_exchange_info(answer.body, self._complaints.refuse)
        if limit:
            self._governor.set_limit(limit)
        return listings

    def _take(self, listings: list[Listing]) -> None:
        first = not self._symbols.listed
        known_unknown = self._symbols.unknown
        changes = self._symbols.refresh(listings)
        for name, nearest in self._symbols.unknown.items():
            if name not in known_unknown:
                log.error(
                    "exchange.symbols: there is no symbol %r%s", name, f"; the nearest is {nearest}" if nearest else ""
                )
        if first:
            log.info("%d symbols trade", self._symbols.trading)
        elif changes.listed:
            log.info("listed: %s", " ".join(changes.listed))
        for symbol in changes.removed:
            log.info("trades no more: %s", symbol)
            self._removed(symbol)
        self._changed()
