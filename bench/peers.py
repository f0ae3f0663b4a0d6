"""klagg's engine beside what others would use, on the same trades in the same run.

    make bench-peers

Each contender gets batches of trades as columns of numbers and makes klines of them, all fields, for 1, 6 and 15
intervals. klagg keeps its rows, checks ids and marks what has changed while it is at it, always for 15 intervals;
batch tools only group what they are given, and would have to merge their results afterwards. Contenders that are not
installed are named. Weeks and months are 7 and 30 days for everybody else: their calendars would cost them more.
"""

import argparse
import importlib.util
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from harness.rates import Columns, Fold, batches_of, columns_of, fold_polars, lengths_of, rate_of, rate_of_klagg
from shared.interval import DAY_MS

SLOW_TRADES = 20_000
"""For contenders that take trades one by one."""


def fold_duckdb(batches: list[Columns], lengths: list[int]) -> int:
    import duckdb

    connection = duckdb.connect()
    taken = 0
    for batch in batches:
        connection.register("trades", batch)
        for length in lengths:
            rows = connection.execute(
                f"SELECT symbol, time // {length} AS bucket, first(price), max(price), min(price), last(price),"
                " sum(quantity), sum(quote), count(*) AS count, sum(taker), sum(taker_quote)"
                " FROM trades GROUP BY symbol, bucket"
            ).fetchnumpy()
        taken += int(rows["count"].sum())
        connection.unregister("trades")
    return taken


def fold_pandas(batches: list[Columns], lengths: list[int]) -> int:
    import pandas

    taken = 0
    for batch in batches:
        frame = pandas.DataFrame(batch)
        for length in lengths:
            rows = frame.groupby([frame["symbol"], frame["time"] // length], sort=False).agg(
                open=("price", "first"),
                high=("price", "max"),
                low=("price", "min"),
                close=("price", "last"),
                volume=("quantity", "sum"),
                quote=("quote", "sum"),
                count=("price", "size"),
                taker=("taker", "sum"),
                taker_quote=("taker_quote", "sum"),
            )
        taken += int(rows["count"].sum())
    return taken


def fold_dict(batches: list[Columns], lengths: list[int]) -> int:
    rows: dict[tuple[int, int, int], list[int]] = {}
    taken = 0
    for batch in batches:
        for symbol, at, price, quantity, quote, taker, taker_quote in zip(
            *(column.tolist() for column in batch.values()), strict=True
        ):
            taken += 1
            for length in lengths:
                key = (symbol, length, at // length)
                row = rows.get(key)
                if row is None:
                    rows[key] = [price, price, price, price, quantity, quote, 1, taker, taker_quote]
                    continue
                row[1] = max(row[1], price)
                row[2] = min(row[2], price)
                row[3] = price
                row[4] += quantity
                row[5] += quote
                row[6] += 1
                row[7] += taker
                row[8] += taker_quote
    return taken


def fold_nautilus(batches: list[Columns], lengths: list[int]) -> int:
    """TimeBarAggregator, one a symbol and interval; it has no taker's part, and takes made ticks."""
    from nautilus_trader.common.component import TestClock
    from nautilus_trader.data.aggregation import TimeBarAggregator
    from nautilus_trader.model.data import BarSpecification, BarType, TradeTick
    from nautilus_trader.model.enums import AggressorSide, BarAggregation, PriceType
    from nautilus_trader.model.identifiers import TradeId
    from nautilus_trader.test_kit.providers import TestInstrumentProvider

    instrument = TestInstrumentProvider.btcusdt_binance()
    units = ((DAY_MS, BarAggregation.DAY), (3_600_000, BarAggregation.HOUR), (60_000, BarAggregation.MINUTE))
    aggregators: dict[int, list[Any]] = {}
    ticks = []
    for batch in batches:
        for symbol, at, price, quantity in zip(
            *(batch[n].tolist() for n in ("symbol", "time", "price", "quantity")), strict=True
        ):
            if symbol not in aggregators:
                aggregators[symbol] = made = []
                for length in lengths:
                    size, unit = next((size, unit) for size, unit in units if length % size == 0)
                    # It knows no 3 days, and single days are as good here as weeks and months.
                    step = 1 if size == DAY_MS else length // size
                    kind = BarType(instrument.id, BarSpecification(step, unit, PriceType.LAST))
                    made.append(TimeBarAggregator(instrument, kind, lambda _: None, TestClock()))
            tick = TradeTick(
                instrument.id,
                instrument.make_price(price / 100),
                instrument.make_qty(quantity / 1000),
                AggressorSide.BUYER,
                TradeId("1"),
                at * 1_000_000,
                at * 1_000_000,
            )
            ticks.append((aggregators[symbol], tick))
    began_ns = time.perf_counter_ns()
    for each, tick in ticks:
        for aggregator in each:
            aggregator.handle_trade_tick(tick)
    fold_nautilus.elapsed = time.perf_counter_ns() - began_ns  # type: ignore[attr-defined]
    return len(ticks)


def fold_cryptofeed(batches: list[Columns], lengths: list[int]) -> int:
    """Its OHLCV aggregation, one an interval; it has no quote volume and no taker's part."""
    import asyncio
    from types import SimpleNamespace

    from cryptofeed.backends.aggregate import OHLCV

    async def discard(*_: object, **__: object) -> None:
        return None

    aggregates = [OHLCV(discard, window=length // 1_000) for length in lengths]
    trades = [
        SimpleNamespace(symbol=symbol, price=price, amount=quantity)
        for batch in batches
        for symbol, price, quantity in zip(*(batch[n].tolist() for n in ("symbol", "price", "quantity")), strict=True)
    ]

    async def run() -> None:
        for trade in trades:
            for each in aggregates:
                await each(trade, 0.0)

    asyncio.run(run())
    return len(trades)


def fold_mdp_outbox(batches: list[Columns], lengths: list[int]) -> int:
    """The core of its aggregator, without Redis and TimescaleDB; it has no ids and no taker's part."""
    from datetime import UTC, datetime, timedelta
    from decimal import Decimal

    from mdp.aggregator import Aggregator
    from mdp.schema import Side, Trade
    from mdp.timeframes import TIMEFRAMES

    aggregator = Aggregator(timeframes=TIMEFRAMES[: len(lengths)])
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    trade_id = 0
    given = []
    for batch in batches:
        ticks = []
        for symbol, at, price, quantity in zip(
            *(batch[n].tolist() for n in ("symbol", "time", "price", "quantity")), strict=True
        ):
            trade_id += 1
            moment = epoch + timedelta(milliseconds=at)
            ticks.append(
                Trade(
                    source="binance",
                    symbol=f"S{symbol}-USDT",
                    trade_id=str(trade_id),
                    price=Decimal(price).scaleb(-2),
                    qty=Decimal(quantity).scaleb(-3),
                    side=Side.BUY,
                    ts_exchange=moment,
                    ts_ingested=moment,
                )
            )
        given.append(ticks)
    began_ns = time.perf_counter_ns()
    for ticks in given:
        aggregator.process(ticks)
    fold_mdp_outbox.elapsed = time.perf_counter_ns() - began_ns  # type: ignore[attr-defined]
    return trade_id


BATCHED: dict[str, Fold] = {"polars": fold_polars, "duckdb": fold_duckdb, "pandas": fold_pandas}
ONE_BY_ONE: dict[str, Fold] = {
    "python dict": fold_dict,
    "nautilus_trader": fold_nautilus,
    "cryptofeed": fold_cryptofeed,
    "mdp-outbox core": fold_mdp_outbox,
}
KLAGG = ("klagg, 15 intervals, rows made after each batch", "klagg, 15 intervals, rows made at the end")
MODULES = {"mdp-outbox core": "mdp"}
"""Where a package's name is not its module's."""
COUNTS = {"mdp-outbox core": (1, 4)}
"""How many intervals a contender is asked for; this one knows 1m, 5m, 1h and 1d."""
QUOTED = {
    "mdp-outbox core": (
        "needs Python 3.12. The whole service needs Redis and TimescaleDB and is not run here; its README (0.1.2) has"
        " 62,000 trades/s for the core and 6,300 for the service, over 4 symbols, and 20 ms (p50) from a trade to a"
        " subscriber at 50 trades/s, on its author's machine"
    )
}
"""What is said of a contender that cannot be measured in full."""


def _quote(name: str, figures: dict[str, Any]) -> None:
    if name in QUOTED:
        figures[f"{name}, quoted"] = QUOTED[name]
        print(f"{'':16}{QUOTED[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--json", type=Path, default=Path("bench-peers.json"))
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}; {arguments.symbols} symbols; trades/s in thousands, median, least and most; klagg in multiples")
    results: dict[str, Any] = {"machine": machine, "symbols": arguments.symbols}
    for size in (1_000, 10_000):
        batches = batches_of(arguments.symbols, size)
        columns = [columns_of(batch) for batch in batches]
        print(f"\nBatches of {size:,}")
        results[f"batches of {size}"] = figures = {}
        ours = [rate_of_klagg(arguments.symbols, batches, watched) for watched in (True, False)]
        for name, rate in zip(KLAGG, ours, strict=True):
            figures[name] = rate._asdict()
            print(f"{name:52}{rate}")
        for name, fold in (BATCHED | ONE_BY_ONE).items():
            if name in ONE_BY_ONE and size != 1_000:
                continue
            if name != "python dict" and importlib.util.find_spec(MODULES.get(name, name)) is None:
                print(f"{name:16} is not installed")
                _quote(name, figures)
                continue
            given = columns if name in BATCHED else columns[: SLOW_TRADES // size]
            for count in COUNTS.get(name, (1, 6, 15)):
                rate = rate_of(fold, given, lengths_of(count))
                figures[f"{name}, {count} intervals"] = rate._asdict()
                times = " to ".join(f"{our.median / rate.median:.1f}" for our in ours)
                print(f"{name:16}{count:>3} intervals{'':>23}{rate!s:28} ({times}×)")
            _quote(name, figures)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
