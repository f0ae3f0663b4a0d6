"""Which streams are silent although their symbols trade: what is acknowledged is not always delivered.

The ticker of all symbols tells the last price of each. A symbol whose price changes again and again while its stream
brings nothing is *unheard*. Pure: time comes in as milliseconds of any clock.
"""

import msgspec

CHANGES_MIN = 3
"""Prices that a ticker must have told meanwhile: some trades are in no stream of aggregates (protocol §2.1)."""
UNHEARD_MAX_MS = 3_600_000


class _Told(msgspec.Struct):
    price: str
    heard: int
    """The stream's own count when it brought something last, ..."""
    since: int
    """... and when that was."""
    changes: int = 0


class Hearing:
    def __init__(self, patience_ms: int) -> None:
        self._patience_ms = patience_ms
        self._wait_ms = patience_ms
        """Doubled as long as somebody is found again and again: what does not help must not be tried for ever."""
        self._found_at = -UNHEARD_MAX_MS
        self._told: dict[str, _Told] = {}

    def unheard(self, prices: dict[str, str], heard: dict[str, int], now: int) -> list[str]:
        """Take the ticker's last prices and what the streams have brought by now; return who is unheard.

        `heard`: of each symbol whose stream was acknowledged, a number that changes with every trade. Whoever is
        returned has another `patience` to be heard.
        """
        found = []
        for symbol, price in prices.items():
            if symbol not in heard:
                self._told.pop(symbol, None)
                continue
            told = self._told.get(symbol)
            if told is None or told.heard != heard[symbol]:
                self._told[symbol] = _Told(price, heard[symbol], now)
                continue
            if price != told.price:
                told.price = price
                told.changes += 1
            if told.changes >= CHANGES_MIN and now - told.since >= self._wait_ms:
                found.append(symbol)
        if found:
            again = now - self._found_at <= 2 * self._wait_ms
            self._wait_ms = min(self._wait_ms * 2, UNHEARD_MAX_MS) if again else self._patience_ms
            self._found_at = now
            for symbol in found:
                del self._told[symbol]
        return found
