"""What the exchange's protocol needs of a market, generated or replayed, and nothing of how it comes about."""

from collections.abc import Container, Iterable, Iterator
from typing import Protocol

from services.simulator.frames import Chunk
from services.simulator.rows import DayStats, Instrument, Rows
from services.simulator.writing import AggChunk

Leaving = Chunk | AggChunk
"""What leaves the exchange together."""


class TooOld(ValueError):
    """Asked for trades from before what the exchange looks back on."""


class Market(Protocol):
    now: int
    """Exchange time, ms: whatever was to leave the exchange until then has left it."""
    started: int
    """Exchange time at the start of the simulator."""
    trades: int
    """Single trades that left the exchange since the start; aggregates, where a recording holds only those."""

    @property
    def ended(self) -> bool: ...

    def instruments(self) -> list[Instrument]: ...

    def find(self, symbol: str) -> Instrument | None: ...

    def status(self, instrument: Instrument) -> str: ...

    def first_time(self, instrument: Instrument) -> int:
        """Return the time before which the symbol has no klines."""

    def klines(self, instrument: Instrument, interval: str, start: int, until: int) -> Rows:
        """Return the official klines, KLINE_ROW[n] ascending, that end after `start` and open until `until`."""

    def agg_trades(
        self, instrument: Instrument, from_id: int | None, start: int | None, end: int | None, limit: int
    ) -> Rows:
        """Return AGG_ROW[n], ascending: the first ones from an id or a time on, else the last. Raises TooOld."""

    def single_trades(self, instrument: Instrument, from_id: int | None, limit: int) -> Rows:
        """Return executed trades, TRADE_ROW[n] ascending: the first from an id on, else the last. Raises TooOld."""

    def day_stats(self) -> list[DayStats]: ...

    def trades_since(self, instrument: Instrument, kind: str, since: int) -> Iterator[Rows]:
        """Yield all that left on a symbol's stream and happened at `since` or later. `kind`: aggTrade or trade."""

    def last_ids(self) -> dict[str, dict[str, int]]:
        """Return the last id that left on each symbol's streams: {symbol: {"aggTrade": id, "trade": id}}."""

    def follow(self, wanted: Iterable[str]) -> None:
        """Take note of which streams have subscribers from here on."""

    def advance(self, now: int, wanted: Container[str]) -> list[Leaving]:
        """Go on to `now` and return what left the exchange on the streams that are wanted."""

    def ticker(self) -> Chunk | None:
        """Return `!miniTicker@arr`: whatever changed since the last one."""
