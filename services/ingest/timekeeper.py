"""The exchange's time, measured again and again; until it is, the ticker's time is better than none.

Decides which measurement counts. Sends nothing itself: whoever asks the exchange hands over the answer's times.
"""

from shared.clock import ExchangeClock

DRIFT = 10_000
"""Our clock runs wrong by less than one part in so many."""
OFF_MS = 3_000
"""How far an event may be from our measurement; a busy stream may be a second late."""
JUMP_MIN_NS = 50_000_000
"""What scheduling alone may add to a measurement."""


class Timekeeper:
    def __init__(self, speed: float) -> None:
        """`speed` of the exchange's time as klagg sees it: 0 in a replay."""
        self.clock = ExchangeClock(speed)
        self._always = ExchangeClock()
        """It always runs for the minutes of REST, whatever a replay makes of time."""
        self._doubt_ns = self._at_ns = 0
        """How wrong the last measurement can be, and when it was made."""

    @property
    def measured(self) -> bool:
        return self._always.known

    def rest_now(self, now_ns: int) -> int:
        """Return the time that REST counts its minutes by, ms; 0 while it is not known."""
        return self._always.now(now_ns)

    def take(self, exchange_ms: int, sent_ns: int, received_ns: int) -> None:
        """Take a measurement: the exchange's time at some moment between two of ours."""
        middle, doubt = (sent_ns + received_ns) // 2, (received_ns - sent_ns) // 2
        known_doubt = self._doubt_ns + (middle - self._at_ns) // DRIFT
        off_ns = abs(self._always.now(middle) - exchange_ms) * 1_000_000
        # A worse measurement than the one before says nothing, unless the exchange's clock has jumped.
        if not self.measured or doubt <= known_doubt or off_ns > doubt + known_doubt + JUMP_MIN_NS:
            self._doubt_ns, self._at_ns = doubt, middle
            self._always.set(exchange_ms, middle)
            if self.clock.speed or not self.clock.known:
                self.clock.set(exchange_ms, middle)

    def is_off(self, event_time: int, now_ns: int) -> bool:
        """Say whether an event that has just come is of a time that cannot be: the exchange's clock has jumped."""
        return self.clock.speed > 0 and self.measured and abs(self.clock.now(now_ns) - event_time) > OFF_MS

    def hear(self, ticker_time: int, now_ns: int) -> None:
        """Take the ticker's time, as long as nothing was measured: it is late by its way, the least of which counts."""
        if self.measured or not self.clock.speed:
            return
        if abs(self.clock.now(now_ns) - ticker_time) > OFF_MS:
            self.clock.set(ticker_time, now_ns)
        else:
            self.clock.at_least(ticker_time, now_ns)

    def move_to(self, event_time: int, now_ns: int) -> bool:
        """Take an event's time in a replay, where nothing else moves it; say whether it did."""
        if self.clock.speed:
            return False
        before = self.clock.now(now_ns)
        self.clock.at_least(event_time, now_ns)
        return event_time > before
