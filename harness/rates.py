"""How many trades/s the engine takes without its sockets, and another tool on the same trades.

The engine makes its rows when somebody looks; whoever measures says whether somebody does after each batch.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.engine.book import settle
from services.engine.engine import KlineEngine
from shared.config import EngineConfig
from shared.interval import DAY_MS, INTERVALS, MINUTE_MS
from shared.kline import TRADE
from shared.wire import AddSymbol, FeedState, Instrument, Restored, Trades, instruments_of, pack_instruments, trade_rows

Columns = dict[str, NDArray[np.int64]]
Fold = Callable[[list[Columns], list[int]], int]
"""Makes klines of all batches for intervals of so many ms; returns how many trades it has taken."""

NOW = 1_790_000_000_000 // MINUTE_MS * MINUTE_MS
TRADES = 200_000
RUNS = 5


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


def began(symbols: int) -> KlineEngine:
    """Return an engine that knows so many symbols and no trade."""
    engine = KlineEngine(EngineConfig(symbols_max=symbols))
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


class Rate(NamedTuple):
    """Trades/s: the median of the runs and their extremes. The first run warms up and does not count."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median / 1e3:,.0f} ({self.least / 1e3:,.0f} to {self.most / 1e3:,.0f})"


def _rate(runs: list[float]) -> Rate:
    return Rate(round(median(runs[1:])), round(min(runs[1:])), round(max(runs[1:])))


def rate_of(fold: Fold, batches: list[Columns], lengths: list[int]) -> Rate:
    """Measure a contender. Raises RuntimeError if it loses trades."""
    rates = []
    for _ in range(RUNS + 1):
        begin = time.perf_counter_ns()
        taken = fold(batches, lengths)
        elapsed = getattr(fold, "elapsed", 0) or time.perf_counter_ns() - begin
        if taken != sum(len(batch["time"]) for batch in batches):
            raise RuntimeError(f"{fold.__name__} took {taken} trades")
        rates.append(taken / elapsed * 1e9)
    return _rate(rates)


def rate_of_klagg(symbols: int, batches: list[Trades], watched: bool) -> Rate:
    """Measure the engine; `watched`: with all rows made after each batch, its worst case."""
    return _rate([1e9 / cost_of(symbols, batches, watched) for _ in range(RUNS + 1)])


def columns_of(batch: Trades) -> Columns:
    """Return a batch as columns of int64, with what every contender needs already multiplied."""
    rows = trade_rows(batch.rows)
    names = np.array([int(instrument.symbol[1:]) for instrument in instruments_of(batch)], np.int64)
    buys = rows["quantity"] * (rows["buyer_is_maker"] == 0)
    return {
        "symbol": names[rows["symbol"]],
        "time": rows["time"].copy(),
        "price": rows["price"].copy(),
        "quantity": rows["quantity"].copy(),
        "quote": rows["price"] * rows["quantity"],
        "taker": buys,
        "taker_quote": buys * rows["price"],
    }


def fold_polars(batches: list[Columns], lengths: list[int]) -> int:
    import polars

    column = polars.col
    fields = [
        column("price").first().alias("open"),
        column("price").max().alias("high"),
        column("price").min().alias("low"),
        column("price").last().alias("close"),
        column("quantity").sum(),
        column("quote").sum(),
        polars.len().alias("count"),
        column("taker").sum(),
        column("taker_quote").sum(),
    ]
    taken = 0
    for batch in batches:
        frame = polars.DataFrame(batch)
        for length in lengths:
            rows = frame.group_by("symbol", column("time") // length).agg(fields)
        taken += int(rows["count"].sum())
    return taken


def lengths_of(count: int) -> list[int]:
    return [interval.length_ms or 30 * DAY_MS for interval in INTERVALS[:count]]
