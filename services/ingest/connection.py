"""One route to the exchange, kept open by one websocket after another.

Decides when a websocket is dead, when its successor replaces it, how long to wait before the next attempt, and when
which stream names are sent. Knows nothing of what data frames say: the frames of one TCP read are handed over together,
and the caller that decodes them hands back the exchange's replies.

A websocket that is about to end, because it is old or the exchange says so, is closed only when its successor delivers
every stream: for a moment both do, and what comes twice fails the engine's check of ids. A crash here costs the trades
until the next connection, which the engine misses by their ids and asks for.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable

from services.ingest.binance.messages import NAMES_MAX, STREAMS_MAX, Reply, control_message
from services.ingest.websocket import Frames, Websocket

PACE_S = 0.25
"""Between two control messages: the fastest pace that was never punished (protocol §1.3)."""
REPLY_TIMEOUT_S = 10.0
"""A websocket on which a control message has no reply for this long is dead."""
OVERLAP_S = 2.0
"""How long a websocket is still read beside its successor: the exchange does not send both the same at once."""
BACKOFF_S = 0.25
BACKOFF_MAX_S = 10.0
"""With full jitter, five seconds on average: far from the 300 connections in 5 minutes that are allowed."""
STABLE_S = 10.0
"""A connection that lasted this long ends the back-off."""

log = logging.getLogger(__name__)


class Link:
    """One websocket, and the streams that were requested over it."""

    def __init__(self, websocket: Websocket) -> None:
        self.websocket = websocket
        self.requested: dict[str, None] = {}
        """Stream names that were sent over it, ..."""
        self.acknowledged: set[str] = set()
        """... and those of them that the exchange has replied to."""
        self.unanswered: dict[int, tuple[str, list[str], float]] = {}
        """Control messages by id: method, names, and when they were sent."""
        self.subscribing: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self.subscribing is not None:
            self.subscribing.cancel()
        self.websocket.close()


class Connection:
    def __init__(
        self,
        route: str,
        url: str,
        silence_ms: int,
        age_max_ms: int,
        steady: bool,
        received: Callable[["Connection", Frames], None],
        changed: Callable[[], None],
        proxy_url: str = "",
    ) -> None:
        """Connect to `url`. `received` gets frames; `changed` is called when `connected` has changed.

        `age_max_ms`: a websocket that is older is replaced. `steady`: the route always has data, so that a websocket
        without any is dead even if it answers pings. On a route that may be quiet, a pong is enough.
        """
        self.route = route
        self.connected = False
        self.counts: Counter[str] = Counter()
        self._url = url
        self._proxy_url = proxy_url
        self._silence_s = silence_ms / 1000
        self._age_max_s = age_max_ms / 1000
        self._steady = steady
        self._received = received
        self._changed = changed
        self._wanted: dict[str, None] = {}
        self._links: list[Link] = []
        """The current one, and for a time its predecessor or its successor."""
        self._message_id = 0
        self._wanted_changed = asyncio.Event()
        self._delivered_changed = asyncio.Event()
        self._renewal = asyncio.Event()

    def subscribe(self, streams: Iterable[str]) -> None:
        """Want streams from here on, over this websocket and every later one."""
        for stream in streams:
            if len(self._wanted) >= STREAMS_MAX and stream not in self._wanted:
                # One more would cost the whole connection.
                self.counts["streams beyond the limit"] += 1
            else:
                self._wanted[stream] = None
        self._wanted_changed.set()

    def unsubscribe(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._wanted.pop(stream, None)
        self._wanted_changed.set()
        self._wake_waiters()

    @property
    def streams(self) -> int:
        return len(self._wanted)

    def renew(self, why: str) -> None:
        """Replace the websocket, which delivers too little or is about to end."""
        if self.connected and not self._renewal.is_set():
            log.info("%s: another connection takes over: %s", self.route, why)
            self._renewal.set()

    def take_reply(self, reply: Reply) -> list[str]:
        """Take the exchange's reply to a control message; return the streams that no websocket delivered before."""
        message_id = -1 if reply.message_id is None else reply.message_id
        link = next((link for link in self._links if message_id in link.unanswered), None)
        method, names, _ = link.unanswered.pop(message_id) if link is not None else ("something", [], 0.0)
        if reply.error:
            self.counts["refused by the exchange"] += 1
            log.error("%s: %s of %d streams refused: %s", self.route, method, len(names), reply.error)
        if link is None or method != "SUBSCRIBE":
            return []
        added = [name for name in names if not self._is_delivered(name)]
        link.acknowledged.update(names)
        self._wake_waiters()
        return added

    async def wait_delivered(self, stream: str) -> None:
        """Wait until the exchange has acknowledged a stream on a live websocket, or it is not wanted any more."""
        while stream in self._wanted and not self._is_delivered(stream):
            await self._delivered_changed.wait()

    @property
    def delivered(self) -> set[str]:
        """The streams that the exchange has acknowledged on a live websocket."""
        return set().union(*(link.acknowledged for link in self._links))

    def _is_delivered(self, stream: str) -> bool:
        return any(stream in link.acknowledged for link in self._links)

    def _wake_waiters(self) -> None:
        self._delivered_changed.set()
        self._delivered_changed.clear()

    async def run(self) -> None:
        """Keep the route open until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            why = await self._stay_connected()
            lasted = loop.time() - began
            failures = failures_after(failures, lasted)
            if failures <= 1:
                log.warning("%s: %s; connecting again", self.route, why)
            self.counts["lost"] += 1
            await asyncio.sleep(_backoff_s(failures))

    async def _stay_connected(self) -> str:
        """Keep a websocket and its successors until one is lost; return why."""
        try:
            link = await self._open()
            self.connected = True
            self._changed()
            while True:
                why, successor = await self._serve(link)
                if successor is None:
                    return why
                link = successor
        except OSError as error:
            return f"cannot connect to {self._url}: {type(error).__name__} {error}"
        finally:
            for link in self._links:
                link.close()
            self._links = []
            if self.connected:
                self.connected = False
                self._changed()

    async def _open(self) -> Link:
        """Open a websocket, and begin to subscribe all wanted streams on it. Raises OSError."""
        websocket = Websocket(self._url, self._steady, lambda frames: self._received(self, frames), self._proxy_url)
        try:
            await websocket.open()
        except BaseException:
            websocket.close()
            raise
        log.info("%s: connected to %s", self.route, self._url)
        link = Link(websocket)
        self._links.append(link)
        link.subscribing = asyncio.create_task(self._keep_subscribed(link))
        return link

    async def _serve(self, link: Link) -> tuple[str, Link | None]:
        """Wait until a websocket ends, and return why, or until its successor has replaced it, and return that."""
        end = asyncio.create_task(self._wait_end(link))
        succession = asyncio.create_task(self._open_successor())
        try:
            await asyncio.wait({end, succession}, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                return end.result(), None
            asyncio.get_running_loop().call_later(OVERLAP_S, self._close, link)
            return "", succession.result()
        finally:
            end.cancel()
            succession.cancel()

    def _close(self, link: Link) -> None:
        link.close()
        if link in self._links:
            self._links.remove(link)

    async def _open_successor(self) -> Link:
        """Wait until the websocket is to be replaced; return another one that delivers every wanted stream."""
        self._renewal.clear()
        try:
            await asyncio.wait_for(self._renewal.wait(), self._age_max_s)
        except TimeoutError:
            log.info("%s: another connection takes over after %.1f h", self.route, self._age_max_s / 3600)
        self._renewal.set()
        attempt = 0
        while True:
            try:
                link = await self._open()
            except OSError as error:
                self.counts["successors lost"] += 1
                log.log(logging.WARNING if not attempt else logging.DEBUG, "%s: no successor: %s", self.route, error)
            else:
                if await self._is_ready(link):
                    self.counts["renewed"] += 1
                    return link
                self.counts["successors lost"] += 1
                self._close(link)
            attempt += 1
            await asyncio.sleep(_backoff_s(attempt))

    async def _is_ready(self, link: Link) -> bool:
        """Wait until a websocket delivers every wanted stream; False if it ends before."""
        end = asyncio.create_task(self._wait_end(link))
        try:
            while not end.done():
                if self._wanted.keys() <= link.acknowledged:
                    return True
                change = asyncio.create_task(self._delivered_changed.wait())
                await asyncio.wait({end, change}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            return False
        finally:
            end.cancel()

    async def _wait_end(self, link: Link) -> str:
        """Wait until a websocket is closed or dead; return why."""
        loop = asyncio.get_running_loop()
        websocket = link.websocket
        pinged_at = 0.0
        while not websocket.closed.done():
            now = loop.time()
            quiet = now - websocket.alive_at
            if quiet >= self._silence_s:
                return f"silent for {quiet:.1f} s"
            oldest = min((at for _, _, at in link.unanswered.values()), default=now)
            if now - oldest >= REPLY_TIMEOUT_S:
                return f"no reply to a control message for {now - oldest:.1f} s"
            if not self._steady and quiet >= self._silence_s / 2 and pinged_at <= websocket.alive_at:
                pinged_at = now
                websocket.ping()
            await asyncio.wait([websocket.closed], timeout=min(self._silence_s - quiet, self._silence_s / 4, 2.0))
        return websocket.closed.result()

    async def _keep_subscribed(self, link: Link) -> None:
        """Make what is requested over a websocket equal to what is wanted, a few names at a time."""
        while True:
            surplus = [stream for stream in link.requested if stream not in self._wanted][:NAMES_MAX]
            missing = [stream for stream in self._wanted if stream not in link.requested][:NAMES_MAX]
            if surplus:
                self._send_control(link, "UNSUBSCRIBE", surplus)
                for stream in surplus:
                    del link.requested[stream]
                    link.acknowledged.discard(stream)
            elif missing:
                self._send_control(link, "SUBSCRIBE", missing)
                link.requested |= dict.fromkeys(missing)
            else:
                # Nothing is awaited between the comparison and the wait, so that no change is missed.
                self._wanted_changed.clear()
                await self._wanted_changed.wait()
                continue
            await asyncio.sleep(PACE_S)

    def _send_control(self, link: Link, method: str, streams: list[str]) -> None:
        self._message_id += 1
        link.unanswered[self._message_id] = (method, streams, asyncio.get_running_loop().time())
        link.websocket.send(control_message(method, streams, self._message_id))


def failures_after(failures: int, lasted_s: float) -> int:
    """Return how many connections in a row were short, after one more that has ended."""
    return 0 if lasted_s >= STABLE_S else failures + 1


def backoff_max_s(failures: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failures, 10))


def _backoff_s(failures: int) -> float:
    return random.uniform(0, backoff_max_s(failures))
