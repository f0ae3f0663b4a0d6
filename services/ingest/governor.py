"""How much may be asked of the exchange, and when.

The exchange counts weight in fixed minutes of UTC and answers excess with a ban. Pure: time comes in as the exchange's
milliseconds, and nothing here sends, waits or reads a clock.
"""

MINUTE_MS = 60_000
GUARD_MS = 1_000
"""The exchange's clock is only known to within some of it: a minute counts as begun this much after its second 0, and
what was asked since this much before it may be counted in either minute."""
RESERVE = 0.1
"""The part of the budget that only repairs may use: a gap must not wait a minute for somebody's history."""
STOP_MAX_MS = 3 * 24 * 60 * MINUTE_MS
"""The longest ban there is; a time beyond it is a mistake."""


class Governor:
    def __init__(self, limit: int, share: float) -> None:
        """Spend at most `share` of `limit`, the weight a minute that the exchange allows to this address."""
        self._share = share
        self.budget = 1
        self.stopped_until = 0
        """Nothing may be asked before this time."""
        self._minute = 0
        self._used = 0
        self._in_flight = 0
        self._early = 0
        """Spent so late in the minute that the exchange may count it in the next one."""
        self.set_limit(limit)

    def set_limit(self, limit: int) -> None:
        self.budget = max(1, int(limit * self._share))

    def used(self, now: int) -> int:
        """Return the weight spent in the minute of `now`."""
        self._turn(now)
        return self._used

    def wait_ms(self, weight: int, now: int, repair: bool = False) -> int:
        """Return how long a request of this weight has to wait; 0: it may go, and `start` must be called at once."""
        if now < self.stopped_until:
            return self.stopped_until - now
        self._turn(now)
        budget = self.budget if repair else max(1, int(self.budget * (1 - RESERVE)))
        # A request heavier than the whole budget goes alone, or it would wait for ever.
        if self._used + weight <= budget or self._used == 0:
            return 0
        return (self._minute + 1) * MINUTE_MS + GUARD_MS - now

    def start(self, weight: int, now: int) -> int:
        """Charge a request; return the minute, which `finish` wants back."""
        self._turn(now)
        self._used += weight
        self._in_flight += weight
        if now >= (self._minute + 1) * MINUTE_MS - GUARD_MS:
            self._early += weight
        return self._minute

    def finish(self, weight: int, minute: int, now: int, used: int | None = None) -> None:
        """Take an answer; `used` is what the exchange says was spent in the minute, by whomever.

        It only ever raises the count, and only in the minute that the request was charged to: an answer may be older
        than the others that are on their way.
        """
        self._turn(now)
        self._in_flight -= weight
        if used is not None and minute == self._minute:
            self._used = max(self._used, used + self._in_flight)

    def stop(self, until: int, now: int) -> None:
        """Ask nothing before `until`; a stop is only ever extended."""
        self.stopped_until = max(self.stopped_until, min(until, now + STOP_MAX_MS))

    def estimate_ms(self, weight: int, now: int) -> int:
        """Return how long the minutes' budgets alone make the spending of `weight` last."""
        wait = max(0, self.stopped_until - now)
        self._turn(now + wait)
        budget = max(1, int(self.budget * (1 - RESERVE)))
        beyond = weight - max(0, budget - self._used)
        if beyond <= 0:
            return wait
        to_next = (self._minute + 1) * MINUTE_MS + GUARD_MS - (now + wait)
        return wait + to_next + (beyond - 1) // budget * MINUTE_MS

    def _turn(self, now: int) -> None:
        minute = (now - GUARD_MS) // MINUTE_MS
        # A simulated exchange may begin its time anew, and its count with it; one minute back is only jitter.
        if minute > self._minute or minute < self._minute - 1:
            # What is on its way may be counted in either minute.
            self._used = self._in_flight + (self._early if minute == self._minute + 1 else 0)
            self._minute = minute
            self._early = 0
