"""The engine alone: decoded batches of trades into the rows of all intervals.

The engine makes its rows when somebody looks. Both ends are measured: somebody looks after every batch, as when all
topics are watched, or nobody does until the end.
"""

import time

import numpy as np
from numpy.typing import NDArray

from harness.figures import spread
from harness.rates import NOW, TRADES, batches_of, cost_of
from services.engine.book import lay_out, set_calendars, settle
from services.engine.kernel import apply_trades
from shared.compiled import fixed
from shared.config import EngineConfig
from shared.interval import MINUTE_MS
from shared.kline import TRADE
from shared.wire import Trades, trade_rows

RUNS = 5


def run(symbols: int, batch: int, watched: bool) -> dict[str, float]:
    """Return ns a trade: the median of the runs and their extremes. `watched`: all rows are made after each batch."""
    batches = batches_of(symbols, batch)
    costs = sorted(cost_of(symbols, batches, watched) for _ in range(RUNS))
    return spread(costs)


def growth(intervals: int, symbols: int, watched: bool) -> dict[str, float]:
    """Return ns a trade of the kernel alone, in batches of 1,000, for so many intervals and symbols."""
    batches = batches_of(symbols, 1_000)
    costs = sorted(_kernel_cost(intervals, symbols, batches, watched) for _ in range(RUNS))
    return spread(costs)


def _kernel_cost(intervals: int, symbols: int, batches: list[Trades], watched: bool) -> float:
    """Return ns a trade, once every symbol has its rows."""
    book, _ = lay_out(symbols, EngineConfig().window, intervals)
    book.symbols["active"], book.symbols["last_id"] = 1, -1
    set_calendars(book, NOW + MINUTE_MS // 2)
    indices, factors = np.arange(symbols), np.ones(symbols, np.int64)
    first = np.zeros(symbols, TRADE)
    first["symbol"], first["time"], first["price"], first["quantity"], first["trade_count"] = indices, NOW + 1, 1, 1, 1
    rows = [trade_rows(batch.rows).copy() for batch in batches]
    apply = fixed(apply_trades, book, first, 0, indices, factors, factors, 0, 0)

    def fold(trades: NDArray[np.void]) -> None:
        apply(book, trades, 0, indices, factors, factors, NOW + MINUTE_MS, 0)
        if watched:
            settle(book, False)

    fold(first)
    settle(book, False)
    for each in rows:
        each["id"] += 1
    begin = time.perf_counter_ns()
    for each in rows:
        fold(each)
    settle(book, False)
    elapsed = time.perf_counter_ns() - begin
    if book.rows["trade_count"].sum() != (TRADES + symbols) * intervals:
        raise RuntimeError("not all trades are in all rows")
    return elapsed / TRADES
