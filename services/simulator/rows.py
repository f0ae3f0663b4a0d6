"""What both kinds of market hold their past in: named columns of exact integers, and klines of klines.

Prices are in units of 10**-price_decimals, quantities of 10**-quantity_decimals, quote volumes of both together. A
month's quote volume may be beyond 64 bits: where klines are merged, what stands in its column is less than `WHOLE`, and
the column after it, `more_`, counts those.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np

from services.simulator.grid import open_times
from shared.arrays import Integers
from shared.compiled import compiled

Rows = Any
"""A structured numpy array; its dtype is named where it is taken or given."""

KLINE_ROW = np.dtype(
    [
        (name, np.int64)
        for name in (
            "open_time",
            "open",
            "high",
            "low",
            "close",
            "volume",
            "quote_volume",
            "count",
            "taker_buy_volume",
            "taker_buy_quote_volume",
            "more_quote_volume",
            "more_taker_buy_quote_volume",
        )
    ]
)
WHOLE = 10**18
AGG_ROW = np.dtype(
    [(name, np.int64) for name in ("id", "first", "last", "time", "event_time", "price", "quantity", "plain_quantity")]
    + [("maker", np.bool_)]
)
"""An aggregate trade; `plain_quantity` is the wire's `nq`."""
TRADE_ROW = np.dtype(
    [(name, np.int64) for name in ("id", "time", "event_time", "price", "quantity")]
    + [("kind", np.int8), ("maker", np.bool_)]
)
KINDS = ("MARKET", "NA", "INSURANCE_FUND", "ADL")
"""What a trade's `kind` indexes; all but the first are void for klines (protocol §2.4)."""
MARKET = 0

SUMS = ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol as exchangeInfo describes it."""

    symbol: str
    price_decimals: int
    quantity_decimals: int
    tick: int = 1
    """The price step, in units of the last decimal."""
    step: int = 1
    onboard: int = 0
    delivery: int = 4_133_404_800_000
    grid_3d: int = 0
    """Any open time of its 3d klines."""

    @property
    def stream_base(self) -> str:
        """The name as streams spell it: only ASCII letters have a lower case there (protocol §1.2)."""
        return "".join(letter.lower() if letter.isascii() else letter for letter in self.symbol)


class DayStats(NamedTuple):
    """A symbol's last 24 hours, scaled as its klines are."""

    instrument: Instrument
    open: int
    high: int
    low: int
    last: int
    volume: int
    quote_volume: int
    trades: int


def joined(parts: list[Rows]) -> Rows:
    """Return klines one after the other. KLINE_ROW[n] each; numpy's own takes ten times as long with named columns."""
    rows = np.empty(sum(map(len, parts)), KLINE_ROW)
    start = 0
    for part in parts:
        rows[start : start + len(part)] = part
        start += len(part)
    return rows


def merge(rows: Rows, interval: str, grid_3d: int) -> Rows:
    """Return the klines of `interval` that ascending shorter ones make up. KLINE_ROW[n] to KLINE_ROW[m].

    Klines without trades keep the close before them and say nothing about open, high and low of what they are part of.
    """
    merged = np.empty(len(rows), KLINE_ROW)
    return merged[: _merge(rows, open_times(interval, rows["open_time"], grid_3d), merged)]


@compiled
def _merge(rows: Rows, opens: Integers, merged: Rows) -> int:
    """`opens`: int64[n], where the kline opens that each row is part of. Return how many klines there are."""
    count = 0
    for index in range(len(rows)):
        row = rows[index]
        if index == 0 or opens[index] != opens[index - 1]:
            count += 1
            begun = merged[count - 1]
            begun.open_time = opens[index]
            begun.count = begun.volume = begun.quote_volume = 0
            begun.taker_buy_volume = begun.taker_buy_quote_volume = 0
            begun.more_quote_volume = begun.more_taker_buy_quote_volume = 0
        into = merged[count - 1]
        if into.count == 0:
            # Until somebody trades, all prices are the close before.
            traded = row.count > 0
            into.open = row.open if traded else row.close
            into.high = row.high if traded else row.close
            into.low = row.low if traded else row.close
        elif row.count > 0:
            into.high = max(into.high, row.high)
            into.low = min(into.low, row.low)
        into.close = row.close
        into.count += row.count
        into.volume += row.volume
        into.taker_buy_volume += row.taker_buy_volume
        whole, part = divmod(row.quote_volume, WHOLE)
        carried, into.quote_volume = divmod(into.quote_volume + part, WHOLE)
        into.more_quote_volume += row.more_quote_volume + whole + carried
        whole, part = divmod(row.taker_buy_quote_volume, WHOLE)
        carried, into.taker_buy_quote_volume = divmod(into.taker_buy_quote_volume + part, WHOLE)
        into.more_taker_buy_quote_volume += row.more_taker_buy_quote_volume + whole + carried
    return count


def kline_of_trades(opened: int, trades: Rows) -> Rows:
    """Return the kline that TRADE_ROW[n] make up, as KLINE_ROW[1]; empty if none of them was executed."""
    row = np.zeros(1, KLINE_ROW)
    return row[: _kline_of(opened, trades, row)]


@compiled
def _kline_of(opened: int, trades: Rows, rows: Rows) -> int:
    """Write the kline into rows[0], zeros before, if there is one; return how many there are."""
    row = rows[0]
    for index in range(len(trades)):
        trade = trades[index]
        if trade.kind != MARKET:
            continue
        if row.count == 0:
            row.open_time = opened
            row.open = row.high = row.low = trade.price
        row.high = max(row.high, trade.price)
        row.low = min(row.low, trade.price)
        row.close = trade.price
        row.count += 1
        row.volume += trade.quantity
        row.quote_volume += trade.price * trade.quantity
        if not trade.maker:
            row.taker_buy_volume += trade.quantity
            row.taker_buy_quote_volume += trade.price * trade.quantity
    return 1 if row.count else 0


def flat_rows(opens: Any, close: Any) -> Rows:
    """Return klines in which nobody traded: `opens` int64[n], all at the price `close`."""
    rows = np.zeros(len(opens), KLINE_ROW)
    rows["open_time"] = opens
    for name in ("open", "high", "low", "close"):
        rows[name] = close
    return rows


def number_of(row: Any, name: str) -> int:
    """Return a number of a KLINE_ROW."""
    more = f"more_{name}"
    return int(row[name]) + WHOLE * (int(row[more]) if more in (KLINE_ROW.names or ()) else 0)


def text_of(value: int, decimals: int) -> str:
    """Return a scaled integer as the wire has it, with exactly `decimals` digits after the point."""
    if not decimals:
        return str(value)
    whole, part = divmod(value, 10**decimals)
    return f"{whole}.{part:0{decimals}d}"
