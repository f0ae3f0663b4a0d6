"""What both kinds of market hold their past in: named columns of exact integers, and klines of klines.

Prices are in units of 10**-price_decimals, quantities of 10**-quantity_decimals, quote volumes of both together.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np

from services.simulator.grid import open_times

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
        )
    ]
)
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
_FAR = np.int64(2**62)


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol as exchangeInfo tells of it."""

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


def merge(rows: Rows, interval: str, grid_3d: int) -> Rows:
    """Return the klines of `interval` that ascending shorter ones make up. KLINE_ROW[n] to KLINE_ROW[m].

    Klines without trades keep the close before them and say nothing about open, high and low of what they are part of.
    """
    if not len(rows):
        return rows
    opens = open_times(interval, rows["open_time"], grid_3d)
    starts = np.flatnonzero(np.diff(opens, prepend=opens[0] - 1))
    merged = np.empty(len(starts), KLINE_ROW)
    merged["open_time"] = opens[starts]
    for name in SUMS:
        merged[name] = np.add.reduceat(rows[name], starts)
    traded = rows["count"] > 0
    merged["high"] = np.maximum.reduceat(np.where(traded, rows["high"], 0), starts)
    merged["low"] = np.minimum.reduceat(np.where(traded, rows["low"], _FAR), starts)
    first = np.minimum.reduceat(np.where(traded, np.arange(len(rows)), len(rows)), starts)
    merged["open"] = rows["open"][np.minimum(first, len(rows) - 1)]
    merged["close"] = rows["close"][np.append(starts[1:], len(rows)) - 1]
    flat = merged["count"] == 0
    for name in ("open", "high", "low"):
        merged[name][flat] = merged["close"][flat]
    return merged


def kline_of_trades(opened: int, trades: Rows) -> Rows:
    """Return the kline that TRADE_ROW[n] make up, as KLINE_ROW[1]; empty if none of them was executed."""
    real = trades[trades["kind"] == MARKET]
    row = np.zeros(1 if len(real) else 0, KLINE_ROW)
    if len(real):
        price, quantity, bought = real["price"], real["quantity"], ~real["maker"]
        row["open_time"] = opened
        row["open"], row["close"] = price[0], price[-1]
        row["high"], row["low"] = price.max(), price.min()
        row["count"] = len(real)
        row["volume"], row["taker_buy_volume"] = quantity.sum(), quantity[bought].sum()
        row["quote_volume"] = (price * quantity).sum()
        row["taker_buy_quote_volume"] = (price * quantity)[bought].sum()
    return row


def flat_rows(opens: Any, close: Any) -> Rows:
    """Return klines in which nobody traded: `opens` int64[n], all at the price `close`."""
    rows = np.zeros(len(opens), KLINE_ROW)
    rows["open_time"] = opens
    for name in ("open", "high", "low", "close"):
        rows[name] = close
    return rows


def text_of(value: int, decimals: int) -> str:
    """Return a scaled integer as the wire has it, with exactly `decimals` digits behind the point."""
    if not decimals:
        return str(value)
    whole, part = divmod(value, 10**decimals)
    return f"{whole}.{part:0{decimals}d}"
