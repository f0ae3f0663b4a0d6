"""Faults on demand: what an exchange does when it fails, for as long as it is asked to.

Decides what becomes of messages and answers while a fault lasts. What one is asked for is a `Fault`; those that happen
at once (`AT_ONCE`) are done by control.py, which has connections and market. Dice have a seed; no socket, no clock.
"""

import random
import re
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.simulator.frames import TICKER_STREAM, Chunk

AT_ONCE = {
    "drop": "break every websocket without a word",
    "close": "close every websocket with a goodbye",
    "shutdown": "announce the end of every websocket, and break it `seconds` later",
    "mute": "deliver no more trades on the websockets there are (of one `symbol`, or all); new ones are well",
    "decimals": "write a `symbol`'s prices and quantities with one decimal more",
    "list": "list a new symbol",
    "delist": "end a `symbol`'s trading at the end of the minute",
    "late": "let one of a `symbol`'s next trades say a time that is `ms` earlier, but in the minute before",
    "relist": "let a `symbol`'s ids restart at 1, as of one that is listed again",
    "clock": "move the exchange's time by `ms`; backwards means that it stands still for so long",
}
ONCE = {
    "time": "answer the next question for the time wrong by `ms`",
    "event": "send the next frame of the ticker, or the next trade of a `symbol`, with an event time wrong by `ms`",
}
LASTING = {
    "refuse": "take no new websocket",
    "silent": "send nothing, with every websocket open; what is traded meanwhile is never sent",
    "skip": "leave out a `share` of the trades",
    "repeat": "send a `share` of the trades twice",
    "reorder": "send a `share` of the trades after the next ones of their symbol",
    "delay": "send a `share` of the trades `ms` later",
    "garbage": "send something that is no trade before a `share` of the trades",
    "lifetime": "end every websocket that is `ms` old",
    "omit": "leave a `share` of ids out of REST's pages of trades, the same ones each time",
    "stall": "answer a `share` of REST requests `ms` later",
    "error": "answer a `share` of REST requests with 503",
    "cut": "break off in the middle of a `share` of REST's answers",
    "limit": "answer a `share` of REST requests with 429",
    "ban": "answer REST requests with 418 until the fault is over",
}
REST = ("ban", "limit", "error", "cut", "stall")
SECONDS_MAX = 3_600.0
WRONG_MAX_MS = 20 * 366 * 86_400_000
"""By how much a time may be wrong."""
EVENT_TIME = re.compile(rb'(?<="E":)[0-9]+')
OMIT_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Scatters neighbouring ids over 64 bits (Fibonacci hashing)."""
GARBAGE = (
    b'{"e":"aggTrade","E":1,"a":',
    b'{"e":"aggTrade","E":17,"a":-5,"s":"BTCUSDT","p":"1","q":"1","f":1,"l":1,"T":17,"m":true,"st":1}',
    b'{"e":"aggTrade","E":17,"a":5,"s":"BTCUSDT","p":"1e999","q":"NaN","f":1,"l":1,"T":17,"m":true,"st":1}',
    b'{"e":"aggTrade","E":17,"a":5,"s":"NOBODYUSDT","p":"1","q":"1","f":1,"l":1,"T":17,"m":false,"st":1}',
    b'{"e":"bookTicker","s":"BTCUSDT"}',
    b"null",
    b'"\xff\xfe"',
)


class Fault(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is asked for; which of its fields count depends on the kind."""

    kind: str
    seconds: float = 10.0
    share: float = 0.1
    ms: int = 2_000
    symbol: str = ""


def read_fault(asked: Mapping[str, str]) -> Fault:
    """Read the parameters of a request. Raises ValueError with the reason."""
    try:
        fault = msgspec.convert(dict(asked), Fault, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    if fault.kind not in AT_ONCE | ONCE | LASTING:
        raise ValueError(f"no such fault; there are {', '.join(AT_ONCE | ONCE | LASTING)}")
    ms_max = WRONG_MAX_MS if fault.kind in ONCE else SECONDS_MAX * 1000
    if not (0 < fault.seconds <= SECONDS_MAX and 0 <= fault.share <= 1 and abs(fault.ms) <= ms_max):
        raise ValueError("seconds, share or ms are out of range")
    return fault


class Faults:
    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._lasting: dict[str, tuple[Fault, float]] = {}
        self._held: list[tuple[float, Chunk]] = []
        """Messages that go later, and when."""
        self._once: dict[str, Fault] = {}

    def begin(self, fault: Fault, now_s: float) -> None:
        """Let a lasting fault begin, or begin again; or have one happen once."""
        if fault.kind in ONCE:
            self._once[fault.kind] = fault
        else:
            self._lasting[fault.kind] = (fault, now_s + fault.seconds)

    @property
    def once(self) -> list[str]:
        """The faults that are still to happen once."""
        return list(self._once)

    def wrong_ms(self) -> int:
        """Return how wrong an answer about the time is."""
        fault = self._once.pop("time", None)
        return fault.ms if fault is not None else 0

    def active(self, now_s: float) -> dict[str, float]:
        """Return the lasting faults and how many seconds each has left."""
        self._lasting = {kind: lasting for kind, lasting in self._lasting.items() if lasting[1] > now_s}
        return {kind: until - now_s for kind, (_, until) in self._lasting.items()}

    def get(self, kind: str, now_s: float) -> Fault | None:
        """Return a fault while it lasts."""
        lasting = self._lasting.get(kind)
        return lasting[0] if lasting is not None and now_s < lasting[1] else None

    def of_request(self, now_s: float) -> Fault | None:
        """Return what becomes of a REST request, if anything."""
        for kind in REST if self._lasting else ():
            fault = self.get(kind, now_s)
            if fault is not None and (kind == "ban" or self._dice.random() < fault.share):
                return fault
        return None

    def omits(self, ids: NDArray[np.int64], now_s: float) -> NDArray[np.bool_]:
        """Say of each id whether pages of trades leave it out: by its value, so it is the same each time."""
        fault = self.get("omit", now_s)
        if fault is None:
            return np.zeros(len(ids), bool)
        scattered = ids.astype(np.uint64) * OMIT_FACTOR >> np.uint64(32)
        return scattered < np.uint64(fault.share * 2**32)

    @property
    def quiet(self) -> bool:
        """Messages go as they come."""
        return not self._lasting and not self._held and "event" not in self._once

    def distort(self, chunks: list[Chunk], now_s: float) -> list[Chunk]:
        """Return what is sent now of the messages that would be, and of those that were held back."""
        self.active(now_s)
        if self.get("silent", now_s):
            self._held = []
            return []
        due = [chunk for at, chunk in self._held if at <= now_s]
        self._held = [held for held in self._held if held[0] > now_s]
        return [*(self._distorted(chunk, now_s) for chunk in chunks), *due]

    def _distorted(self, chunk: Chunk, now_s: float) -> Chunk:
        chunk = self._misdated(chunk)
        if chunk.stream == TICKER_STREAM or not self._lasting:
            return chunk
        return Chunk(chunk.stream, list(self._messages(chunk, now_s)))

    def _misdated(self, chunk: Chunk) -> Chunk:
        fault = self._once.get("event")
        stream = chunk.stream if not fault or not fault.symbol else chunk.stream.partition("@")[0]
        if fault is None or not chunk.messages or stream != (fault.symbol.lower() or TICKER_STREAM):
            return chunk
        del self._once["event"]
        first = EVENT_TIME.sub(lambda found: str(max(0, int(found[0]) + fault.ms)).encode(), chunk.messages[0])
        return Chunk(chunk.stream, [first, *chunk.messages[1:]])

    def _messages(self, chunk: Chunk, now_s: float) -> Iterator[bytes]:
        waiting: list[bytes] = []
        for message in chunk.messages:
            if self._hits("skip", now_s):
                continue
            if self._hits("garbage", now_s):
                yield self._dice.choice(GARBAGE)
            if self._hits("delay", now_s):
                delay = self._lasting["delay"][0]
                self._held.append((now_s + delay.ms / 1000, Chunk(chunk.stream, [message])))
            elif self._hits("reorder", now_s):
                waiting.append(message)
            else:
                yield message
                yield from waiting
                waiting = []
            if self._hits("repeat", now_s):
                yield message
        if waiting:
            # After the symbol's next ones, whenever they come: not with this write.
            self._held.append((now_s + self._dice.uniform(0.05, 1.0), Chunk(chunk.stream, waiting)))

    def _hits(self, kind: str, now_s: float) -> bool:
        fault = self.get(kind, now_s)
        return fault is not None and self._dice.random() < fault.share
