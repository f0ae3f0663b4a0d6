"""The database against the simulator's truth: every kline of every interval, every field, every id."""

import json
import urllib.request
from collections import Counter
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import psycopg

from harness.processes import wait_for
from services.persist.verify import verify
from shared.config import Config
from shared.interval import INTERVAL_NAMES
from shared.postgres import database_url

FIELDS = [
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trade_count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
    "first_id",
    "last_id",
]
ROWS = 130
"""Klines an interval: more than the engine begins with and a test goes on for."""
_QUERY = f"""
SELECT symbol, interval, (extract(epoch FROM open_time) * 1000)::int8, (extract(epoch FROM close_time) * 1000)::int8,
    closed, final, id_count, {", ".join(FIELDS)}
FROM klines
"""


def ask(config: Config, path: str, method: str = "GET", **parameters: object) -> Any:
    """Ask the simulator something of its own (`/simulator/...`)."""
    url = f"http://{config.simulator.host}:{config.simulator.port}/simulator/{path}?{urlencode(parameters)}"
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
        return json.load(answer)


def settle(config: Config, timeout: float = 60.0) -> None:
    """Let the market stand still, and wait until all that was traded is in the database."""
    ask(config, "pause", "POST")
    kind = config.exchange.stream
    wanted = {symbol: ids[kind] for symbol, ids in ask(config, "status")["last_ids"].items() if ids[kind] is not None}

    lacking: dict[str, object] = {}

    def saved() -> bool:
        with psycopg.connect(database_url(config)) as connection:
            rows = connection.execute("SELECT symbol, last_id, gaps::text FROM symbols WHERE active").fetchall()
        known = {symbol: (last_id, gaps) for symbol, last_id, gaps in rows}
        lacking.clear()
        lacking.update({s: (known.get(s), want) for s, want in wanted.items() if known.get(s) != (want, "{}")})
        return not lacking

    try:
        wait_for("the database to have everything", saved, timeout)
    except AssertionError as error:
        raise AssertionError(
            f"{error}; {len(lacking)} symbols lack something: {dict(list(lacking.items())[:5])}"
        ) from None


def unproven(config: Config) -> list[str]:
    """Return what `klagg verify` finds, the failures of each check."""
    with psycopg.connect(database_url(config), autocommit=True) as connection:
        results = verify(connection, lambda *_: None)
    return [f"{result.check.name}: {example}" for result in results for example in result.examples]


def audited(config: Config) -> dict[str, int]:
    """Return what the standing audit has counted, of all symbols."""
    counts: Counter[str] = Counter()
    with psycopg.connect(database_url(config)) as connection:
        for (audit,) in connection.execute("SELECT audit FROM symbols"):
            counts.update(audit.get("counts", {}))
    return dict(counts)


def differences(config: Config) -> tuple[list[str], int]:
    """Compare the whole table and return (what differs, how many klines were compared)."""
    stored: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    with psycopg.connect(database_url(config)) as connection:
        seams: dict[str, int] = dict(
            connection.execute("SELECT symbol, (extract(epoch FROM seam_time) * 1000)::int8 FROM symbols").fetchall()
        )
        for symbol, interval, open_time, close_time, closed, final, id_count, *values in connection.execute(_QUERY):
            row = dict(zip(FIELDS, values, strict=True))
            row |= {"close_time": close_time, "closed": closed, "final": final, "id_count": id_count}
            stored.setdefault(symbol, {}).setdefault(interval, {})[open_time] = row
    found: list[str] = []
    compared = 0
    for symbol in sorted(stored):
        truth = ask(config, "truth", symbol=symbol, stream=config.exchange.stream, since=seams[symbol], rows=ROWS)
        newest = max([row["open_time"] for row in truth["klines"]["1m"] if row["first_id"] is not None], default=0)
        # Where times have fallen, klines are proven so much later.
        newest -= truth["fall_ms"]
        for interval in INTERVAL_NAMES:
            have = stored[symbol].get(interval, {})
            name, spans = f"{symbol} {interval}", (seams[symbol], truth["time"], newest)
            part, count = _compare(name, truth["klines"][interval], have, *spans)
            found += part
            compared += count
    return found, compared


def _compare(
    name: str, truth: list[dict[str, Any]], have: dict[int, dict[str, Any]], seam: int, now: int, newest: int
) -> tuple[list[str], int]:
    """Compare one symbol's klines of one interval from the first that is stored.

    `seam`: from there on ids count; what is proven by ids before it, because the symbol was reseeded, keeps them.
    `newest`: the open time of the last minute with a trade, which proves every kline that ended before it.
    """
    if not have:
        # Without any trade there is no price, and no kline.
        return ([f"{name}: {len(truth)} klines are missing"] if truth else []), 0
    found = []
    wanted = {row["open_time"]: row for row in truth if row["open_time"] >= min(have)}
    for open_time in sorted(wanted.keys() | have.keys()):
        want, got = wanted.get(open_time), have.get(open_time)
        if got is None:
            found.append(f"{name} {open_time}: missing")
        elif want is None:
            # The engine's clock runs on while the market stands still; nothing can have been traded since.
            if open_time <= now or got["trade_count"]:
                found.append(f"{name} {open_time}: not in the truth: {got}")
        else:
            if open_time < seam and got["id_count"]:
                want = want | _own_ids(want, got)
            found += _differences(f"{name} {open_time}", want, got, now, newest)
    return found, len(wanted)


def _own_ids(want: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of a kline from before its seam, as far as the truth has nothing to say to them."""
    last_id = want["last_id"] if want["last_id"] is not None else int(got["last_id"])
    count = int(got["id_count"])
    # Fewer than there are between them, where a trade was late.
    return {"first_id": min(last_id - count + 1, int(got["first_id"])), "last_id": last_id, "id_count": count}


def _differences(name: str, want: dict[str, Any], got: dict[str, Any], now: int, newest: int) -> list[str]:
    expected = {field: Decimal(want["count" if field == "trade_count" else field] or 0) for field in FIELDS}
    different: dict[str, tuple[Any, Any]] = {
        field: (got[field], value) for field, value in expected.items() if got[field] != value
    }
    if got["close_time"] != want["close_time"]:
        different["close_time"] = (got["close_time"], want["close_time"])
    if want["first_id"] is not None and got["id_count"] != want["id_count"]:
        different["id_count"] = (got["id_count"], want["id_count"])
    if want["close_time"] < now and not got["closed"]:
        different["closed"] = (False, True)
    if want["close_time"] < newest and not got["final"]:
        different["final"] = (False, True)
    return [f"{name}: {different} (have, want)"] if different else []
