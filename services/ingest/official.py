"""The exchange's own closed minutes, for a command that compares: no websocket, no engine, no file.

Decides how they are asked for: by REST, in pages, within the budget that the exchange gives to this address, of which a
running ingest spends its part (the exchange's answers say how much). A ban that ingest knows of is kept.
"""

import time
from typing import NamedTuple

import aiohttp
import numpy as np

from services.ingest import ban
from services.ingest.binance import read_klines
from services.ingest.governor import Governor
from services.ingest.klines import kline_rows, parse
from services.ingest.rest import TIMEOUT_S, Priority, Rest
from services.ingest.scan import plain_klines
from services.ingest.venue import venue_of
from shared.arrays import Rows
from shared.config import Config
from shared.interval import MINUTE_MS
from shared.kline import KLINE

PAGE_MINUTES = 1_000
"""Minutes of a question."""


class Minutes(NamedTuple):
    """Which minutes are asked for: of a symbol, from one open time to another, and its decimals."""

    symbol: str
    first: int
    last: int
    price_decimals: int
    quantity_decimals: int


class Official:
    """The exchange of a configuration, asked for klines alone."""

    def __init__(self, config: Config, session: aiohttp.ClientSession) -> None:
        self._venue = venue_of(config)
        governor = Governor(self._venue.weight_limit, config.exchange.weight_share)
        banned = ban.recall(config.data_path / "ban", self._venue.rest)
        if banned > _now():
            governor.stop(banned, _now())
        # Whoever is banned remembers it: ingest, which asks on, is banned as well.
        self._rest = Rest(session, self._venue, governor, _now, lambda _: None)

    async def rows(self, ask: Minutes) -> Rows:
        """Return the exchange's 1m klines, KLINE[n] ascending. Raises RestError, Malformed."""
        parts = [np.zeros(0, KLINE)]
        start = ask.first
        while start <= ask.last:
            limit = min(PAGE_MINUTES, (ask.last - start) // MINUTE_MS + 1)
            request = self._venue.klines(ask.symbol, "1m", limit, start, ask.last)
            answer = await self._rest.get(request, Priority.AUDIT)
            page, _ = parse("1m", plain_klines(answer.body) or read_klines(answer.body))
            rows, _ = kline_rows(page, ask.price_decimals, ask.quantity_decimals)
            parts.append(rows)
            if not len(page.open_times):
                break
            start = int(page.open_times[-1]) + MINUTE_MS
        return np.concatenate(parts)


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, connect=TIMEOUT_S / 3))


def _now() -> int:
    return time.time_ns() // 1_000_000
