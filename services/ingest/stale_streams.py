"""Which streams bring nothing although their symbols trade: what is acknowledged is not always delivered.

The ticker of all symbols has the last price of each. A stream is *stale* if it brings nothing while the price of its
symbol changes again and again. Pure: time comes in as milliseconds of any clock.
"""

import msgspec

CHANGES_MIN = 3
"""Price changes in the ticker before a stream is stale: some trades are in no stream of aggregates (protocol §2.1)."""
TIMEOUT_MAX_MS = 3_600_000


class _LastSeen(msgspec.Struct):
    price: str
    trade: int
    """The last trade of the stream, ..."""
    at: int
    """... and when it was first seen here."""
    changes: int = 0
    """How often the price has changed since."""


class StaleStreams:
    def __init__(self, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._current_ms = timeout_ms
        """The timeout that counts. It doubles while streams are found again and again: to reconnect does not help."""
        self._found_at = -TIMEOUT_MAX_MS
        self._last_seen: dict[str, _LastSeen] = {}

    def stale(self, prices: dict[str, str], trades: dict[str, int], now: int) -> list[str]:
        """Take the ticker's last prices and the streams' last trades; return the symbols whose streams are stale.

        `trades`: for each symbol whose stream was acknowledged, a number that changes with every trade. A stream that
        is returned has the whole timeout again.
        """
        found = []
        for symbol, price in prices.items():
            if symbol not in trades:
                self._last_seen.pop(symbol, None)
                continue
            last = self._last_seen.get(symbol)
            if last is None or last.trade != trades[symbol]:
                self._last_seen[symbol] = _LastSeen(price, trades[symbol], now)
                continue
            if price != last.price:
                last.price = price
                last.changes += 1
            if last.changes >= CHANGES_MIN and now - last.at >= self._current_ms:
                found.append(symbol)
        if found:
            again = now - self._found_at <= 2 * self._current_ms
            self._current_ms = min(self._current_ms * 2, TIMEOUT_MAX_MS) if again else self._timeout_ms
            self._found_at = now
            for symbol in found:
                del self._last_seen[symbol]
        return found
