"""A kline and a trade, as all services have them. How klines merge is in merging.py.

Prices and quantities are int64 in units of the symbol's last decimal (`price_decimals`, `quantity_decimals`); quote
volumes are their products, in units of 10**-(price_decimals + quantity_decimals). A busy month has more of those units
than an int64 holds (9.2e18), so that a quote volume is two fields: `quote_volume_high * QUOTE_BASE + quote_volume`, up
to 3.2e22. A kline in which more was traded is *saturated*, and has a flag for it.
"""

from typing import Any

import numpy as np

QUOTE_BASE = 10**18
QUOTE_HIGH_MAX = 2**15 - 1
QUOTE_MAX = QUOTE_HIGH_MAX * QUOTE_BASE + QUOTE_BASE - 1
"""The largest quote volume."""
REVISION_MAX = 2**15 - 1

TRADE = np.dtype(
    [
        ("symbol", "<i8"),  # index into the batch's own list of instruments
        ("id", "<i8"),
        ("time", "<i8"),  # T, ms: decides the kline
        ("price", "<i8"),
        ("quantity", "<i8"),
        ("trade_count", "<i8"),  # 0: a void id, which is covered but has no price and no volume
        ("buyer_is_maker", "<i8"),  # 1: the taker sold
    ]
)

KLINE = np.dtype(
    [
        ("open_time", "<i8"),
        ("open", "<i8"),
        ("high", "<i8"),
        ("low", "<i8"),
        ("close", "<i8"),
        ("volume", "<i8"),
        ("quote_volume", "<i8"),
        ("trade_count", "<i8"),
        ("taker_buy_volume", "<i8"),
        ("taker_buy_quote_volume", "<i8"),
        ("first_id", "<i8"),  # the range of ids applied, void ones included; 0 while there is none
        ("last_id", "<i8"),
        ("id_count", "<i8"),  # how many ids were applied: last_id - first_id + 1 when none is missing
        ("open_id", "<i8"),  # the ids that decided open and close: void ids never do
        ("close_id", "<i8"),
        ("flags", "<i2"),
        ("revision", "<i2"),  # how often the row was corrected after it closed, up to REVISION_MAX
        ("quote_volume_high", "<i2"),  # multiples of QUOTE_BASE: quote_volume itself is less than one
        ("taker_buy_quote_volume_high", "<i2"),
    ]
)

QUOTES = ("quote_volume", "taker_buy_quote_volume")
"""Numbers that are two fields each; these are the lower fields."""

PLACED_KLINE = np.dtype(
    [
        ("symbol", "<i4"),  # index into the message's own list of symbols
        ("interval", "<i4"),  # index into INTERVALS
        ("kline", KLINE),
    ]
)

CLOSED = 1
"""The exchange's clock has passed the kline's end."""
FINAL = 4
"""Closed, and proven: every trade before the kline's end was applied, or the exchange itself says what it is."""
EXCHANGE = 2
"""The kline holds figures of the exchange's own klines, which have no ids."""
UNEXPLAINED = 8
"""The kline may lack ids that the exchange left out of its answers, and no row has said that they are void. It is not
final while that is so."""
AUDITED = 16
"""The kline may lack such ids, but the exchange's own kline has the same prices, volumes and trades: they have none.
Final by that, without ids."""
SATURATED = 32
"""More was traded in the kline than its numbers hold: each volume is true or the largest that fits. Not final."""


def figure(row: Any, name: str) -> int:
    """Return a number of a record of `KLINE`; quote volumes are whole."""
    high = int(row[f"{name}_high"]) if name in QUOTES else 0
    return high * QUOTE_BASE + int(row[name])
