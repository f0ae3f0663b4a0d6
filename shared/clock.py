"""The exchange's time, as far as this machine can know it.

Gets samples of it and times of the machine's monotonic clock; reads no clock itself. With speed 1 it runs between
samples, as the live exchange does. With speed 0 it stands still between them, so that in a replay, at whatever speed,
only the recording's events move klagg's time.
"""


class ExchangeClock:
    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._sample_ms = 0
        self._sample_ns = 0

    @property
    def known(self) -> bool:
        return self._sample_ms > 0

    def set(self, exchange_ms: int, monotonic_ns: int) -> None:
        """Take a measurement of the exchange's time, even if it moves the clock back."""
        self._sample_ms = exchange_ms
        self._sample_ns = monotonic_ns

    def at_least(self, exchange_ms: int, monotonic_ns: int) -> None:
        """Take an event's time: the exchange's time is this or later."""
        if exchange_ms > self.now(monotonic_ns):
            self.set(exchange_ms, monotonic_ns)

    def now(self, monotonic_ns: int) -> int:
        """Return the exchange's time, ms; 0 while it is not known."""
        if not self._sample_ms:
            return 0
        return self._sample_ms + int((monotonic_ns - self._sample_ns) * self.speed) // 1_000_000

    def wait_ms(self, exchange_ms: int, monotonic_ns: int) -> int | None:
        """Return how long until the exchange's time is `exchange_ms`; None if only an event can move it there."""
        if not self.known or self.speed == 0:
            return None
        return max(0, int((exchange_ms - self.now(monotonic_ns)) / self.speed))
