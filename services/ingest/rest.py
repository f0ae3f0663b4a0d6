"""REST: one queue, one budget, bounded retries.

Decides when a request goes and what is done about a refusal. The order is trades to repair first, those of open klines
before all, then klines to repair, then the history of symbols, then metadata, then what is only compared. Knows nothing
of what an answer says, beyond its errors.

A crash here costs nothing: whoever asked asks again.
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

from services.ingest.binance import banned_until, read_error
from services.ingest.governor import GUARD_MS, MINUTE_MS, STOP_MAX_MS, Governor
from services.ingest.venue import KEY_HEADER, WEIGHT_HEADER, Request, Venue
from shared.interval import utc

IN_FLIGHT_MAX = 8
"""Requests under way at once: enough to spend a minute's budget in seconds, and polite to a small server."""
UNHURRIED_EVERY_S = 0.002
"""Between requests from HISTORY on: what they bring is work for us, while trades go by. It is more than ten times what
the exchange's budget comes to, so only a simulated one is asked less often than it would answer."""
QUEUE_MAX = 20_000
"""Requests waiting: all intervals of all symbols, and some."""
ATTEMPTS_MAX = 5
"""Of one request, when the exchange fails or is not there; whoever asked decides whether to begin again."""
BACKOFF_MS = 300
BACKOFF_MAX_MS = 8_000
TIMEOUT_S = 15.0
BODY_MAX = 32 * 2**20
"""Bytes of an answer, unpacked; the list of all symbols has some two million."""
DIGITS_MAX = 9
"""Of a number in a header: weights, and seconds."""
HOST_MAX = 253
"""Characters of a host's name (RFC 1035)."""
BAN_MS = 120_000
"""How long a 418 that says nothing else lasts at least (protocol §3.1)."""

log = logging.getLogger(__name__)


class Priority(IntEnum):
    OPEN_TRADES = 0
    """Missing in klines that are still open."""
    TRADES = 1
    OLD_TRADES = 2
    KLINES = 3
    HISTORY = 4
    METADATA = 5
    AUDIT = 6


class RestError(Exception):
    """A request that came to nothing. `code` is the exchange's own, 0 if it is none of its."""

    def __init__(self, path: str, status: int, code: int, message: str) -> None:
        super().__init__(f"{path}: {status or ''} {code or ''} {message}".replace("  ", " "))
        self.status = status
        self.code = code


class Answer(NamedTuple):
    body: bytes
    sent_ns: int
    """Monotonic, before the request left and after its answer came."""
    received_ns: int


class Rest:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        venue: Venue,
        governor: Governor,
        now: Callable[[], int],
        banned: Callable[[int], None],
        through: str = "",
    ) -> None:
        """Ask `venue`; `now` is the exchange's time, ms, in which its minutes are counted.

        `banned` is told for how long, ms, nothing may be asked, when the exchange says 418. `through`: a proxy's URL.
        """
        self._session = session
        self._venue = venue
        self._governor = governor
        self._now = now
        self._banned = banned
        self._through = through or None
        self._waiting: list[deque[tuple[int, asyncio.Future[int]]]] = [deque() for _ in Priority]
        """By priority: (weight, turn)."""
        self._in_flight = 0
        self._unhurried_at = 0.0
        """When the next request from HISTORY on may go, monotonic s."""
        self._timer: asyncio.TimerHandle | None = None
        self.counts: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting))

    async def get(self, request: Request, priority: Priority, attempts_max: int = ATTEMPTS_MAX) -> Answer:
        """Ask, wait for a turn as long as it takes, and return the answer. Raises RestError."""
        attempt = 0
        while True:
            answer = await self._ask(request, await self._turn(request.weight, priority))
            if isinstance(answer, Answer):
                return answer
            if answer.status in (418, 429):
                # Not the request's fault: it waits with all the others.
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

    async def _turn(self, weight: int, priority: Priority) -> int:
        """Wait until a request may go; return the minute that it is charged to."""
        if self.waiting >= QUEUE_MAX:
            self.counts["queue full"] += 1
            raise RestError("queue", 0, 0, f"{QUEUE_MAX} requests are waiting")
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[priority].append((weight, turn))
        self._dispatch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._settle(weight, turn.result(), None)
            raise

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for priority, waiting in zip(Priority, self._waiting, strict=True):
            while waiting and self._in_flight < IN_FLIGHT_MAX:
                weight, turn = waiting[0]
                if not turn.done():
                    now = self._now()
                    wait_s = self._governor.wait_ms(weight, now, repair=priority <= Priority.KLINES) / 1000
                    if priority >= Priority.HISTORY:
                        wait_s = max(wait_s, self._unhurried_at - time.monotonic())
                    if wait_s > 0:
                        after_s = min(wait_s, MINUTE_MS / 1000)
                        self._timer = asyncio.get_running_loop().call_later(after_s, self._dispatch)
                        return
                    if priority >= Priority.HISTORY:
                        self._unhurried_at = max(time.monotonic(), self._unhurried_at + UNHURRIED_EVERY_S)
                    self._in_flight += 1
                    turn.set_result(self._governor.start(weight, now))
                waiting.popleft()

    def _settle(self, weight: int, minute: int, used: int | None) -> None:
        self._governor.finish(weight, minute, self._now(), used)
        self._in_flight -= 1
        self._dispatch()

    async def _ask(self, request: Request, minute: int) -> Answer | RestError:
        """Send a request whose turn it is."""
        used: int | None = None
        self.counts["requests"] += 1
        try:
            headers = {KEY_HEADER: self._venue.api_key} if request.with_key else {}
            sent_ns = time.monotonic_ns()
            # Nobody is sent elsewhere: there may be a key among the headers.
            async with self._session.get(
                self._venue.rest + request.path,
                params=request.parameters,
                headers=headers,
                proxy=self._through,
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
                    self._stop(response.status, response.headers.get("Retry-After", ""), message)
                return RestError(request.path, response.status, code, message)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return RestError(request.path, 0, 0, f"{type(error).__name__} {error}".strip())
        finally:
            self._settle(request.weight, minute, used)

    def _stop(self, status: int, retry_after: str, message: str) -> None:
        now = self._now()
        until = max(banned_until(message) or 0, now + (_number(retry_after) or 0) * 1000)
        if until <= now:
            next_minute = (now // MINUTE_MS + 1) * MINUTE_MS + GUARD_MS
            until = now + BAN_MS if status == 418 else next_minute
        until = min(until, now + STOP_MAX_MS)
        if now >= self._governor.stopped_until:
            log.warning("the exchange says %d: no REST before %s", status, utc(until))
        self.counts[f"status {status}"] += 1
        self._governor.stop(until, now)
        if status == 418:
            self._banned(self._governor.stopped_until - now)


def _number(text: str) -> int | None:
    """Return what a header says; None if that is no number, or none that can be."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else None


def _host_of(location: str) -> str:
    """Return where somebody would be sent, and nothing more of it."""
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
