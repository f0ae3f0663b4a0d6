"""Announce every symbol that the engine does not know, with its history, a few at a time.

Decides how many are fetched at once and how long the rest will take. Which symbol is next is decided by symbols.py,
what is asked of the exchange by kline_history.py. A crash here costs nothing: the engine says again what it knows.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date, timedelta

from msgspec.structs import replace

from services.ingest.binance.messages import Malformed
from services.ingest.kline_history import KlineHistory
from services.ingest.rate_limit import WeightBudget
from services.ingest.rest import RestError
from services.ingest.symbols import Symbols
from services.ingest.throttled_log import ThrottledLog
from shared.interval import INTERVAL_NAMES
from shared.wire import AddSymbol

UNDER_WAY_MAX = 4
"""Symbols whose history is fetched at once: enough to keep REST busy, and few enough that the first are done soon."""
RETRY_S = 10.0
EPOCH = date(1970, 1, 1)

log = logging.getLogger(__name__)


class Announcer:
    def __init__(
        self,
        symbols: Symbols,
        history: KlineHistory,
        weight_budget: WeightBudget,
        throttled_log: ThrottledLog,
        rows: int,
        symbol_weight: int,
        first_days: Mapping[str, date],
        rest_now: Callable[[], int],
        send: Callable[[AddSymbol], None],
    ) -> None:
        """Announce with up to `rows` klines an interval, which costs a weight of `symbol_weight` a symbol.

        `first_days`: where 3d klines count from, of symbols that have none yet.
        """
        self._symbols = symbols
        self._history = history
        self._weight_budget = weight_budget
        self._throttled_log = throttled_log
        self._rows = rows
        self._symbol_weight = symbol_weight
        self._first_days = first_days
        self._rest_now = rest_now
        self._send = send
        self._under_way = 0
        self._began_at = 0.0
        self._began_with = 0
        self.counts: Counter[str] = Counter()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start as many announcements as may be under way; each one that ends starts the next."""
        if not self._under_way:
            self._began_at = time.monotonic()
            self._began_with = self._symbols.progress.announced
        while self._under_way < UNDER_WAY_MAX:
            symbol = self._symbols.take()
            if symbol is None:
                return
            self._under_way += 1
            tasks.create_task(self._announce(symbol, tasks))

    async def _announce(self, symbol: str, tasks: asyncio.TaskGroup) -> None:
        try:
            event = await self._history.announcement(symbol, self._rows)
        except (RestError, Malformed) as error:
            self._throttled_log.warn("history not fetched", f"{symbol}: {error}")
            tasks.create_task(self._try_again(symbol, tasks))
        else:
            if self._symbols.announced(symbol):
                self.counts["symbols announced"] += 1
                first_day = self._first_days.get(symbol)
                if first_day is not None and not event.grid_3d:
                    event = replace(event, grid_3d=(first_day - EPOCH) // timedelta(milliseconds=1))
                self._send(event)
        self._under_way -= 1
        self.start(tasks)

    async def _try_again(self, symbol: str, tasks: asyncio.TaskGroup) -> None:
        await asyncio.sleep(RETRY_S)
        self._symbols.failed(symbol)
        self.start(tasks)

    def time_left_ms(self) -> int:
        """Return how long the rest will take: by its weight, or by the pace so far if that is longer."""
        announced, to_announce = self._symbols.progress
        left = to_announce - announced
        if left <= 0:
            return 0
        by_budget = self._weight_budget.estimate_ms(left * self._symbol_weight, self._rest_now())
        done = announced - self._began_with
        elapsed = time.monotonic() - self._began_at
        return max(by_budget, int(elapsed * 1000 / done * left) if done > 0 else 0)

    def log_progress(self) -> None:
        announced, to_announce = self._symbols.progress
        log.info("history: %d of %d symbols, %d s left", announced, to_announce, round(self.time_left_ms() / 1000))


def symbol_weight(kline_weight: int) -> int:
    """Return the weight of a symbol's history."""
    return kline_weight * len(INTERVAL_NAMES)
