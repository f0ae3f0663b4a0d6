"""Events to the engine, and what happens to them while the engine does not take any.

Batches of trades are dropped and counted: their ids make them recoverable. A `FeedState` is dropped too, because the
next one replaces it. All other events are kept, in order, and sent again. No send waits.
"""

import logging
from collections import Counter, deque

import zmq

from shared.kline import TRADE
from shared.sockets import send
from shared.wire import AppEvent, FeedState, Trades, encode

KEPT_MAX = 2_000
"""Announcements of all symbols, some 200 KB each, and as many others; an engine that comes back asks for all again."""

log = logging.getLogger(__name__)


class Outbox:
    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._kept: deque[bytes] = deque()
        self._full = False
        self.counts: Counter[str] = Counter()

    def send(self, event: AppEvent) -> None:
        message = encode(event)
        if self.retry() and send(self._socket, message):
            self.counts["messages"] += 1
            if self._full:
                self._full = False
                log.info("the engine takes events again; %d trades were dropped so far", self.counts["trades dropped"])
            return
        if not self._full:
            self._full = True
            log.warning("the engine takes no events: trades are dropped until it does")
        if isinstance(event, Trades):
            self.counts["trades dropped"] += len(event.rows) // TRADE.itemsize
        elif not isinstance(event, FeedState):
            if len(self._kept) >= KEPT_MAX:
                self.counts["events dropped"] += 1
            else:
                self._kept.append(message)

    def retry(self) -> bool:
        """Send what was kept; False if the engine does not take it yet."""
        while self._kept:
            if not send(self._socket, self._kept[0]):
                return False
            self._kept.popleft()
        return True
