"""Aggregates of the tape as trades of a coin: elementwise, for one coin's minute or for all coins' last milliseconds.

Decides when each happens, what it says, and how it falls apart into fills. Knows no day and no cursor: an id, its place
in the minute and the minute's base price come in, for one coin or for as many as there are ids.
"""

from typing import NamedTuple

import numpy as np

from services.simulator.coins import Coin
from services.simulator.grid import MINUTE_MS
from services.simulator.rows import AGG_ROW, MARKET, TRADE_ROW, Rows
from services.simulator.tape import MASK, Integers, Tape

OPENING_MS = 8
"""With quirks, the beginning of a minute that belongs to the late fills of the one before."""
FLUSH_MS = 50
"""Aggregates leave in steps of this."""
LATENCY_MS = 5


class Manner(NamedTuple):
    """What of a coin its trades need: numbers, or int64[n] for the coins of n trades."""

    tick: Integers
    swing: Integers
    lot: Integers
    delay: Integers
    phase: Integers

    def of(self, owners: Integers) -> "Manner":
        return Manner(*(column[owners] for column in self))


def manner(coin: Coin) -> Manner:
    return Manner(coin.instrument.tick, coin.swing, coin.lot, coin.delay, coin.phase)


def manners(coins: list[Coin]) -> Manner:
    columns = np.array([manner(coin) for coin in coins], np.int64).reshape(-1, len(Manner._fields))
    return Manner(*columns.T)


def offsets(
    tape: Tape, quirks: bool, ids: Integers, places: Integers, totals: Integers, warps: Integers, late: Integers
) -> Integers:
    """Return when, in ms from the minute's start, aggregates happen that are at `places` of `totals` in it."""
    times = tape.times(ids, places, totals, warps)
    if not quirks:
        return times
    times = np.maximum(times, OPENING_MS)
    return np.where((places == totals - 1) & (late > 0), np.maximum(times, late), times)


def aggregates(tape: Tape, who: Manner, ids: Integers, times: Integers, ticks: Integers) -> Rows:
    """Return AGG_ROW[n]. `ticks`: what the price wanders around."""
    places = ids & MASK
    rows = np.empty(len(ids), AGG_ROW)
    rows["id"] = ids
    rows["time"] = times
    rows["price"] = (ticks + who.swing * tape.wander[places]) * who.tick
    rows["quantity"] = tape.units[places] * who.lot
    rows["plain_quantity"] = np.where(tape.rpi[places], tape.head_units[places] * who.lot, rows["quantity"])
    rows["maker"] = ~tape.buys[places]
    rows["first"] = tape.trade_ids(ids)
    rows["last"] = rows["first"] + tape.last_offset[places]
    due = times + who.delay - who.phase
    rows["event_time"] = -(-due // FLUSH_MS) * FLUSH_MS + who.phase + LATENCY_MS
    return rows


def single_trades(
    tape: Tape, who: Manner, ids: Integers, times: Integers, nexts: Integers, ticks: Integers, is_late: Integers
) -> tuple[Rows, Integers]:
    """Take aggregates apart. Return (TRADE_ROW[m] with burnt ids, the place among `ids` of the aggregate of each).

    `nexts`: when the aggregate after each happens; `is_late`: its fills but the first happen in the next minute.
    """
    places = ids & MASK
    counts = tape.first[places + 1] - tape.first[places]
    owner = np.repeat(np.arange(len(ids)), counts)
    entry = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts - tape.first[places], counts)
    rows = np.empty(len(owner), TRADE_ROW)
    rows["id"] = entry + (ids >> 16)[owner] * tape.ids
    ordinal, kind = tape.ordinal[entry], tape.kind[entry]
    spread = np.minimum(nexts - times, who.delay)
    rows["time"] = times[owner] + spread[owner] * ordinal // tape.fills[places][owner]
    moved = is_late[owner] & (ordinal > 0)
    if moved.any():
        ends = (times // MINUTE_MS + 1) * MINUTE_MS
        rows["time"][moved] = (ends[owner] + np.minimum(ordinal - 1, OPENING_MS - 1))[moved]
    rows["event_time"] = (times + who.delay + LATENCY_MS)[owner]
    price = ((ticks + who.swing * tape.wander[places]) * who.tick)[owner]
    insured = tape.insured_units[entry]
    # The insurance fund takes over at a price that nobody trades at.
    rows["price"] = np.where(kind == MARKET, price, np.where(insured > 0, price * 2, 0))
    lot = np.broadcast_to(who.lot, len(ids))
    rows["quantity"] = (tape.id_units[entry] + insured) * lot[owner]
    rows["kind"] = kind
    rows["maker"] = ~tape.buys[places][owner]
    return rows, owner


def released_before(kind: str, who: Manner, now: Integers) -> Integers:
    """Return the time before which aggregates have left the exchange at `now`, on the stream of this kind."""
    due = now - LATENCY_MS
    if kind == "aggTrade":
        due = (due - who.phase) // FLUSH_MS * FLUSH_MS + who.phase
    return due - who.delay + 1
