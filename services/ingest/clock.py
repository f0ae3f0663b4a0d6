"""The exchange's time: which measurements of it are accepted, and when.

Two kinds are given: answers to `/time`, which are exact, and the times of events, which are late by their way here. One
measurement alone moves nothing: an answer that is not near what our clock says is *unconfirmed*. A jump is accepted
when several answers agree with each other and several events with them: a machine that slept, or an exchange that moved
its clock. The first time of all needs the same, but this machine's own clock may stand in for the events; it is used
for nothing else. As long as there was no answer, several events that agree are the best there is.

Pure: all times come in as arguments. Sends nothing: the caller asks the exchange, hands over the answer's times, and
asks again while an answer is unconfirmed.
"""

from collections import Counter, deque
from typing import NamedTuple

from shared.clock import ExchangeClock

DRIFT = 10_000
"""Our clock runs wrong by less than one part in so many."""
OFF_MS = 3_000
"""How far an event, or this machine's clock, may be from the exchange's time; a busy stream may be a second late."""
JUMP_MIN_NS = 50_000_000
"""What scheduling alone may add to a measurement."""
ANSWERS_MIN = EVENTS_MIN = 3
"""So many must agree: one may be wrong, and come twice, over two websockets or by a request that is repeated."""
KEPT = 5
"""Of each kind, so that a wrong one among them does no harm."""


class Answer(NamedTuple):
    ahead_ns: int
    """How far the exchange's time is ahead of our monotonic one."""
    error_ns: int
    """How wrong that can be."""
    at_ns: int


class ClockSync:
    def __init__(self, speed: float) -> None:
        """`speed` of the exchange's time as klagg sees it: 0 in a replay."""
        self.clock = ExchangeClock(speed)
        self._rest_clock = ExchangeClock()
        """The time by which REST counts its minutes: it runs in a replay too."""
        self._error_ns = self._at_ns = 0
        """How wrong the accepted answer can be, and when it came."""
        self._unconfirmed: deque[Answer] = deque(maxlen=KEPT)
        """Answers since the last one that was as expected."""
        self._events: deque[tuple[int, int]] = deque(maxlen=KEPT)
        """The last events: their times, ms, and how far those were ahead of ours, ns."""
        self.counts: Counter[str] = Counter()

    @property
    def measured(self) -> bool:
        """An answer was accepted."""
        return self._rest_clock.known

    @property
    def unconfirmed(self) -> bool:
        """The last answer is not accepted yet: another one is wanted."""
        return bool(self._unconfirmed)

    def rest_now(self, now_ns: int) -> int:
        """Return the time that REST counts its minutes by, ms; 0 while it is not known."""
        return self._rest_clock.now(now_ns)

    def take_answer(self, exchange_ms: int, sent_ns: int, received_ns: int, machine_ms: int) -> None:
        """Take an answer: the exchange's time at some moment between two of ours.

        `machine_ms`: this machine's own time when the answer came.
        """
        middle = (sent_ns + received_ns) // 2
        answer = Answer(exchange_ms * 1_000_000 - middle, (received_ns - sent_ns) // 2, middle)
        if not self.clock.speed:
            # A replay's time may run at any speed: only its first answer is of use, because time stands still then.
            if not self.measured:
                self._accept(answer)
            return
        if self.measured:
            known_error = self._error_ns + (middle - self._at_ns) // DRIFT
            off_ns = abs(self._rest_clock.now(middle) - exchange_ms) * 1_000_000
            if off_ns <= answer.error_ns + known_error + JUMP_MIN_NS:
                self._unconfirmed.clear()
                # A worse measurement than the one before says nothing.
                if answer.error_ns <= known_error:
                    self._accept(answer)
                return
        self._unconfirmed.append(answer)
        self._confirm(machine_ms * 1_000_000 - received_ns)

    def take_event(self, event_time: int, now_ns: int, machine_ms: int) -> None:
        """Take the time of an event that has just come. In a replay it is `move_to` that counts."""
        if not self.clock.speed or (self._events and self._events[-1][0] == event_time):
            return
        ahead_ns, machine_ahead_ns = event_time * 1_000_000 - now_ns, machine_ms * 1_000_000 - now_ns
        self._events.append((event_time, ahead_ns))
        if self._unconfirmed:
            self._confirm(machine_ahead_ns)
        if self.measured:
            return
        if self.clock.known and abs(self.clock.now(now_ns) - event_time) <= OFF_MS:
            # Events are late by their way here, and the least late counts.
            self.clock.at_least(event_time, now_ns)
        elif self._events_agree(ahead_ns) or self._is_likely(ahead_ns, machine_ahead_ns):
            self._set(event_time, now_ns)

    def is_off(self, event_time: int, now_ns: int) -> bool:
        """Say whether an event that has just come is of a time that cannot be: it or our clock is wrong."""
        return self.clock.speed > 0 and self.measured and abs(self.clock.now(now_ns) - event_time) > OFF_MS

    def move_to(self, event_time: int, now_ns: int) -> bool:
        """Take an event's time in a replay, where nothing else moves it; say whether it did."""
        if self.clock.speed:
            return False
        before = self.clock.now(now_ns)
        self.clock.at_least(event_time, now_ns)
        return event_time > before

    def _confirm(self, machine_ahead_ns: int) -> None:
        """Accept the newest answer if enough other measurements agree with it."""
        newest = self._unconfirmed[-1]
        agreeing = [
            answer
            for answer in self._unconfirmed
            if abs(answer.ahead_ns - newest.ahead_ns) <= answer.error_ns + newest.error_ns + JUMP_MIN_NS
        ]
        best = min(agreeing, key=lambda answer: answer.error_ns)
        if len(agreeing) >= ANSWERS_MIN and (
            self._events_agree(best.ahead_ns) or self._is_likely(best.ahead_ns, machine_ahead_ns)
        ):
            self._accept(best)

    def _events_agree(self, ahead_ns: int) -> bool:
        return sum(abs(event - ahead_ns) <= OFF_MS * 1_000_000 for _, event in self._events) >= EVENTS_MIN

    def _is_likely(self, ahead_ns: int, machine_ahead_ns: int) -> bool:
        """Say whether a first time is near this machine's own, which is not asked once there is a time."""
        return not self.clock.known and abs(ahead_ns - machine_ahead_ns) <= OFF_MS * 1_000_000

    def _accept(self, answer: Answer) -> None:
        exchange_ms = (answer.ahead_ns + answer.at_ns) // 1_000_000
        self._error_ns, self._at_ns = answer.error_ns, answer.at_ns
        self._unconfirmed.clear()
        self._rest_clock.set(exchange_ms, answer.at_ns)
        if self.clock.speed or not self.clock.known:
            self._set(exchange_ms, answer.at_ns)

    def _set(self, exchange_ms: int, at_ns: int) -> None:
        if self.clock.known and abs(self.clock.now(at_ns) - exchange_ms) > OFF_MS:
            self.counts["jumps of the exchange's clock"] += 1
        self.clock.set(exchange_ms, at_ns)
