"""How often something may happen: so many at once, and so many a second from then on.

Decides who waits for how long. Knows neither what it is nor a clock: `now` is seconds of any steady one.
"""


class Pace:
    def __init__(self, at_once: float, a_second: float) -> None:
        self._at_once = at_once
        self._a_second = a_second
        self._spent_until = float("-inf")
        """When all that was taken so far is made good."""

    def take(self, cost: float, now: float) -> float:
        """Take so much, and return how many seconds to wait before it may be used."""
        self._spent_until = max(self._spent_until, now) + cost / self._a_second
        return max(0.0, self._spent_until - now - self._at_once / self._a_second)
