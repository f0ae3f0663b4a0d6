"""The engine alone: decoded batches of trades into the rows of all intervals.

The engine makes its rows when somebody looks. Both ends are measured: somebody looks after every batch, as when all
topics are watched, or nobody does until the end.
"""

import time

import numpy as np
from numpy.typing import NDArray

from bench.spread import spread
from services.engine.book import lay_out, set_calendars, settle
from services.engine.engine import KlineEngine
from services.engine.kernel import apply_trades
from shared.compiled import fixed
from shared.config import Engine as EngineConfig
from shared.interval import MINUTE_MS
from shared.kline import TRADE
from shared.wire import AddSymbol, FeedState, Instrument, Restored, Trades, pack_instruments, trade_rows

NOW = 1_790_000_000_000 // MINUTE_MS * MINUTE_MS
TRADES = 200_000
RUNS = 5


def run(symbols: int, batch: int, watched: bool) -> dict[str, float]:
    """Return ns a trade: the median of the runs and their extremes. `watched`: all rows are made after each batch."""
    batches = batches_of(symbols, batch)
    costs = sorted(cost_of(symbols, batches, watched) for _ in range(RUNS))
    return spread(costs)


def began(symbols: int) -> KlineEngine:
    """Return an engine that knows so many symbols and no trade."""
    engine = KlineEngine(EngineConfig(max_symbols=symbols))
    engine.apply(FeedState(1, True, 0, NOW + MINUTE_MS // 2, 0), 0)
    engine.apply(Restored(0, [], b"", True, 0), 0)
    for symbol in range(symbols):
        engine.apply(AddSymbol(f"S{symbol}", 2, 3, "", [], NOW, NOW), 0)
    return engine


def cost_of(symbols: int, batches: list[Trades], watched: bool) -> float:
    """Return ns a trade of one run, at the end of which all rows are made."""
    engine = began(symbols)
    begin = time.perf_counter_ns()
    for each in batches:
        engine.apply(each, 0)
        if watched:
            settle(engine.book, False)
    settle(engine.book, False)
    elapsed = time.perf_counter_ns() - begin
    applied = int(engine.book.counters[0]["applied"])
    if applied != TRADES:
        raise RuntimeError(f"{applied} of {TRADES} trades were applied")
    return elapsed / TRADES


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
    places, factors = np.arange(symbols), np.ones(symbols, np.int64)
    first = np.zeros(symbols, TRADE)
    first["symbol"], first["time"], first["price"], first["quantity"], first["trade_count"] = places, NOW + 1, 1, 1, 1
    rows = [trade_rows(batch.rows).copy() for batch in batches]
    apply = fixed(apply_trades, book, first, 0, places, factors, factors, 0)

    def fold(trades: NDArray[np.void]) -> None:
        apply(book, trades, 0, places, factors, factors, NOW + MINUTE_MS)
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


def batches_of(symbols: int, batch: int) -> list[Trades]:
    """Return trades whose symbols are as unevenly busy as a market's (Zipf), ids without holes."""
    source = np.random.default_rng(1)
    weights = 1.0 / np.arange(1, symbols + 1)
    chosen = source.choice(symbols, TRADES, p=weights / weights.sum())
    order = np.argsort(chosen, kind="stable")
    counts = np.bincount(chosen, minlength=symbols)
    ids = np.empty(TRADES, np.int64)
    ids[order] = np.arange(TRADES) - np.repeat(np.cumsum(counts) - counts, counts)
    instruments = pack_instruments([Instrument(f"S{symbol}", 2, 3) for symbol in range(symbols)])
    answer = []
    for begin in range(0, TRADES, batch):
        own = slice(begin, begin + batch)
        rows = np.zeros(len(ids[own]), TRADE)
        rows["symbol"], rows["id"], rows["time"] = chosen[own], ids[own], NOW + 1 + begin * 30_000 // TRADES
        rows["price"] = 5_000 + source.integers(0, 100, len(rows))
        rows["quantity"], rows["trade_count"] = source.integers(1, 100, len(rows)), 1
        answer.append(Trades(instruments, rows.tobytes(), NOW))
    return answer
