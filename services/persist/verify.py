"""The proof of a stored history: SQL over the whole table, and the exact places where it does not hold.

Decides what must be true of klines that every trade was applied to exactly once. Reads one consistent state of the
database and changes nothing. Rows taken over from the exchange's own klines carry no ids, so they are held to
everything but the checks of ids.
"""

from collections.abc import Callable
from typing import NamedTuple

from services.persist.store import Connection
from shared.interval import CHILD_INDEX, INTERVAL_NAMES

PLACES_MAX = 20
"""Places told of one check; all are counted."""
SYMBOLS_A_STEP = 10


class Check(NamedTuple):
    name: str
    says: str
    """What holds if nothing is found."""
    query: str
    """Takes an array of symbols; returns (symbol, interval, open_time, what is wrong), one row a place."""


class Result(NamedTuple):
    check: Check
    failures: int
    places: list[str]
    """The first `PLACES_MAX` of them, in words."""


_CHILDREN = ", ".join(
    f"('{INTERVAL_NAMES[parent]}', '{INTERVAL_NAMES[child]}')" for parent, child in enumerate(CHILD_INDEX) if child >= 0
)

_SUMS = ("volume", "quote_volume", "trade_count", "taker_buy_volume", "taker_buy_quote_volume")

CHECKS = (
    Check(
        "invariants",
        "each kline can be: low <= open, close <= high, taker's part <= all, no trades no volume",
        """
        SELECT symbol, interval, open_time, concat_ws(' ', open, high, low, close, volume)
        FROM klines WHERE symbol = ANY(%(symbols)s) AND NOT (
            low <= LEAST(open, close) AND high >= GREATEST(open, close) AND open_time < close_time
            AND 0 <= taker_buy_volume AND taker_buy_volume <= volume
            AND 0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume
            AND (closed OR NOT final)
            AND trade_count >= 0 AND (trade_count > 0 OR (volume = 0 AND quote_volume = 0 AND high = low))
            AND (source <> 'trades' OR trade_count = 0
                OR first_id <= open_id AND open_id <= close_id AND close_id <= last_id))
        """,
    ),
    Check(
        "no gap in time",
        "klines follow each other, with none missing between the first and the last",
        """
        SELECT symbol, interval, open_time, concat('the one before ends ', before) FROM (
            SELECT symbol, interval, open_time,
                lag(close_time) OVER (PARTITION BY symbol, interval ORDER BY open_time) AS before
            FROM klines WHERE symbol = ANY(%(symbols)s)
        ) AS k WHERE before + interval '1 millisecond' <> open_time
        """,
    ),
    Check(
        "no missing id in a kline",
        "each kline holds every id between its first and its last",
        """
        SELECT symbol, interval, open_time, concat(id_count, ' ids of ', first_id, ' to ', last_id)
        FROM klines WHERE symbol = ANY(%(symbols)s) AND id_count > 0 AND id_count <> last_id - first_id + 1
        """,
    ),
    Check(
        "ids chain",
        "each kline with ids begins at the id after the last one before it",
        """
        SELECT symbol, interval, open_time, concat('begins at id ', first_id, ' after ', before) FROM (
            SELECT symbol, interval, open_time, first_id, source,
                lag(last_id) OVER chain AS before, lag(id_count) OVER chain AS ids_before
            FROM klines WHERE symbol = ANY(%(symbols)s) AND (id_count > 0 OR source <> 'trades')
            WINDOW chain AS (PARTITION BY symbol, interval ORDER BY open_time)
        ) AS k WHERE source = 'trades' AND ids_before > 0 AND first_id <> before + 1
        """,
    ),
    Check(
        "longer klines are merged",
        "each longer kline is the merge of the shorter ones in it, where all of those are stored",
        f"""
        SELECT p.symbol, p.interval, p.open_time, concat(child, ' make volume ', c.volume,
            ' of ', c.trade_count, ' trades, it has ', p.volume, ' of ', p.trade_count)
        FROM (VALUES {_CHILDREN}) AS family (parent, child)
        JOIN klines p ON p.interval = parent AND p.symbol = ANY(%(symbols)s)
        CROSS JOIN LATERAL (
            SELECT min(open_time) AS begins, max(close_time) AS ends, count(*) AS number,
                max(high) FILTER (WHERE trade_count > 0) AS high, min(low) FILTER (WHERE trade_count > 0) AS low,
                (array_agg(open ORDER BY open_time) FILTER (WHERE trade_count > 0))[1] AS open,
                (array_agg(close ORDER BY open_time DESC) FILTER (WHERE trade_count > 0))[1] AS close,
                sum(extract(epoch FROM close_time - open_time) * 1000 + 1) AS covered,
                sum(id_count) AS id_count, {", ".join(f"sum({name}) AS {name}" for name in _SUMS)}
            FROM klines WHERE symbol = p.symbol AND interval = child
                AND open_time BETWEEN p.open_time AND p.close_time
        ) AS c
        WHERE c.begins = p.open_time AND (c.ends = p.close_time OR NOT p.closed)
            AND c.covered = extract(epoch FROM c.ends - c.begins) * 1000 + 1
            AND ({" OR ".join(f"c.{name} <> p.{name}" for name in _SUMS)}
                OR p.source = 'trades' AND c.id_count <> p.id_count
                OR p.trade_count > 0 AND (c.open, c.high, c.low, c.close) <> (p.open, p.high, p.low, p.close))
        """,
    ),
    Check(
        "frontiers",
        "each symbol's last id is that of its newest kline, and no id below it is missing",
        """
        SELECT symbol, '', saved_at, concat('last id ', s.last_id, ', newest kline ', newest, ', missing ', gaps)
        FROM symbols s CROSS JOIN LATERAL (
            SELECT max(k.last_id) AS newest FROM klines k
            WHERE k.symbol = s.symbol AND interval = '1m' AND id_count > 0
        ) AS k WHERE symbol = ANY(%(symbols)s) AND (NOT isempty(gaps) OR newest > s.last_id)
        """,
    ),
)


def verify(connection: Connection, progress: Callable[[str, int, int], None]) -> list[Result]:
    """Hold the whole history to every check, as one consistent state. Raises psycopg.Error.

    `progress` hears of each step: the check's name, symbols done, symbols in all.
    """
    results = []
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        symbols = [str(row[0]) for row in connection.execute("SELECT symbol FROM symbols ORDER BY symbol")]
        for check in CHECKS:
            failures = 0
            places: list[str] = []
            for begin in range(0, len(symbols), SYMBOLS_A_STEP):
                progress(check.name, begin, len(symbols))
                found = _ask(connection, check, symbols[begin : begin + SYMBOLS_A_STEP])
                failures += len(found)
                places += found[: PLACES_MAX - len(places)]
            results.append(Result(check, failures, places))
    return results


def _ask(connection: Connection, check: Check, symbols: list[str]) -> list[str]:
    found = connection.execute(check.query, {"symbols": symbols}).fetchall()
    return [f"{' '.join(filter(None, place))} {moment:%Y-%m-%d %H:%M}: {what}" for *place, moment, what in found]
