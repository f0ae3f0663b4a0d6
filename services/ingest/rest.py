"""REST: one queue, one budget, bounded retries.

Decides when a request is sent and what is done about a refusal. The order is that of `Priority`: what repairs klines
goes before the history of symbols, and what is only compared goes last. Knows nothing of what an answer says, beyond
its errors.

A crash here costs nothing: the engine asks again.
"""

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from services.ingest.binance.endpoints import KEY_HEADER, WEIGHT_HEADER, Request, Venue
from services.ingest.binance.messages import banned_until, read_error
from services.ingest.rate_limit import GUARD_MS, MINUTE_MS, STOP_MAX_MS, WeightBudget
from shared.interval import utc

IN_FLIGHT_MAX = 8
"""Requests under way at once: enough to spend a minute's budget in seconds, and few enough for a small server."""
HISTORY_SPACING_S = 0.002
"""Between requests from HISTORY on: to read their answers delays the trades. It allows more than ten times what the
exchange's budget does, so that only a simulated exchange is asked less often than it would answer."""
QUEUE_MAX = 20_000
"""Requests waiting: all intervals of all symbols, and some."""
ATTEMPTS_MAX = 5
"""Of one request, when the exchange fails or is not there; after them the caller decides what to do."""
BACKOFF_MS = 300
BACKOFF_MAX_MS = 8_000
TIMEOUT_S = 15.0
BODY_MAX = 32 * 2**20
"""Bytes of an answer, uncompressed; the list of all symbols has some two million."""
DIGITS_MAX = 9
"""Of a number in a header: weights, and seconds."""
HOST_MAX = 253
"""Characters of a host's name (RFC 1035)."""
BAN_MS = 120_000
"""The shortest ban, which a 418 without a time is taken for (protocol §3.1)."""

log = logging.getLogger(__name__)


class Priority(IntEnum):
    OPEN_TRADES = 0
    """Trades that are missing in klines that are still open."""
    TRADES = 1
    OLD_TRADES = 2
    KLINES = 3
    """Klines that are missing."""
    HISTORY = 4
    """Klines of symbols that are to be announced."""
    METADATA = 5
    AUDIT = 6
    """Klines to compare with ours."""


class RestError(Exception):
    """A request that failed. `status`: of HTTP, 0 if there was no answer; `code`: the exchange's own, or 0."""

    def __init__(self, path: str, status: int, code: int, message: str) -> None:
        super().__init__(f"{path}: {status or ''} {code or ''} {message}".replace("  ", " "))
        self.status = status


class Answer(NamedTuple):
    body: bytes
    sent_ns: int
    """Monotonic time before the request was sent, ..."""
    received_ns: int
    """... and after its answer had come."""


class Rest:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        venue: Venue,
        weight_budget: WeightBudget,
        now: Callable[[], int],
        banned: Callable[[int], None],
        proxy_url: str = "",
    ) -> None:
        """Ask `venue`; `now` is the exchange's time, ms, in which its minutes are counted.

        `banned` is called when the exchange says 418, with the ms for which nothing may be asked.
        """
        self._session = session
        self._venue = venue
        self._weight_budget = weight_budget
        self._now = now
        self._banned = banned
        self._proxy_url = proxy_url or None
        self._waiting: list[deque[tuple[int, asyncio.Future[int]]]] = [deque() for _ in Priority]
        """By priority: (weight, permit)."""
        self._in_flight = 0
        self._history_at = 0.0
        """When the next request from HISTORY on may go, monotonic s."""
        self._timer: asyncio.TimerHandle | None = None
        self.counts: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting))

    async def get(self, request: Request, priority: Priority, attempts_max: int = ATTEMPTS_MAX) -> Answer:
        """Wait until the request may be sent, however long that takes, and return its answer. Raises RestError."""
        attempt = 0
        while True:
            answer = await self._send(request, await self._permit(request.weight, priority))
            if isinstance(answer, Answer):
                return answer
            if answer.status in (418, 429):
                # That is not about this request: it waits as all others do.
                continue
            attempt += 1
            if 400 <= answer.status < 500 and answer.status != 408:
                self.counts["refused"] += 1
                raise answer
            if attempt >= attempts_max:
                self.counts["failed"] += 1
                raise answer
            self.counts["retried"] += 1
            await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_MS, BACKOFF_MS * 2**attempt)) / 1000)

    async def _permit(self, weight: int, priority: Priority) -> int:
        """Wait until a request may go; return the minute that it is charged to."""
        if self.waiting >= QUEUE_MAX:
            self.counts["queue full"] += 1
            raise RestError("queue", 0, 0, f"{QUEUE_MAX} requests are waiting")
        permit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[priority].append((weight, permit))
        self._dispatch()
        try:
            return await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():
                self._finish(weight, permit.result(), None)
            raise

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for priority, waiting in zip(Priority, self._waiting, strict=True):
            while waiting and self._in_flight < IN_FLIGHT_MAX:
                weight, permit = waiting[0]
                if not permit.done():
                    now = self._now()
                    wait_s = self._weight_budget.wait_ms(weight, now, repair=priority <= Priority.KLINES) / 1000
                    if priority >= Priority.HISTORY:
                        wait_s = max(wait_s, self._history_at - time.monotonic())
                    if wait_s > 0:
                        after_s = min(wait_s, MINUTE_MS / 1000)
                        self._timer = asyncio.get_running_loop().call_later(after_s, self._dispatch)
                        return
                    if priority >= Priority.HISTORY:
                        self._history_at = max(time.monotonic(), self._history_at + HISTORY_SPACING_S)
                    self._in_flight += 1
                    permit.set_result(self._weight_budget.start(weight, now))
                waiting.popleft()

    def _finish(self, weight: int, minute: int, used: int | None) -> None:
        self._weight_budget.finish(weight, minute, self._now(), used)
        self._in_flight -= 1
        self._dispatch()

    async def _send(self, request: Request, minute: int) -> Answer | RestError:
        """Send a request that has its permit."""
        used: int | None = None
        self.counts["requests"] += 1
        try:
            headers = {KEY_HEADER: self._venue.api_key} if request.with_key else {}
            sent_ns = time.monotonic_ns()
            # Redirects are not followed: there may be a key among the headers.
            async with self._session.get(
                self._venue.rest + request.path,
                params=request.parameters,
                headers=headers,
                proxy=self._proxy_url,
                allow_redirects=False,
            ) as response:
                text = response.headers.get(WEIGHT_HEADER, "")
                used = _number(text)
                body = await _body(response)
                if response.status == 200:
                    return Answer(body, sent_ns, time.monotonic_ns())
                code, message = read_error(body)
                if 300 <= response.status < 400:
                    message = f"a redirect to {_host_of(response.headers.get('Location', ''))}, which is not followed"
                if response.status in (418, 429):
                    self._stop_until(response.status, response.headers.get("Retry-After", ""), message)
                return RestError(request.path, response.status, code, message)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return RestError(request.path, 0, 0, f"{type(error).__name__} {error}".strip())
        finally:
            self._finish(request.weight, minute, used)

    def _stop_until(self, status: int, retry_after: str, message: str) -> None:
        now = self._now()
        until = max(banned_until(message) or 0, now + (_number(retry_after) or 0) * 1000)
        if until <= now:
            next_minute = (now // MINUTE_MS + 1) * MINUTE_MS + GUARD_MS
            until = now + BAN_MS if status == 418 else next_minute
        until = min(until, now + STOP_MAX_MS)
        if now >= self._weight_budget.stopped_until:
            log.warning("the exchange says %d: no REST before %s", status, utc(until))
        self.counts[f"status {status}"] += 1
        self._weight_budget.stop(until, now)
        if status == 418:
            self._banned(self._weight_budget.stopped_until - now)


def _number(text: str) -> int | None:
    """Return what a header says; None if that is no number, or none that can be."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else None


def _host_of(location: str) -> str:
    """Return the host that a redirect leads to, without the rest of its URL, which may hold a key."""
    try:
        return repr((urlsplit(location).hostname or "the same host")[:HOST_MAX])
    except ValueError:
        return "nowhere"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Return an answer's content. Raises ClientError, and what aiohttp raises."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > BODY_MAX:
            raise aiohttp.ClientPayloadError(f"an answer of more than {BODY_MAX} bytes")
        parts.append(part)
    return b"".join(parts)
