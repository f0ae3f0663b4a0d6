"""Who is not asked again at once: symbols whose trades REST fails to answer.

Decides when a symbol that failed is tried again, and how often. What failed is told by whoever asks; time comes in as
an argument, monotonic s.

One page of trades costs 20 of 2,400 a minute. A symbol that fails costs one page a minute in the end; where many fail
in a row and none succeeds, all of them together do.
"""

FIRST_S, LONGEST_S = 2.0, 60.0
FAILING_MAX = 8
"""Failures in a row, of whichever symbols, that may be these symbols' own."""
KNOWN_MAX = 10_000


class Patience:
    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._again_at: dict[str, float] = {}
        self._in_a_row = 0
        self._all_again_at = 0.0

    def may_ask(self, symbol: str, now_s: float) -> bool:
        return now_s >= max(self._again_at.get(symbol, 0.0), self._all_again_at)

    def has_failed(self, symbol: str) -> bool:
        """Say whether the last question about a symbol failed: it is tried once, and not again and again."""
        return symbol in self._failures or self._in_a_row >= FAILING_MAX

    def failed(self, symbol: str, now_s: float) -> None:
        if len(self._failures) >= KNOWN_MAX:
            self._failures.clear()
            self._again_at.clear()
        failures = self._failures[symbol] = self._failures.get(symbol, 0) + 1
        self._again_at[symbol] = now_s + _wait_s(failures)
        self._in_a_row += 1
        if self._in_a_row >= FAILING_MAX:
            self._all_again_at = now_s + _wait_s(self._in_a_row - FAILING_MAX + 1)

    def answered(self, symbol: str) -> None:
        self._failures.pop(symbol, None)
        self._again_at.pop(symbol, None)
        self._in_a_row, self._all_again_at = 0, 0.0


def _wait_s(failures: int) -> float:
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 10))
