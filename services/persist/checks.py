"""What must be true of a stored history if every trade was applied exactly once, as SQL.

Decides what is a failure and how it is worded. Knows no trade: what cannot be seen in the tables stands in verify.py.

Each query takes an array of symbols and yields (symbol, interval, open time as text, what is wrong) of each failure; a
row without a symbol is a remark: (null, what was counted, null, how many).

The rules of ids: a *segment* is the rows of a symbol and interval from one that has figures of the exchange's own,
which carry no ids, to before the next. Trade times may fall from one id to the next, so that ids of neighbouring rows
overlap: rows whose ranges overlap are one *part* of a segment, and what holds is said of parts.
"""

from typing import NamedTuple

from shared.decimals import INT64_MAX
from shared.interval import INTERVALS
from shared.kline import QUOTE_MAX

LAG_MAX = "5 minutes"
"""A symbol's rows may be behind the engine's time: symbols are saved in parts, in seconds where the store is well."""
AHEAD_MAX = "30 seconds"
"""A trade so far ahead of the exchange's clock opens its minute (the engine's `FUTURE_MAX_MS`)."""
FALL_MAX = "5 minutes"
"""When a trade's time falls back, what is proven goes back, so far at the most, and final rows stay final."""
UNEXPLAINED_MAX = 1_000
"""Ranges that a symbol's mark remembers. Where it has so many it may have forgotten older ones, which rows show."""
TRUNCATED = "0.00000001"
"""The exchange's own klines of spot truncate the quote of each trade to so much."""
MONDAY = "1970-01-05 00:00+00"
"""A midnight, and a Monday: all fixed intervals but 3d are counted from it."""


class Check(NamedTuple):
    name: str
    says: str
    """What holds if nothing is found."""
    query: str


_SPANS = ", ".join(
    f"('{name}', {length} * interval '1 ms', '{child}')" if length else f"('{name}', NULL, '{child}')"
    for name, length, child in INTERVALS
)
_FAMILIES = ", ".join(f"('{name}', '{child}')" for name, _, child in INTERVALS if child)
SUMS = ("volume", "quote_volume", "trade_count", "taker_buy_volume", "taker_buy_quote_volume")

_OWN = "klines WHERE symbol = ANY(%(symbols)s)"
_NEWEST = """
    SELECT symbol, max(open_time) AS minute FROM klines
    WHERE symbol = ANY(%(symbols)s) AND interval = '1m' GROUP BY symbol
"""


def _broken(rules: dict[str, str]) -> str:
    """Return SQL that names the rules which do not hold; empty if all do. What is unknown does not hold."""
    named = (f"CASE WHEN ({rule}) IS NOT TRUE THEN concat('{says}') END" for says, rule in rules.items())
    return f"concat_ws('; ', {', '.join(named)})"


def _opens(interval: str, time: str) -> str:
    """Return SQL for where the kline of an interval opens that a time falls into; `s` is its symbol, `i` a span."""
    origin = f"CASE {interval} WHEN '3d' THEN grid_3d ELSE '{MONDAY}' END"
    return f"CASE {interval} WHEN '1M' THEN date_trunc('month', {time}) ELSE date_bin(i.length, {time}, {origin}) END"


def _told(row: str) -> str:
    """Return what shows the figures of a row, inside of a `concat('...')`."""
    prices = ", ' ', ".join(f"({row}).{name}" for name in ("open", "high", "low", "close"))
    return (
        f"prices ', {prices}, ', volume ', ({row}).volume, ' of ', ({row}).trade_count, ' trades, ', ({row}).id_count,"
        f" ' ids of ', ({row}).first_id, ' to ', ({row}).last_id, '"
    )


_MOST = {
    name: f"ltrim(replace(trim_scale({{}})::text, '.', ''), '0') = '{QUOTE_MAX if 'quote' in name else INT64_MAX}'"
    for name in SUMS
    if name != "trade_count"
}
"""SQL for whether a volume is the most that fits, in decimals that its symbol had at some time."""
_SATURATED = f"NOT saturated OR NOT final AND ({' OR '.join(most.format(name) for name, most in _MOST.items())})"
_SAME_SUMS = " AND ".join(
    f"(p.{name} = c.{name} OR p.saturated AND p.{name} < c.{name} AND {_MOST.get(name, 'false').format('p.' + name)})"
    for name in SUMS
)
_FITS = "scale(trim_scale({})) <= {}"
_NO_IDS = "id_count = 0 AND first_id = 0 AND last_id = 0 AND open_id = 0 AND close_id = 0"
_SLACK = f"CASE WHEN source = 'trades' THEN 0 ELSE trade_count * {TRUNCATED} END"
_ROW_RULES = {
    "a price is not above 0": "LEAST(open, high, low, close) > 0",
    "low <= open, close <= high does not hold": "low <= LEAST(open, close) AND high >= GREATEST(open, close)",
    "volumes are not: 0 <= the part in which the taker bought <= all": """
        0 <= taker_buy_volume AND taker_buy_volume <= volume
        AND 0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume AND trade_count >= 0""",
    "the quote volume is not the volume at prices between low and high": f"""
        saturated OR quote_volume BETWEEN low * volume - {_SLACK} AND high * volume
        AND taker_buy_quote_volume BETWEEN low * taker_buy_volume - {_SLACK} AND high * taker_buy_volume
        AND quote_volume - taker_buy_quote_volume BETWEEN low * (volume - taker_buy_volume) - {_SLACK}
            AND high * (volume - taker_buy_volume) + {_SLACK}""",
    "it has no trades, but a volume or two prices": "trade_count > 0 OR volume = 0 AND quote_volume = 0 AND high = low",
    "it has one trade, but two prices": "trade_count <> 1 OR high = low",
    "it has two trades, but three prices": """
        trade_count <> 2 OR high = GREATEST(open, close) AND low = LEAST(open, close)""",
    "there is no such source": "source IN ('trades', 'exchange', 'both')",
    "its ids cannot be": f"""CASE source
        WHEN 'exchange' THEN {_NO_IDS}
        WHEN 'both' THEN id_count BETWEEN 1 AND last_id - first_id + 1 AND first_id >= 0
            AND (open_id = 0 OR open_id BETWEEN first_id AND last_id)
            AND (close_id = 0 OR close_id BETWEEN first_id AND last_id)
        ELSE trade_count = 0 AND {_NO_IDS}
            OR id_count BETWEEN 1 AND last_id - first_id + 1 AND first_id >= 0
                AND CASE trade_count WHEN 0 THEN open_id = 0 AND close_id = 0
                    ELSE first_id <= open_id AND open_id <= close_id AND close_id <= last_id
                        AND (open_id < close_id AND trade_count > 1 OR open_id = close_id AND high = low) END END""",
    "it is final and unexplained, or final and not closed": "NOT (final AND unexplained) AND (closed OR NOT final)",
    "it is saturated, and final or none of its volumes is the most that fits": _SATURATED,
    "its revision cannot be": "revision = 0 OR revision > 0 AND closed",
    "it has more decimals than its symbol": " AND ".join(
        [_FITS.format(name, "price_decimals") for name in ("open", "high", "low", "close")]
        + [_FITS.format(name, "quantity_decimals") for name in ("volume", "taker_buy_volume")]
        + [
            _FITS.format(name, "price_decimals + quantity_decimals")
            for name in ("quote_volume", "taker_buy_quote_volume")
        ]
    ),
}

_MARK_RULES = {
    "ids are missing: ', gaps, '": "isempty(gaps)",
    "klines are still to come from the exchange: ', lacking, '": "lacking = '[]'",
    "it has traded, but no klines": "minute IS NOT NULL OR proven_time <= seam_time",
    "its last id is ', last_id, ', the newest in its klines ', newest_id, '":
        "newest_id IS NULL OR last_id = newest_id + unexplained_behind OR NOT active AND last_id > newest_id",
    "it is proven up to ', proven_time, ', and its newest trade is of ', newest_trade, '":
        "proven_time <= GREATEST(seam_time, newest_trade + interval '1 minute')",
    "its seam, ', seam_time, ', is no minute, or behind what is proven":
        "seam_time = date_bin('1 minute', seam_time, 'epoch') AND seam_time <= proven_time",
    "the minute before its seam, ', seam_time, ', is made of trades":
        "NOT EXISTS (SELECT FROM klines WHERE symbol = m.symbol AND interval = '1m' AND source = 'trades'"
        " AND open_time = m.seam_time - interval '1 minute')",
    "its 3d klines open at no midnight: ', grid_3d, '": "grid_3d = date_trunc('day', grid_3d)",
    "its decimals cannot be": "price_decimals >= 0 AND quantity_decimals >= 0",
    "its klines end with ', minute, ', and the engine has been at ', exchange_time, '": f"""
        minute IS NULL OR minute <= exchange_time + interval '{AHEAD_MAX}'
            AND (NOT active OR minute + interval '1 minute' > exchange_time - interval '{LAG_MAX}')""",
}  # fmt: skip


CHECKS = (
    Check(
        "each kline can be",
        "prices above 0 within low and high, volumes at these prices, ids, decimals and flags that go together",
        f"""
        SELECT symbol, interval, open_time::text, broken || concat(': prices ', open, ' ', high, ' ', low, ' ', close,
            ', volume ', volume, ', quote ', quote_volume, ', trades ', trade_count,
            ', ids ', first_id, ' to ', last_id)
        FROM klines LEFT JOIN (SELECT symbol, price_decimals, quantity_decimals FROM symbols) AS s USING (symbol)
        CROSS JOIN LATERAL (SELECT {_broken(_ROW_RULES)} AS broken) AS b
        WHERE symbol = ANY(%(symbols)s) AND broken <> ''
        """,
    ),
    Check(
        "time grid",
        "each kline opens on its interval's grid, and ends where the next one opens",
        f"""
        SELECT symbol, k.interval, open_time::text, CASE WHEN i.interval IS NULL THEN 'there is no such interval'
            ELSE concat('ends ', close_time, ', its place is ', opens, ' to before ', ends) END
        FROM klines k LEFT JOIN symbols s USING (symbol)
        LEFT JOIN (VALUES {_SPANS}) AS i (interval, length, child) ON i.interval = k.interval
        CROSS JOIN LATERAL (SELECT {_opens("k.interval", "open_time")} AS opens) AS o
        CROSS JOIN LATERAL (SELECT opens + coalesce(length, interval '1 month') AS ends) AS e
        WHERE symbol = ANY(%(symbols)s)
            AND (i.interval IS NOT NULL AND open_time = opens AND close_time = ends - interval '1 ms') IS NOT TRUE
        """,
    ),
    Check(
        "no gap in time",
        "klines follow each other, with none missing between the first and the last",
        f"""
        SELECT symbol, interval, open_time::text, concat('the one before ends ', before) FROM (
            SELECT symbol, interval, open_time,
                lag(close_time) OVER (PARTITION BY symbol, interval ORDER BY open_time) AS before
            FROM {_OWN}
        ) AS k WHERE before + interval '1 millisecond' <> open_time
        """,
    ),
    Check(
        "intervals go together",
        "each interval has klines, begins no later than the shorter ones in it, and ends with the newest minute",
        f"""
        WITH ends AS (
            SELECT symbol, interval, min(open_time) AS begins, max(open_time) AS opens, max(close_time) AS ends
            FROM {_OWN} GROUP BY symbol, interval
        )
        SELECT symbol, i.interval, k.opens::text, concat('begins ', k.begins, ' and ends ', k.ends,
            '; ', child, ' begins ', c.begins, ', the newest minute is ', minute)
        FROM ({_NEWEST}) AS newest CROSS JOIN (VALUES {_SPANS}) AS i (interval, length, child)
        LEFT JOIN ends AS k USING (symbol, interval) LEFT JOIN ends AS c USING (symbol)
        WHERE (i.child = c.interval OR i.child = '' AND c.interval = i.interval)
            AND (minute BETWEEN k.opens AND k.ends AND k.begins <= c.begins) IS NOT TRUE
        UNION ALL
        SELECT symbol, interval, min(opens)::text, 'has klines, but no minutes' FROM ends
        WHERE symbol NOT IN (SELECT symbol FROM ({_NEWEST}) AS newest) GROUP BY symbol, interval
        """,
    ),
    Check(
        "closed",
        "what had ended when its symbol was saved is closed, and nothing else",
        f"""
        SELECT symbol, interval, open_time::text, concat('ends ', close_time, ', is ',
            CASE WHEN NOT closed THEN 'not ' END, 'closed, and the newest minute is ', minute)
        FROM klines JOIN ({_NEWEST}) AS newest USING (symbol)
        LEFT JOIN symbols USING (symbol) LEFT JOIN engine_state ON true
        WHERE symbol = ANY(%(symbols)s) AND (CASE WHEN close_time < minute THEN closed
            ELSE NOT closed OR NOT active AND close_time < exchange_time END) IS NOT TRUE
        """,
    ),
    Check(
        "final",
        "what ended before its symbol's proven time is final, unexplained or saturated; later the exchange's is final",
        f"""
        SELECT symbol, interval, open_time::text, concat('ends ', close_time, ', is ',
            CASE WHEN NOT final THEN 'not ' END, 'final, and proven is what was before ', proven_time)
        FROM klines JOIN symbols s USING (symbol) CROSS JOIN LATERAL (
            SELECT EXISTS (SELECT FROM klines WHERE symbol = s.symbol AND interval = '1m' AND revision > 0
                AND open_time > proven_time - interval '{FALL_MAX}') AS corrected
        ) AS c
        WHERE symbol = ANY(%(symbols)s) AND CASE WHEN close_time < proven_time
            THEN closed AND NOT (final OR klines.unexplained OR saturated) AND lacking = '[]'
            ELSE final AND source <> 'exchange' AND NOT audited
                AND NOT (corrected AND close_time < proven_time + interval '{FALL_MAX}') END
        """,
    ),
    Check(
        "flat klines",
        "a kline without trades has the close before it",
        f"""
        SELECT symbol, interval, open_time::text,
            concat('is at ', close, ' without a trade, the one before at ', before)
        FROM (
            SELECT symbol, interval, open_time, close, trade_count,
                lag(close) OVER (PARTITION BY symbol, interval ORDER BY open_time) AS before
            FROM {_OWN}
        ) AS k WHERE trade_count = 0 AND before <> close
        """,
    ),
    Check(
        "no id is missing or twice",
        "from kline to kline every id is there once, but for those that are told as unexplained or missing",
        f"""
        WITH named AS (
            SELECT symbol, u.first_id, u.last_id, timestamptz 'epoch' + from_time * interval '1 ms' AS from_time,
                timestamptz 'epoch' + GREATEST(from_time, to_time) * interval '1 ms' AS to_time
            FROM symbols CROSS JOIN LATERAL (SELECT (u ->> 0)::int8 AS first_id, (u ->> 1)::int8 AS last_id,
                (u ->> 2)::int8 AS from_time, (u ->> 3)::int8 AS to_time
                FROM jsonb_array_elements(unexplained) AS u) AS u
            WHERE symbol = ANY(%(symbols)s)
            UNION ALL SELECT symbol, lower(gap), upper(gap) - 1, '-infinity', 'infinity'
            FROM symbols CROSS JOIN unnest(gaps) AS gap WHERE symbol = ANY(%(symbols)s)
        ), segments AS (
            SELECT symbol, interval, open_time, close_time, first_id, last_id, id_count, count(*)
                FILTER (WHERE source <> 'trades') OVER (PARTITION BY symbol, interval ORDER BY open_time) AS segment
            FROM {_OWN}
        ), with_before AS (
            SELECT *, max(last_id) OVER (PARTITION BY symbol, interval, segment ORDER BY first_id, last_id
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM segments WHERE id_count > 0
        ), numbered AS (
            SELECT *, count(*) FILTER (WHERE first_id > before) OVER (PARTITION BY symbol, interval, segment
                ORDER BY first_id, last_id ROWS UNBOUNDED PRECEDING) AS part
            FROM with_before
        ), parts AS (
            SELECT symbol, interval, segment, min(open_time) AS open_time, max(close_time) AS close_time,
                min(first_id) AS first_id, max(last_id) AS last_id, sum(id_count) AS ids,
                min(before) FILTER (WHERE first_id > before) AS before
            FROM numbered GROUP BY symbol, interval, segment, part
        ), counted AS (
            SELECT *, last_id - first_id + 1 - ids AS inside, first_id - before - 1 AS outside,
                lag(open_time, 1, open_time) OVER (PARTITION BY symbol, interval, segment ORDER BY first_id) AS since
            FROM parts
        )
        SELECT symbol, interval, open_time::text, concat(ids, ' ids of ', first_id, ' to ', last_id,
            ', the one before has up to ', before, '; known to be missing are ', known_inside, ' and ', known_outside)
        FROM counted c CROSS JOIN LATERAL (
            SELECT coalesce(sum(GREATEST(0, LEAST(n.last_id, c.last_id) - GREATEST(n.first_id, c.first_id) + 1))
                    FILTER (WHERE to_time >= open_time), 0) AS known_inside,
                coalesce(sum(GREATEST(0, LEAST(n.last_id, c.first_id - 1) - GREATEST(n.first_id, before + 1) + 1))
                    FILTER (WHERE before IS NOT NULL), 0) AS known_outside,
                coalesce(bool_or(c.first_id BETWEEN n.first_id AND n.last_id
                    OR c.last_id BETWEEN n.first_id AND n.last_id) FILTER (WHERE to_time >= open_time), false) AS denied
            FROM named n WHERE n.symbol = c.symbol AND from_time <= close_time + interval '{FALL_MAX}'
                AND to_time >= LEAST(since, open_time)
        ) AS k
        WHERE (inside <> 0 OR outside <> 0 OR symbol IN (SELECT symbol FROM named))
            AND (inside <> known_inside OR outside <> known_outside OR denied)
        """,
    ),
    Check(
        "ids rise with time",
        "where an id is older in time than one before it, its kline was corrected: it came when that was closed",
        f"""
        SELECT symbol, interval, open_time::text, concat('has ids up to ', last_id, ', a later one has ', later,
            ', and it was never corrected')
        FROM (
            SELECT symbol, interval, open_time, last_id, revision, min(first_id) OVER (
                PARTITION BY symbol, interval, segment ORDER BY open_time DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS later
            FROM (
                SELECT symbol, interval, open_time, first_id, last_id, id_count, revision, count(*)
                    FILTER (WHERE source <> 'trades') OVER (PARTITION BY symbol, interval ORDER BY open_time) AS segment
                FROM {_OWN}
            ) AS segments WHERE id_count > 0
        ) AS k WHERE later < last_id AND revision = 0 OR later = last_id
        """,
    ),
    Check(
        "unexplained",
        "klines that unexplained ids may belong to say so, and no others; those that were settled say how",
        f"""
        WITH named AS (
            SELECT symbol, timestamptz 'epoch' + (u ->> 2)::int8 * interval '1 ms' AS from_time,
                timestamptz 'epoch' + GREATEST((u ->> 2)::int8, (u ->> 3)::int8) * interval '1 ms' AS to_time,
                u ->> 4 AS outcome
            FROM symbols CROSS JOIN jsonb_array_elements(unexplained) AS u WHERE symbol = ANY(%(symbols)s)
        )
        SELECT symbol, interval, open_time::text, concat('unexplained ', unexplained, ', audited ', audited,
            '; ids that may belong here: open ', open_ones, ', audited ', audited_ones)
        FROM klines CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE outcome = 'open') AS open_ones,
                count(*) FILTER (WHERE outcome = 'audited') AS audited_ones
            FROM named WHERE symbol = klines.symbol AND from_time <= close_time AND to_time >= open_time
        ) AS n
        WHERE symbol = ANY(%(symbols)s) AND (symbol IN (SELECT symbol FROM named) OR unexplained OR audited)
            AND NOT (CASE WHEN unexplained THEN open_ones > 0 ELSE open_ones = 0 OR source = 'exchange' END
                AND CASE WHEN audited THEN audited_ones > 0
                    ELSE audited_ones = 0 OR unexplained OR source <> 'trades' END)
            AND (SELECT jsonb_array_length(s.unexplained) FROM symbols s WHERE s.symbol = klines.symbol)
                < {UNEXPLAINED_MAX}
        """,
    ),
    Check(
        "longer klines are merged",
        "each longer kline is the merge of the shorter ones in it: prices, sums and ids",
        f"""
        WITH children AS MATERIALIZED (
            SELECT i.interval AS parent, {_opens("i.interval", "c.open_time")} AS opens, c.*
            FROM klines c JOIN (VALUES {_SPANS}) AS i (interval, length, child) ON i.child = c.interval
            LEFT JOIN (SELECT symbol, grid_3d FROM symbols) AS s USING (symbol) WHERE symbol = ANY(%(symbols)s)
        ), by_id AS (
            SELECT p.symbol, p.interval, p.open_time, min(c.open_time) AS begins,
                bool_or(c.source <> 'trades' AND c.trade_count > 0) AS official,
                min(c.open) FILTER (WHERE c.trade_count > 0 AND c.open_id = p.open_id) AS open,
                max(c.high) FILTER (WHERE c.trade_count > 0) AS high,
                min(c.low) FILTER (WHERE c.trade_count > 0) AS low,
                min(c.close) FILTER (WHERE c.trade_count > 0 AND c.close_id = p.close_id) AS close,
                sum(c.id_count) AS id_count, coalesce(min(c.first_id) FILTER (WHERE c.id_count > 0), 0) AS first_id,
                coalesce(max(c.last_id) FILTER (WHERE c.id_count > 0), 0) AS last_id,
                coalesce(min(c.open_id) FILTER (WHERE c.trade_count > 0), 0) AS open_id,
                coalesce(max(c.close_id) FILTER (WHERE c.trade_count > 0), 0) AS close_id,
                {", ".join(f"sum(c.{name}) AS {name}" for name in SUMS)}
            FROM children c JOIN klines p ON p.symbol = c.symbol AND p.interval = parent AND p.open_time = opens
            WHERE p.source = 'trades' AND p.symbol = ANY(%(symbols)s)
            GROUP BY p.symbol, p.interval, p.open_time
        ), firsts AS (
            SELECT symbol, interval AS child, min(open_time) AS first FROM {_OWN} GROUP BY symbol, interval
        ), by_time AS (
            SELECT p.symbol, p.interval, p.open_time, c.*
            FROM (VALUES {_FAMILIES}) AS family (parent, child)
            JOIN klines p ON p.interval = parent AND p.symbol = ANY(%(symbols)s) AND p.source <> 'trades'
            JOIN firsts ON firsts.symbol = p.symbol AND firsts.child = family.child
                AND (p.open_time >= first OR p.source = 'both')
            CROSS JOIN LATERAL (
                SELECT max(open_time) AS time FROM klines WHERE symbol = p.symbol AND interval = family.child
                    AND open_time BETWEEN p.open_time AND p.close_time AND source <> 'trades'
            ) AS covered
            CROSS JOIN LATERAL (
                SELECT min(open_time) AS begins, NULL::boolean AS official,
                    (array_agg(open ORDER BY CASE WHEN time IS NULL THEN open_id END, open_time)
                        FILTER (WHERE trade_count > 0))[1] AS open,
                    max(high) FILTER (WHERE trade_count > 0) AS high, min(low) FILTER (WHERE trade_count > 0) AS low,
                    (array_agg(close ORDER BY (open_time >= time) IS NOT FALSE DESC,
                        CASE WHEN (open_time >= time) IS NOT FALSE THEN close_id END DESC NULLS LAST, open_time DESC)
                        FILTER (WHERE trade_count > 0))[1] AS close,
                    coalesce(sum(id_count) FILTER (WHERE (open_time >= time) IS NOT FALSE), 0) AS id_count,
                    coalesce(min(first_id)
                        FILTER (WHERE id_count > 0 AND (open_time >= time) IS NOT FALSE), 0) AS first_id,
                    coalesce(max(last_id)
                        FILTER (WHERE id_count > 0 AND (open_time >= time) IS NOT FALSE), 0) AS last_id,
                    0::int8 AS open_id, 0::int8 AS close_id, {", ".join(f"sum({name}) AS {name}" for name in SUMS)}
                FROM klines WHERE symbol = p.symbol AND interval = family.child
                    AND open_time BETWEEN p.open_time AND p.close_time
            ) AS c
        ), compared AS MATERIALIZED (
            SELECT p, c, CASE WHEN p.source = 'trades' AND c.official OR p.source = 'exchange' AND c.id_count > 0
                    THEN 'of two sources'
                WHEN p.source <> 'trades' AND c.begins IS DISTINCT FROM p.open_time THEN 'without all shorter ones'
                ELSE 'whole' END AS how,
                ({_SAME_SUMS} AND (p.trade_count = 0
                    OR (p.open, p.high, p.low, p.close) = (c.open, c.high, c.low, c.close))) IS TRUE AS same,
                ((p.id_count, p.first_id, p.last_id) = (c.id_count, c.first_id, c.last_id)
                    AND (p.source <> 'trades' OR (p.open_id, p.close_id) = (c.open_id, c.close_id))) IS TRUE AS same_ids
            FROM (VALUES {_FAMILIES}) AS family (parent, child)
            JOIN klines p ON p.interval = parent AND p.symbol = ANY(%(symbols)s)
            LEFT JOIN (SELECT * FROM by_id UNION ALL SELECT * FROM by_time) AS c USING (symbol, interval, open_time)
        )
        SELECT (p).symbol, (p).interval, (p).open_time::text,
            concat('the shorter ones make {_told("c")}; it has {_told("p")}')
        FROM compared
        WHERE how = 'whole' AND NOT (same AND same_ids)
            OR NOT same_ids AND how = 'without all shorter ones' AND (p).source = 'both'
        UNION ALL SELECT NULL, CASE how WHEN 'whole' THEN 'longer klines were compared'
            ELSE concat('could not be: ', how) END, NULL, count(*)::text FROM compared GROUP BY how
        """,
    ),
    Check(
        "marks of symbols",
        "what is known of a symbol fits its klines: its last id, what is proven, its seam, and that nothing is missing",
        f"""
        SELECT symbol, '', minute::text, broken FROM (
            SELECT wanted.symbol, s.symbol IS NOT NULL AS known, newest.minute, price_decimals, quantity_decimals,
                active, grid_3d, seam_time, proven_time, last_id, coalesce(gaps, '{{}}') AS gaps,
                coalesce(lacking, '[]') AS lacking, ids.*, (SELECT exchange_time FROM engine_state) AS exchange_time,
                (SELECT coalesce(sum((u ->> 1)::int8 - GREATEST((u ->> 0)::int8, newest_id + 1) + 1), 0)
                    FROM jsonb_array_elements(unexplained) AS u WHERE (u ->> 1)::int8 BETWEEN newest_id + 1 AND last_id
                ) AS unexplained_behind
            FROM unnest(%(symbols)s::text[]) AS wanted (symbol) LEFT JOIN symbols s USING (symbol)
            LEFT JOIN ({_NEWEST}) AS newest USING (symbol)
            CROSS JOIN LATERAL (
                SELECT coalesce(max(open_time), '-infinity') AS official FROM klines
                WHERE symbol = s.symbol AND interval = '1m' AND source <> 'trades'
            ) AS segment
            CROSS JOIN LATERAL (
                SELECT max(k.last_id) AS newest_id, max(open_time) AS newest_trade FROM klines k
                WHERE k.symbol = s.symbol AND interval = '1m' AND id_count > 0 AND open_time >= official
            ) AS ids
        ) AS m CROSS JOIN LATERAL (SELECT CASE WHEN known THEN {_broken(_MARK_RULES)}
            ELSE 'it is not in the table of symbols' END AS broken) AS b
        WHERE broken <> ''
        UNION ALL
        SELECT symbol, interval, open_time::text, concat('opens behind its seam, ', seam_time,
            ', and holds figures of both sources')
        FROM klines JOIN symbols USING (symbol)
        WHERE symbol = ANY(%(symbols)s) AND source = 'both' AND open_time >= seam_time
        """,
    ),
)  # fmt: skip
