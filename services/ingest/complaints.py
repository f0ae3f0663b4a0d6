"""What went wrong, counted every time and said now and then: a log tells transitions, not messages."""

import logging
import time
from collections import Counter

SAY_S = 10.0
"""Between two lines of one kind: an outage makes a thousand symbols fail in the same way."""

log = logging.getLogger(__name__)


class Complaints:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._said_at: dict[str, float] = {}

    def note(self, kind: str, text: str) -> None:
        """Count one of a kind, and say it unless one was said just before."""
        self.counts[kind] += 1
        now = time.monotonic()
        if now - self._said_at.get(kind, -SAY_S) >= SAY_S:
            self._said_at[kind] = now
            log.warning("%s: %s (%d since start)", kind, text, self.counts[kind])

    def refuse(self, kind: str, beginning: bytes) -> None:
        """Count something of the exchange's that is refused, and say only the first of its kind."""
        kind = f"refused ({kind})"
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            log.warning("%s, and counted from here on; the first begins %r", kind, bytes(beginning[:200]))
