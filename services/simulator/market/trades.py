"""Aggregates of the tape as trades of a coin: elementwise, for one coin's minute or for all coins' last milliseconds.

Decides when each happens, what it says, and how it falls apart into fills. Knows no day and no cursor: an id, its index
in the minute and the minute's base price come in, for one coin or for as many as there are ids.
"""

import numpy as np

from services.simulator.grid import MINUTE_MS
from services.simulator.market.coins import Coin
from services.simulator.market.moments import MASK, OPENING_MS
from services.simulator.market.tape import Integers, Tape
from services.simulator.rows import AGG_ROW, MARKET, TRADE_ROW, Rows
from shared.compiled import compiled

FLUSH_MS = 50
"""Aggregates leave in steps of this."""
LATENCY_MS = 5
SPREAD_MAX_MS = 200
"""After the first of an aggregate's fills, all of them have happened."""


TRAITS = np.dtype([(name, np.int64) for name in ("tick", "swing", "lot", "delay", "phase")])
"""What of a coin its trades need."""


def traits(coins: list[Coin]) -> Rows:
    """Return TRAITS[coins]."""
    return np.array(
        [(coin.instrument.tick, coin.swing, coin.lot, coin.delay, coin.phase) for coin in coins], TRAITS
    ).reshape(-1)


def aggregates(tape: Tape, traits: Rows, owners: Integers, ids: Integers, times: Integers, ticks: Integers) -> Rows:
    """Return AGG_ROW[n]. `owners`: which of TRAITS[m] each has; `ticks`: what the price wanders around."""
    rows = np.empty(len(ids), AGG_ROW)
    _fill(rows, traits, owners, ids, times, ticks, tape.aggregates, tape.ids)
    return rows


@compiled
def _fill(
    rows: Rows,
    traits: Rows,
    owners: Integers,
    ids: Integers,
    times: Integers,
    ticks: Integers,
    taped: Rows,
    round_ids: int,
) -> None:
    for index in range(len(rows)):
        row, who, entry = rows[index], traits[owners[index]], taped[ids[index] & MASK]
        row.id = ids[index]
        row.time = times[index]
        row.price = (ticks[index] + who.swing * entry.wander) * who.tick
        row.quantity = entry.units * who.lot
        row.plain_quantity = entry.head_units * who.lot if entry.rpi else row.quantity
        row.maker = not entry.buys
        row.first = entry.first + (ids[index] >> 16) * round_ids
        row.last = row.first + entry.last_offset
        due = times[index] + who.delay - who.phase
        row.event_time = -(-due // FLUSH_MS) * FLUSH_MS + who.phase + LATENCY_MS


def single_trades(
    tape: Tape, who: Rows, ids: Integers, times: Integers, nexts: Integers, ticks: Integers, is_late: Integers
) -> tuple[Rows, Integers]:
    """Take aggregates apart. Return (TRADE_ROW[m] with burnt ids, the index in `ids` of the aggregate of each).

    `who`: TRAITS of each or of all; `nexts`: when the aggregate after each happens; `is_late`: its fills but the first
    happen in the next minute.
    """
    indices = ids & MASK
    counts = tape.first[indices + 1] - tape.first[indices]
    owner = np.repeat(np.arange(len(ids)), counts)
    entry = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts - tape.first[indices], counts)
    rows = np.empty(len(owner), TRADE_ROW)
    rows["id"] = entry + (ids >> 16)[owner] * tape.ids
    ordinal, kind = tape.ordinal[entry], tape.kind[entry]
    spread = np.minimum(nexts - times, who["delay"])
    rows["time"] = times[owner] + spread[owner] * ordinal // tape.fills[indices][owner]
    moved = is_late[owner] & (ordinal > 0)
    if moved.any():
        ends = (times // MINUTE_MS + 1) * MINUTE_MS
        rows["time"][moved] = (ends[owner] + np.minimum(ordinal - 1, OPENING_MS - 1))[moved]
    rows["event_time"] = (times + who["delay"] + LATENCY_MS)[owner]
    price = ((ticks + who["swing"] * tape.wander[indices]) * who["tick"])[owner]
    insured = tape.insured_units[entry]
    # The insurance fund takes over at a price that nobody trades at.
    rows["price"] = np.where(kind == MARKET, price, np.where(insured > 0, price * 2, 0))
    lot = np.broadcast_to(who["lot"], len(ids))
    rows["quantity"] = (tape.id_units[entry] + insured) * lot[owner]
    rows["kind"] = kind
    rows["maker"] = ~tape.buys[indices][owner]
    return rows, owner


def released_before(kind: str, who: Rows, now: int) -> Integers:
    """Return int64[n], the time before which aggregates of TRAITS[n] have left at `now` on the stream of this kind."""
    due = np.full(len(who), now - LATENCY_MS)
    if kind == "aggTrade":
        due = (due - who["phase"]) // FLUSH_MS * FLUSH_MS + who["phase"]
    return due - who["delay"] + 1
