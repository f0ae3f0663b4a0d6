"""The stored closed minutes, in the form that the engine has them, for who compares them with others."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from services.persist.pgcopy import DECIMALS, PRICES, VOLUMES
from services.persist.store import Connection
from shared.arrays import Rows
from shared.kline import CLOSED, EXCHANGE, KLINE, QUOTE_BASE, QUOTES

PART_MINUTES = 1_000


class Traded(NamedTuple):
    symbol: str
    price_decimals: int
    quantity_decimals: int


def traded(connection: Connection) -> list[Traded]:
    """Return all symbols and their decimals. Raises psycopg.Error."""
    rows = connection.execute("SELECT symbol, price_decimals, quantity_decimals FROM symbols ORDER BY symbol")
    return [Traded(*row) for row in rows]


def closed_minutes(connection: Connection, of: Traded, since: int) -> Iterator[Rows]:
    """Yield a symbol's closed 1m klines that open from `since` on, ms: KLINE[n] ascending, a part at a time."""
    scales = {name: of.price_decimals if name in PRICES else of.quantity_decimals for name in DECIMALS}
    scales |= {name: of.price_decimals + of.quantity_decimals for name in DECIMALS if name not in PRICES + VOLUMES}
    whole = {name: f"round({name} * {10**decimals}::numeric)" for name, decimals in scales.items()}
    columns = {name: f"{value}::int8" for name, value in whole.items() if name not in QUOTES}
    columns |= {name: f"mod({whole[name]}, {QUOTE_BASE})::int8" for name in QUOTES}
    columns |= {f"{name}_high": f"div({whole[name]}, {QUOTE_BASE})::int2" for name in QUOTES}
    query = f"""
        SELECT (extract(epoch FROM open_time) * 1000)::int8, {", ".join(columns.values())}, trade_count,
            source <> 'trades'
        FROM klines
        WHERE symbol = %s AND interval = '1m' AND closed
            AND open_time >= timestamptz 'epoch' + %s * interval '1 ms'
        ORDER BY open_time LIMIT {PART_MINUTES}
    """
    while True:
        found = connection.execute(query, [of.symbol, since]).fetchall()
        rows = np.zeros(len(found), KLINE)
        for index, (open_time, *figures, trade_count, official) in enumerate(found):
            rows[index]["open_time"], rows[index]["trade_count"] = open_time, trade_count
            rows[index]["flags"] = CLOSED | EXCHANGE if official else CLOSED
            for name, figure in zip(columns, figures, strict=True):
                rows[index][name] = figure
        if not len(found):
            return
        yield rows
        since = int(rows[-1]["open_time"]) + 1
