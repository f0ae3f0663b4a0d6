"""How much may be asked of the exchange, and when: the request weight of a minute, and bans.

The exchange counts weight in fixed minutes of UTC, and answers excess with a ban. An address that goes on asking is
banned for longer, so that a ban is kept in a file and outlives the process. Nothing here sends, waits or reads a clock.
`WeightBudget` is pure and gets the exchange's time; `Ban` gets this machine's, and reads and writes its file.

A crash while the ban is written leaves the file as it was before.
"""

import json
from pathlib import Path

MINUTE_MS = 60_000
GUARD_MS = 1_000
"""The exchange's clock is only known to within some of it: a minute counts as begun this much after its second 0, and
what was asked since this much before it may be counted in either minute."""
RESERVE = 0.1
"""The part of the budget that only repairs may use: a gap must not wait a minute because of the history of symbols."""
STOP_MAX_MS = 3 * 24 * 60 * MINUTE_MS
"""The longest ban there is; a time beyond it is a mistake."""


class WeightBudget:
    def __init__(self, limit: int, share: float) -> None:
        """Spend at most `share` of `limit`, the weight a minute that the exchange allows to this address."""
        self._share = share
        self.per_minute = 1
        self.stopped_until = 0
        """Nothing may be asked before this time."""
        self._minute = 0
        self._used = 0
        self._in_flight = 0
        self._early = 0
        """Spent so late in the minute that the exchange may count it in the next one."""
        self.set_limit(limit)

    def set_limit(self, limit: int) -> None:
        self.per_minute = max(1, int(limit * self._share))

    def used(self, now: int) -> int:
        """Return the weight spent in the minute of `now`."""
        self._enter_minute(now)
        return self._used

    def wait_ms(self, weight: int, now: int, repair: bool = False) -> int:
        """Return how long a request of this weight has to wait; 0: it may go, and `start` must be called at once."""
        if now < self.stopped_until:
            return self.stopped_until - now
        self._enter_minute(now)
        budget = self.per_minute if repair else max(1, int(self.per_minute * (1 - RESERVE)))
        # A request heavier than the whole budget goes alone, or it would wait for ever.
        if self._used + weight <= budget or self._used == 0:
            return 0
        return (self._minute + 1) * MINUTE_MS + GUARD_MS - now

    def start(self, weight: int, now: int) -> int:
        """Charge a request; return the minute, which `finish` needs."""
        self._enter_minute(now)
        self._used += weight
        self._in_flight += weight
        if now >= (self._minute + 1) * MINUTE_MS - GUARD_MS:
            self._early += weight
        return self._minute

    def finish(self, weight: int, minute: int, now: int, used: int | None = None) -> None:
        """Take the end of a request; `used` is what was spent in the minute by all clients, as the exchange counts it.

        It only ever raises our count, and only in the minute that the request was charged to: an answer may be older
        than others that are under way.
        """
        self._enter_minute(now)
        self._in_flight -= weight
        if used is not None and minute == self._minute:
            self._used = max(self._used, used + self._in_flight)

    def stop(self, until: int, now: int) -> None:
        """Ask nothing before `until`; a stop is only ever extended."""
        self.stopped_until = max(self.stopped_until, min(until, now + STOP_MAX_MS))

    def estimate_ms(self, weight: int, now: int) -> int:
        """Return how long it takes to spend `weight`, by the budgets of the minutes alone."""
        wait = max(0, self.stopped_until - now)
        self._enter_minute(now + wait)
        budget = max(1, int(self.per_minute * (1 - RESERVE)))
        beyond = weight - max(0, budget - self._used)
        if beyond <= 0:
            return wait
        to_next = (self._minute + 1) * MINUTE_MS + GUARD_MS - (now + wait)
        return wait + to_next + (beyond - 1) // budget * MINUTE_MS

    def _enter_minute(self, now: int) -> None:
        minute = (now - GUARD_MS) // MINUTE_MS
        # A simulated exchange may set its time back, and its count with it; one minute back is only jitter.
        if minute > self._minute or minute < self._minute - 1:
            # What is in flight may be counted in either minute.
            self._used = self._in_flight + (self._early if minute == self._minute + 1 else 0)
            self._minute = minute
            self._early = 0


class Ban:
    def __init__(self, path: Path, rest: str) -> None:
        """Keep in `path` until when `rest`, a base URL, may not be asked."""
        self._path = path
        self._rest = rest
        self._saved = self._until = read_ban(path, rest)

    @property
    def until(self) -> int:
        """Until when nothing may be asked, ms since 1970; 0 if there is no ban."""
        return self._until

    def extend(self, until: int) -> None:
        """Nothing may be asked before `until`, ms since 1970."""
        self._until = max(self._until, until)

    def save(self, now: int) -> None:
        """Write a ban that is not in the file yet. Raises OSError: the ban is obeyed all the same; try again."""
        if self._until > max(self._saved, now):
            write_ban(self._path, self._rest, self._until)
            self._saved = self._until


def write_ban(path: Path, rest: str, until: int) -> None:
    """Write that `rest`, a base URL, may not be asked before `until`, ms since 1970. Raises OSError."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"rest": rest, "until": until}), encoding="utf-8")
    temporary.replace(path)


def read_ban(path: Path, rest: str) -> int:
    """Return until when `rest` may not be asked, ms since 1970; 0 if the file says nothing about it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return int(content["until"]) if content["rest"] == rest else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
