"""Warnings that repeat: every one is counted, and one of a kind is logged now and then."""

import logging
import time
from collections import Counter

INTERVAL_S = 10.0
"""Between two lines of one kind: an outage makes a thousand symbols fail in the same way."""

log = logging.getLogger(__name__)


class ThrottledLog:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}

    def warn(self, kind: str, text: str) -> None:
        """Count a warning, and log it unless one of its kind was logged less than `INTERVAL_S` ago."""
        self.counts[kind] += 1
        now = time.monotonic()
        if now - self._logged_at.get(kind, -INTERVAL_S) >= INTERVAL_S:
            self._logged_at[kind] = now
            log.warning("%s: %s (%d since start)", kind, text, self.counts[kind])

    def refuse(self, kind: str, content: bytes) -> None:
        """Count a message that is refused, and log how the first of its kind begins."""
        kind = f"refused ({kind})"
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            log.warning("%s, and counted from here on; the first begins %r", kind, bytes(content[:200]))
