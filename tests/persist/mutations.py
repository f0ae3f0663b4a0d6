"""Changes of a true history: those that make it false, and those that leave it true although they look odd.

Data only, a line a change. `ROWS` names one kline each: (symbol, interval, which of them), the newest that fits. `{row}` in SQL is that
kline's key as a condition, `{time}` its open time. What a change must be reported with is its symbol, and the kline.
"""
# ruff: noqa: E501

from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    sql: str
    row: str = ""
    """Which of `ROWS` it is about."""
    symbol: str = ""
    """Whom it is about, if no single kline."""


TRADED = (
    "trade_count > 3 AND id_count > 2 AND closed AND high > low AND taker_buy_volume > 0 AND volume > taker_buy_volume"
)
ROWS: dict[str, tuple[str, str, str]] = {
    "a minute": ("PLAIN", "1m", TRADED + " AND close <> open"),
    "a flat minute": ("PLAIN", "1m", "trade_count = 0 AND closed"),
    "the newest minute": ("PLAIN", "1m", "NOT closed"),
    "three minutes": ("PLAIN", "3m", TRADED),
    "an hour": ("PLAIN", "1h", TRADED),
    "an open day": ("PLAIN", "1d", "NOT closed"),
    "an open month": ("PLAIN", "1M", "NOT closed"),
    "a corrected minute": ("FALLEN", "1m", TRADED + " AND revision > 0"),
    "an unexplained minute": ("HOLED", "1m", "unexplained AND trade_count > 1"),
    "an audited minute": ("HOLED", "1m", "audited AND trade_count > 1"),
    "an hour begun by the exchange": ("BEGUN", "1h", "source = 'both'"),
    "the exchange's minute": ("BEGUN", "1m", "source = 'exchange' AND trade_count > 2 AND high > low"),
    "the exchange's day": ("BEGUN", "1d", "source = 'exchange' AND trade_count > 2 AND high > low"),
    "a minute after relisting": ("RELISTED", "1m", TRADED + " AND source = 'trades'"),
    "a minute before removal": ("REMOVED", "1m", TRADED),
    "a saturated hour": ("FULL", "1h", "closed AND saturated"),
    "a flat minute of a silent symbol": ("QUIET", "1m", "closed AND source = 'trades'"),
}

NUMBERS = {
    "open": "high",
    "high": "high",
    "low": "-low",
    "close": "high",
    "volume": "0.001",
    "quote_volume": "0.00001",
    "trade_count": "1",
    "taker_buy_volume": "0.001",
    "taker_buy_quote_volume": "0.00001",
}
"""Columns, and what is added to them."""
PRICES = {"open": "0.01", "high": "0.01", "low": "-0.01", "close": "-0.01"}
"""Of a minute within a longer kline's prices nobody else knows, so that these are for longer ones."""
IDS = ("first_id", "last_id", "id_count", "open_id", "close_id")

_SHIFTED = {"close_time": "close_time + interval '1 ms'", "open_time": "open_time + interval '7 ms'"}
_MADE_OF_IDS = (
    "a minute",
    "an hour",
    "an open day",
    "a corrected minute",
    "an audited minute",
    "a minute after relisting",
)
_LONGER = ("three minutes", "an hour", "an open day", "an hour begun by the exchange", "the exchange's day")
_EXCHANGES = ("an hour begun by the exchange", "the exchange's minute", "the exchange's day")


def _set(row: str, column: str, value: str) -> Mutation:
    return Mutation(f"{row}: {column} = {value}", f"UPDATE klines SET {column} = {value} WHERE {{row}}", row)


def _all(symbol: str, name: str, sql: str) -> Mutation:
    return Mutation(f"{symbol}: {name}", sql, symbol=symbol)


def _mark(symbol: str, column: str, value: str) -> Mutation:
    return _all(symbol, f"its {column} = {value}", f"UPDATE symbols SET {column} = {value} WHERE symbol = '{symbol}'")


_SWAP = """
UPDATE klines AS k SET ({columns}) = (SELECT {columns} FROM klines AS o WHERE o.symbol = k.symbol
    AND o.interval = k.interval AND o.open_time <> k.open_time AND o.open_time IN ({times}))
WHERE symbol = 'PLAIN' AND interval = '1m' AND open_time IN ({times})
"""
_FIGURES = "open, high, low, close, volume, quote_volume, trade_count, taker_buy_volume, taker_buy_quote_volume"
_ALL_IDS = ", ".join(IDS)
_PAIR = (
    "SELECT open_time FROM klines WHERE symbol = 'PLAIN' AND interval = '1m' AND trade_count > 0 AND id_count > 0 AND "
)
_NEAR = _PAIR + "open_time IN (timestamptz '2026-03-31 01:00+00', timestamptz '2026-03-31 01:01+00')"
_FAR = _PAIR + "open_time IN (timestamptz '2026-03-31 01:00+00', timestamptz '2026-03-31 01:07+00')"


def _hole(symbol: str, more: str = "") -> str:
    """Take one id out of all klines that begin with it: as if a trade had never come."""
    return (
        "UPDATE klines AS k SET first_id = first_id + 1, id_count = id_count - 1"
        " FROM (SELECT symbol, first_id AS gone FROM klines WHERE {row}) AS m"
        f" WHERE k.symbol = m.symbol AND k.first_id = gone AND k.id_count > 1{more}"
    )


FALSE: list[Mutation] = [
    # A value of each column.
    *(_set(row, name, f"{name} + {step}") for row in (*_MADE_OF_IDS, *_EXCHANGES) for name, step in NUMBERS.items()),
    *(_set(row, name, f"{name} + {step}") for row in _LONGER for name, step in PRICES.items()),
    *(_set(row, name, f"{name} - {step}") for row in _LONGER for name, step in list(NUMBERS.items())[4:]),
    *(_set(row, name, f"{name} + 1") for row in _MADE_OF_IDS if row != "a corrected minute" for name in IDS),
    *(_set(row, name, f"{name} - 1") for row in ("three minutes", "an hour") for name in IDS),
    *(_set("a corrected minute", name, f"{name} + 1") for name in ("first_id", "id_count", "open_id")),
    *(_set(row, name, value) for row in ("a minute", "an hour", "the exchange's day") for name, value in _SHIFTED.items()),
    *(_set(row, "closed", "NOT closed") for row in (*_MADE_OF_IDS, "an open month", "the newest minute", "a flat minute")),
    *(_set(row, "final", "NOT final") for row in (*_MADE_OF_IDS, "an unexplained minute", "the newest minute", "a flat minute")),
    *(_set(row, "final", "NOT final") for row in ("the exchange's minute", "a flat minute of a silent symbol")),
    *(_set(row, "unexplained", "NOT unexplained, final = false") for row in ("a minute", "an unexplained minute")),
    *(_set(row, "audited", "NOT audited") for row in ("a minute", "an audited minute")),
    *(_set(row, "saturated", "NOT saturated") for row in ("a minute", "an hour", "a saturated hour")),
    *(_set("a saturated hour", name, f"{name} - {NUMBERS[name]}") for name in list(NUMBERS)[4:]),
    *(_set("a saturated hour", name, f"{name} + {NUMBERS[name]}") for name in list(NUMBERS)[4:]),
    _set("a saturated hour", "final", "true"),
    *(_set(row, "source", "'exchange'") for row in ("a minute", "an hour")),
    *(_set(row, "source", "'both'") for row in ("a minute", "an hour", "the exchange's minute")),
    *(_set(row, "source", "'trades'") for row in _EXCHANGES),
    _set("a minute", "source", "'somebody'"),
    _set("a minute", "revision", "-1"),
    _set("the newest minute", "revision", "1"),
    _set("a corrected minute", "revision", "0"),
    _set("a minute", "interval", "'2m'"),
    _set("a minute", "volume", "'NaN'"),
    _set("a minute", "close", "'NaN'"),
    _set("a minute", "open", "0"),
    _set("a minute", "volume", "volume + 0.0001"),
    _set("a minute", "quote_volume", "high * volume + 1"),
    _set("a flat minute", "volume", "1"),
    _set("a flat minute", "(open, high, low, close)", "(SELECT open + 1, high + 1, low + 1, close + 1)"),
    _set("a flat minute", "trade_count", "1"),
    _set("a flat minute", "first_id", "7"),
    _set("a flat minute of a silent symbol", "(open, high, low, close)", "(SELECT open + 1, high + 1, low + 1, close + 1)"),
    _set("an hour", "(open, high, low, close)", "(SELECT close, high, low, open)"),
    # Rows.
    *(Mutation(f"{row} is deleted", "DELETE FROM klines WHERE {row}", row) for row in ROWS),
    *(
        Mutation(
            f"{row} is doubled into the minute before it",
            "UPDATE klines SET (volume, trade_count, first_id, last_id, id_count, open_id, close_id) ="
            " (SELECT volume, trade_count, first_id, last_id, id_count, open_id, close_id FROM klines WHERE {row})"
            " WHERE (symbol, interval) = (SELECT symbol, interval FROM klines WHERE {row})"
            " AND open_time = {time} - interval '1 minute'",
            row,
        )
        for row in ("a minute", "a minute after relisting")
    ),
    _set("a minute", "open_time", "open_time + interval '30 s'"),
    _set("a minute", "(open_time, close_time)", "(SELECT open_time + interval '1 year', close_time + interval '1 year')"),
    _set("an hour", "(open_time, close_time)", "(SELECT open_time - interval '1 year', close_time - interval '1 year')"),
    _set("a minute", "symbol", "'NEVER'"),
    _set("a minute", "symbol", "'NOBODY'"),
    _set("an hour", "interval", "'60m'"),
    Mutation(
        "a kline of another symbol is copied over one",
        f"UPDATE klines SET ({_FIGURES}, {_ALL_IDS}) = (SELECT {_FIGURES}, {_ALL_IDS} FROM klines AS o"
        " WHERE o.symbol = 'FALLEN' AND o.interval = '1m' AND o.open_time = {time}) WHERE {row}",
        "a minute",
    ),
    Mutation(
        "the figures of another symbol's kline are copied over one's",
        f"UPDATE klines SET ({_FIGURES}) = (SELECT {_FIGURES} FROM klines AS o"
        " WHERE o.symbol = 'FALLEN' AND o.interval = '1h' AND o.open_time = {time}) WHERE {row}",
        "an hour",
    ),
    _all("PLAIN", "figures of two near minutes swapped", _SWAP.format(columns=_FIGURES, times=_NEAR)),
    _all("PLAIN", "figures of two far minutes swapped", _SWAP.format(columns=_FIGURES, times=_FAR)),
    _all("PLAIN", "ids of two near minutes swapped", _SWAP.format(columns=_ALL_IDS, times=_NEAR)),
    _all("PLAIN", "ids of two far minutes swapped", _SWAP.format(columns=_ALL_IDS, times=_FAR)),
    _all("PLAIN", "two near minutes swapped whole", _SWAP.format(columns=f"{_FIGURES}, {_ALL_IDS}", times=_NEAR)),
    _all("PLAIN", "two far minutes swapped whole", _SWAP.format(columns=f"{_FIGURES}, {_ALL_IDS}", times=_FAR)),
    Mutation("ids are widened in a minute", "UPDATE klines SET last_id = last_id + 3, id_count = id_count + 3 WHERE {row}", "a minute"),
    Mutation("a hole is widened to void ids", "UPDATE klines SET first_id = first_id - 3, id_count = id_count + 3 WHERE {row}", "an audited minute"),
    Mutation("an id is taken out of all intervals", _hole("PLAIN"), "a minute"),
    Mutation("an id is taken out of all intervals after relisting", _hole("RELISTED"), "a minute after relisting"),
    Mutation("an id is taken out of the minute alone", _hole("PLAIN", " AND interval = '1m'"), "a minute"),
    # Many rows.
    *(
        _all(
            "PLAIN",
            f"the first half of {interval} is deleted",
            f"DELETE FROM klines WHERE symbol = 'PLAIN' AND interval = '{interval}' AND open_time < '2026-03-31 01:30+00'",
        )
        for interval in ("1m", "3m", "5m", "15m", "30m", "1h")
    ),
    *(
        _all(symbol, f"{interval} is deleted", f"DELETE FROM klines WHERE symbol = '{symbol}' AND interval = '{interval}'")
        for symbol, interval in (("PLAIN", "1m"), ("PLAIN", "8h"), ("QUIET", "1M"), ("BEGUN", "1h"))
    ),
    *(
        _all(symbol, "its last hour is deleted", f"DELETE FROM klines WHERE symbol = '{symbol}' AND open_time >= '2026-03-31 02:00+00'")
        for symbol in ("PLAIN", "QUIET")
    ),
    _all("PLAIN", "the last hour of all is deleted", "DELETE FROM klines WHERE open_time >= '2026-03-31 02:00+00'"),
    _all("PLAIN", "its first hour is deleted", "DELETE FROM klines WHERE symbol = 'PLAIN' AND close_time < '2026-03-31 01:00+00'"),
    _all("PLAIN", "all its klines are deleted", "DELETE FROM klines WHERE symbol = 'PLAIN'"),
    _all("BEGUN", "a day of the exchange's hours is deleted", "DELETE FROM klines WHERE symbol = 'BEGUN' AND interval = '1h' AND open_time::date = '2026-03-29'"),
    *(
        _all(
            symbol,
            "every minute is shifted by 30 s",
            f"UPDATE klines SET open_time = open_time + interval '30 s', close_time = close_time + interval '30 s'"
            f" WHERE interval = '1m' AND symbol = '{symbol}'",
        )
        for symbol in ("PLAIN", "QUIET")
    ),
    _all("PLAIN", "all is shifted by 3 days", "UPDATE klines SET open_time = open_time + interval '3 days', close_time = close_time + interval '3 days' WHERE symbol = 'PLAIN'"),
    _all("PLAIN", "prices are negative", "UPDATE klines SET open = -open, high = -low, low = -high, close = -close, quote_volume = -quote_volume, taker_buy_quote_volume = -taker_buy_quote_volume"),
    _all("QUIET", "its prices are negative", "UPDATE klines SET open = -open, high = -low, low = -high, close = -close WHERE symbol = 'QUIET'"),
    _all("PLAIN", "prices are doubled", "UPDATE klines SET open = 2 * open, high = 2 * high, low = 2 * low, close = 2 * close WHERE symbol = 'PLAIN'"),
    _all("PLAIN", "all ids are shifted down", "UPDATE klines SET first_id = first_id - 1, last_id = last_id - 1, open_id = open_id - 1, close_id = close_id - 1 WHERE symbol = 'PLAIN' AND id_count > 0"),
    _all("HOLED", "all ids are shifted up", "UPDATE klines SET first_id = first_id + 5, last_id = last_id + 5, open_id = open_id + 5, close_id = close_id + 5 WHERE symbol = 'HOLED' AND id_count > 0"),
    _all("PLAIN", "final is taken away", "UPDATE klines SET final = false WHERE symbol = 'PLAIN'"),
    _all("PLAIN", "all is final", "UPDATE klines SET final = closed WHERE symbol = 'PLAIN'"),
    _all("PLAIN", "all is closed", "UPDATE klines SET closed = true WHERE symbol = 'PLAIN'"),
    _all("PLAIN", "the week is closed", "UPDATE klines SET closed = true WHERE symbol = 'PLAIN' AND interval = '1w'"),
    _all("NEVER", "another's klines are its own", "UPDATE klines SET symbol = 'NEVER' WHERE symbol = 'FALLEN'"),
    _all("PLAIN", "hours are the merge of other hours", "UPDATE klines AS k SET volume = o.volume, quote_volume = o.quote_volume FROM klines AS o WHERE o.symbol = k.symbol AND o.interval = k.interval AND o.open_time = k.open_time - interval '1 hour' AND k.symbol = 'PLAIN' AND k.interval = '1h'"),
    _all("PLAIN", "a day lacks an hour", "UPDATE klines AS k SET volume = k.volume - h.volume, trade_count = k.trade_count - h.trade_count FROM klines AS h WHERE h.symbol = 'PLAIN' AND h.interval = '1h' AND h.open_time = '2026-03-31 01:00+00' AND k.symbol = 'PLAIN' AND k.interval = '1d' AND NOT k.closed"),
    _all("PLAIN", "another interval's klines stand in for it", "UPDATE klines SET interval = '10m' WHERE symbol = 'PLAIN' AND interval = '5m'"),
    # Marks of symbols.
    _mark("PLAIN", "last_id", "last_id + 1000"),
    _mark("PLAIN", "last_id", "last_id - 1"),
    _mark("RELISTED", "last_id", "last_id + 1"),
    _mark("HOLED", "last_id", "-1"),
    _mark("PLAIN", "proven_time", "proven_time + interval '1 day'"),
    _mark("PLAIN", "proven_time", "proven_time - interval '1 day'"),
    _mark("QUIET", "proven_time", "proven_time + interval '1 hour'"),
    _mark("BEGUN", "proven_time", "seam_time"),
    _mark("PLAIN", "seam_time", "seam_time + interval '100 years'"),
    _mark("BEGUN", "seam_time", "seam_time + interval '1 hour'"),
    _mark("BEGUN", "seam_time", "seam_time - interval '1 day'"),
    _mark("BEGUN", "seam_time", "seam_time + interval '1 s'"),
    _mark("RELISTED", "seam_time", "seam_time - interval '1 day'"),
    _mark("PLAIN", "gaps", "'{[3,5)}'"),
    _mark("PLAIN", "lacking", """'[["1m", 0, 60000]]'"""),
    _mark("PLAIN", "price_decimals", "price_decimals - 1"),
    _mark("PLAIN", "quantity_decimals", "quantity_decimals - 1"),
    _mark("PLAIN", "price_decimals", "-1"),
    _mark("PLAIN", "grid_3d", "grid_3d + interval '1 day'"),
    _mark("BEGUN", "grid_3d", "grid_3d - interval '1 hour'"),
    _mark("NEVER", "proven_time", "now()"),
    _mark("REMOVED", "active", "true"),
    _mark("REMOVED", "last_id", "last_id - 1"),
    _mark("HOLED", "unexplained", "'[]'"),
    _mark("HOLED", "unexplained", "unexplained - 0"),
    _mark("HOLED", "unexplained", "unexplained - 1"),
    _mark("HOLED", "unexplained", "jsonb_set(unexplained, '{0,1}', to_jsonb((unexplained -> 0 -> 1)::int8 + 1))"),
    _mark("HOLED", "unexplained", "jsonb_set(unexplained, '{0,4}', '\"audited\"')"),
    _mark("HOLED", "unexplained", "jsonb_set(unexplained, '{1,4}', '\"open\"')"),
    _mark("HOLED", "unexplained", "jsonb_set(unexplained, '{0,2}', '0')"),
    _mark("PLAIN", "unexplained", "'[[30, 32, 1774915200000, 1774915260000, \"open\"]]'"),
    _mark("PLAIN", "unexplained", "'[[30, 32, 0, 2000000000000, \"adopted\"]]'"),
    *(_all(symbol, "its mark is deleted", f"DELETE FROM symbols WHERE symbol = '{symbol}'") for symbol in ("PLAIN", "QUIET")),
    _all("NOBODY", "it has a mark of another", "UPDATE symbols SET symbol = 'NOBODY' WHERE symbol = 'FALLEN'"),
    _all("PLAIN", "the engine's time is a day later", "UPDATE engine_state SET exchange_time = exchange_time + interval '1 day'"),
    _all("PLAIN", "the engine's time is a day earlier", "UPDATE engine_state SET exchange_time = exchange_time - interval '1 day'"),
    _all("PLAIN", "the engine's time is gone", "DELETE FROM engine_state"),
]  # fmt: skip

TRUE: list[Mutation] = [
    _all("", "nothing at all", "SELECT 1"),
    _all("", "rows in another order", "CREATE TABLE moved AS SELECT * FROM klines ORDER BY md5(symbol || open_time); TRUNCATE klines; INSERT INTO klines SELECT * FROM moved; DROP TABLE moved"),
    _all("", "rows clustered", "CLUSTER klines USING klines_pkey"),
    _all("", "all rows written again", "UPDATE klines SET revision = revision"),
    _all("", "other storage", "ALTER TABLE klines SET (fillfactor = 90)"),
    _all("", "an index more", "CREATE INDEX klines_by_time ON klines (open_time)"),
    _all("", "no index but the key's", "DROP INDEX klines_unproven"),
    _all("", "no statistics", "DELETE FROM pg_statistic WHERE starelid = 'klines'::regclass"),
    _all("", "saved at another time", "UPDATE symbols SET saved_at = saved_at - interval '1 year'"),
    _all("", "corrected once more", "UPDATE klines SET revision = revision + 1 WHERE closed"),
    _all("", "an audit that found something", """UPDATE symbols SET audit = '{"until": 60000, "counts": {"burnt": 7}, "mismatches": []}'"""),
    _all("", "decimals have grown", "UPDATE symbols SET price_decimals = price_decimals + 2, quantity_decimals = quantity_decimals + 1"),
    _all("", "numbers with more zeros", "UPDATE klines SET volume = volume + 0.0000000000, close = close + 0.000000"),
    _all("", "another open time of the 3d grid", "UPDATE symbols SET grid_3d = grid_3d + interval '30 days'"),
    _all("", "another session's time zone", "SET LOCAL timezone = 'Asia/Kathmandu'"),
    _all("", "times in another style", "SET LOCAL datestyle = 'German, DMY'"),
    _all("", "a symbol was removed this moment", "UPDATE symbols SET active = false WHERE symbol = 'PLAIN'"),
    _all("", "a symbol that never traded is gone", "DELETE FROM symbols WHERE symbol = 'NEVER'"),
    _all("", "a symbol that never traded was listed", "INSERT INTO symbols SELECT 'LISTED', price_decimals, quantity_decimals, stream, active, grid_3d, seam_time, 77, gaps, now(), lacking, seam_time FROM symbols WHERE symbol = 'NEVER'"),
    _all("", "a symbol with all its klines is gone", "DELETE FROM klines WHERE symbol = 'PLAIN'; DELETE FROM symbols WHERE symbol = 'PLAIN'"),
    _all("", "a symbol has another name", "UPDATE klines SET symbol = 'NAMED' WHERE symbol = 'PLAIN'; UPDATE symbols SET symbol = 'NAMED' WHERE symbol = 'PLAIN'"),
    _all("", "another stream", "UPDATE symbols SET stream = symbol || '@trade'"),
    _all("", "the engine's time is seconds later", "UPDATE engine_state SET exchange_time = exchange_time + interval '25 s'"),
    _all("", "the engine's time is minutes later: other symbols are saved first", "UPDATE engine_state SET exchange_time = exchange_time + interval '2 min'"),
    _all("", "an id came whose trade is void, in all open klines", "UPDATE klines SET first_id = CASE id_count WHEN 0 THEN m.id ELSE first_id END, last_id = m.id, id_count = id_count + 1 FROM (SELECT last_id + 1 AS id FROM symbols WHERE symbol = 'PLAIN') AS m WHERE symbol = 'PLAIN' AND NOT closed; UPDATE symbols SET last_id = last_id + 1 WHERE symbol = 'PLAIN'"),
    _all("", "a trade came, in all open klines", "UPDATE klines SET first_id = CASE id_count WHEN 0 THEN m.id ELSE first_id END, last_id = m.id, id_count = id_count + 1, open_id = CASE trade_count WHEN 0 THEN m.id ELSE open_id END, close_id = m.id, trade_count = trade_count + 2, volume = volume + 0.5, quote_volume = quote_volume + 0.5 * close FROM (SELECT last_id + 1 AS id FROM symbols WHERE symbol = 'PLAIN') AS m WHERE symbol = 'PLAIN' AND NOT closed; UPDATE symbols SET last_id = last_id + 1 WHERE symbol = 'PLAIN'"),
    _all("", "ids that were unexplained are void in the exchange's klines: adopted before them", "UPDATE symbols SET unexplained = '[[-9, -5, 0, 1000, \"adopted\"]]'::jsonb || unexplained"),
    _all("", "fewer of the exchange's months are kept", "DELETE FROM klines WHERE symbol = 'BEGUN' AND interval = '1m' AND source = 'exchange' AND open_time < '2026-03-30 23:00+00'"),
]  # fmt: skip
"""The last: nothing shows that more were there once. A first start fetches some of each interval."""
