"""One route to the exchange, kept open for ever, over one websocket after another.

Decides when a websocket is dead, when its successor takes over from it, how long to wait for the next, and when which
stream names are sent. Knows nothing of what data frames say: the frames of one TCP read are handed over together, and
whoever reads them hands back the exchange's replies.

A websocket that is about to end, because it is old or the exchange says so, goes only when its successor delivers
everything: for a moment both do, and what comes twice falls to the check of ids. A crash here costs the trades until
the next connection, which the engine sees by their ids and asks for.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable

from services.ingest.binance import NAMES_MAX, STREAMS_MAX, Reply, control_message
from services.ingest.framing import Frames
from services.ingest.websocket import Websocket

PACE_S = 0.25
"""Between two control messages: the fastest pace that was never punished (protocol §1.3)."""
REPLY_TIMEOUT_S = 10.0
"""A websocket that does not answer a control message for this long is taken for dead."""
OVERLAP_S = 2.0
"""How long a websocket is still read after its successor has taken over: the exchange is not in step with itself."""
BACKOFF_S = 0.25
BACKOFF_MAX_S = 10.0
"""Full jitter below it makes five seconds on average: far from the 300 connections in 5 minutes that are allowed."""
STABLE_S = 10.0
"""A connection that lived this long makes the next one wait no longer than the first."""

log = logging.getLogger(__name__)


class Line:
    """One websocket, and what was asked over it."""

    def __init__(self, websocket: Websocket) -> None:
        self.websocket = websocket
        self.asked: dict[str, None] = {}
        """Names that were sent over it, ..."""
        self.answered: set[str] = set()
        """... and those of them that the exchange has replied to."""
        self.unanswered: dict[int, tuple[str, list[str], float]] = {}
        """Control messages by their number: method, names, and when they were sent."""
        self.subscriber: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self.subscriber is not None:
            self.subscriber.cancel()
        self.websocket.close()


class Connection:
    def __init__(
        self,
        route: str,
        url: str,
        silence_ms: int,
        life_ms: int,
        steady: bool,
        received: Callable[["Connection", Frames], None],
        changed: Callable[[], None],
        through: str = "",
    ) -> None:
        """Connect to `url`. `received` gets frames; `changed` is called when `connected` became something else.

        `through`: the URL of a proxy, if there is one.
        `life_ms`: a websocket that is older is replaced. `steady`: the route always has something to say, so that
        silence of its data is death, whatever else works. A route that may be quiet is asked with a ping.
        """
        self.route = route
        self.connected = False
        self.counts: Counter[str] = Counter()
        self._url = url
        self._through = through
        self._silence_s = silence_ms / 1000
        self._life_s = life_ms / 1000
        self._steady = steady
        self._received = received
        self._changed = changed
        self._wanted: dict[str, None] = {}
        self._lines: list[Line] = []
        """The one that serves, and while it lasts the one before it or the one after."""
        self._number = 0
        self._wake = asyncio.Event()
        self._reply = asyncio.Event()
        self._renewal = asyncio.Event()

    def subscribe(self, streams: Iterable[str]) -> None:
        """Want streams from now on, over this connection and every one after it."""
        for stream in streams:
            if len(self._wanted) >= STREAMS_MAX and stream not in self._wanted:
                # One more would cost the whole connection.
                self.counts["streams beyond the limit"] += 1
            else:
                self._wanted[stream] = None
        self._wake.set()

    def unsubscribe(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._wanted.pop(stream, None)
        self._wake.set()
        self._tell_waiters()

    @property
    def streams(self) -> int:
        return len(self._wanted)

    def renew(self, why: str) -> None:
        """Let another websocket take over from this one, which is not to be trusted or about to end."""
        if self.connected and not self._renewal.is_set():
            log.info("%s: another connection takes over: %s", self.route, why)
            self._renewal.set()

    def replied(self, reply: Reply) -> list[str]:
        """Take the exchange's reply to a control message; return the streams that nobody delivered before."""
        number = -1 if reply.number is None else reply.number
        line = next((line for line in self._lines if number in line.unanswered), None)
        method, names, _ = line.unanswered.pop(number) if line is not None else ("something", [], 0.0)
        if reply.error:
            self.counts["refused by the exchange"] += 1
            log.error("%s: %s of %d streams refused: %s", self.route, method, len(names), reply.error)
        if line is None or method != "SUBSCRIBE":
            return []
        begun = [name for name in names if not self._is_delivered(name)]
        line.answered.update(names)
        self._tell_waiters()
        return begun

    async def delivers(self, stream: str) -> None:
        """Wait until the exchange sends a stream over a live websocket, or nobody wants it any more."""
        while stream in self._wanted and not self._is_delivered(stream):
            await self._reply.wait()

    @property
    def delivered(self) -> set[str]:
        """The streams that the exchange has acknowledged on a live websocket."""
        return set().union(*(line.answered for line in self._lines))

    def _is_delivered(self, stream: str) -> bool:
        return any(stream in line.answered for line in self._lines)

    def _tell_waiters(self) -> None:
        self._reply.set()
        self._reply.clear()

    async def run(self) -> None:
        """Keep the route open until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            why = await self._live()
            lived = loop.time() - began
            failures = failures_after(failures, lived)
            if failures <= 1:
                log.warning("%s: %s; connecting again", self.route, why)
            self.counts["lost"] += 1
            await asyncio.sleep(_backoff_s(failures))

    async def _live(self) -> str:
        """Open a websocket and serve it and its successors until the route is lost; return why."""
        try:
            line = await self._open()
            self.connected = True
            self._changed()
            while True:
                why, successor = await self._serve(line)
                if successor is None:
                    return why
                line = successor
        except OSError as error:
            return f"cannot connect to {self._url}: {type(error).__name__} {error}"
        finally:
            for line in self._lines:
                line.close()
            self._lines = []
            if self.connected:
                self.connected = False
                self._changed()

    async def _open(self) -> Line:
        """Open a websocket, on which everything is asked for. Raises OSError."""
        websocket = Websocket(self._url, self._steady, lambda frames: self._received(self, frames), self._through)
        try:
            await websocket.open()
        except BaseException:
            websocket.close()
            raise
        log.info("%s: connected to %s", self.route, self._url)
        line = Line(websocket)
        self._lines.append(line)
        line.subscriber = asyncio.create_task(self._keep_subscribed(line))
        return line

    async def _serve(self, line: Line) -> tuple[str, Line | None]:
        """Wait until a websocket ends, or another one has taken over from it; return why, and that one."""
        end = asyncio.create_task(self._watch(line))
        succession = asyncio.create_task(self._succeed())
        try:
            await asyncio.wait({end, succession}, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                return end.result(), None
            asyncio.get_running_loop().call_later(OVERLAP_S, self._retire, line)
            return "", succession.result()
        finally:
            end.cancel()
            succession.cancel()

    def _retire(self, line: Line) -> None:
        line.close()
        if line in self._lines:
            self._lines.remove(line)

    async def _succeed(self) -> Line:
        """Return, once it is time, another websocket that delivers everything."""
        self._renewal.clear()
        try:
            await asyncio.wait_for(self._renewal.wait(), self._life_s)
        except TimeoutError:
            log.info("%s: another connection takes over after %.1f h", self.route, self._life_s / 3600)
        self._renewal.set()
        attempt = 0
        while True:
            try:
                line = await self._open()
            except OSError as error:
                self.counts["successors lost"] += 1
                log.log(logging.WARNING if not attempt else logging.DEBUG, "%s: no successor: %s", self.route, error)
            else:
                if await self._is_ready(line):
                    self.counts["renewed"] += 1
                    return line
                self.counts["successors lost"] += 1
                self._retire(line)
            attempt += 1
            await asyncio.sleep(_backoff_s(attempt))

    async def _is_ready(self, line: Line) -> bool:
        """Wait until a websocket delivers everything; False if it ends before it does."""
        watch = asyncio.create_task(self._watch(line))
        try:
            while not watch.done():
                if self._wanted.keys() <= line.answered:
                    return True
                reply = asyncio.create_task(self._reply.wait())
                await asyncio.wait({watch, reply}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                reply.cancel()
            return False
        finally:
            watch.cancel()

    async def _watch(self, line: Line) -> str:
        """Wait for the end of a websocket, or for the silence that is one; return why."""
        loop = asyncio.get_running_loop()
        websocket = line.websocket
        pinged_at = 0.0
        while not websocket.closed.done():
            now = loop.time()
            quiet = now - websocket.heard_at
            if quiet >= self._silence_s:
                return f"silent for {quiet:.1f} s"
            oldest = min((at for _, _, at in line.unanswered.values()), default=now)
            if now - oldest >= REPLY_TIMEOUT_S:
                return f"no reply to a control message for {now - oldest:.1f} s"
            if not self._steady and quiet >= self._silence_s / 2 and pinged_at <= websocket.heard_at:
                pinged_at = now
                websocket.ping()
            await asyncio.wait([websocket.closed], timeout=min(self._silence_s - quiet, self._silence_s / 4, 2.0))
        return websocket.closed.result()

    async def _keep_subscribed(self, line: Line) -> None:
        """Bring what was asked over a websocket in line with what is wanted, a few names at a time."""
        while True:
            surplus = [stream for stream in line.asked if stream not in self._wanted][:NAMES_MAX]
            missing = [stream for stream in self._wanted if stream not in line.asked][:NAMES_MAX]
            if surplus:
                self._control(line, "UNSUBSCRIBE", surplus)
                for stream in surplus:
                    del line.asked[stream]
                    line.answered.discard(stream)
            elif missing:
                self._control(line, "SUBSCRIBE", missing)
                line.asked |= dict.fromkeys(missing)
            else:
                # Nothing is awaited between the look and the wait, so no change is slept over.
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(PACE_S)

    def _control(self, line: Line, method: str, streams: list[str]) -> None:
        self._number += 1
        line.unanswered[self._number] = (method, streams, asyncio.get_running_loop().time())
        line.websocket.send(control_message(method, streams, self._number))


def failures_after(failures: int, lived_s: float) -> int:
    """Return how many connections in a row were of no use, after one more that ended."""
    return 0 if lived_s >= STABLE_S else failures + 1


def backoff_max_s(failures: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failures, 10))


def _backoff_s(failures: int) -> float:
    return random.uniform(0, backoff_max_s(failures))
