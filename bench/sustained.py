"""The highest rate that the whole system sustains with nothing lost, the simulator and PostgreSQL on the same machine.

One system is started with a slow market, whose rate is then raised and kept by its pace: a market's own moments and
minutes differ by more than half. A level is sustained if the rate was kept, no reader fell far behind, and what was
under way at the end was applied within `DRAIN_MAX_S` of the market's standing still: what grows without end would take
longer. What a level has cost is mended before the next: a connection that broke leaves millions of trades to be asked
for. The level below the highest, which 5 s flatter, is then held `HOLDS` times for as long as is asked, and must
end with every id applied, and saved where persistence is on; a time that failed is reported and repeated, and after the
second one a lower level is held. What counts is what was sent and applied in real seconds, beside what sockets
alone carry.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from bench import floor
from bench.whole import BUSY_MS, ROOMS, SAVING_NEVER, SINGLE_TRADES, Whole, shares, whole
from harness.figures import spread
from harness.processes import wait_for
from harness.truth import ask, settle

FULL = 240_000
"""Aggregates/s at pace 1, about: what the first level begins with; each of the others, with what the one before had."""
QUICKER_MAX, SLOWER_MAX = 1.2, 4.0
"""By how much the pace is changed at once: a market's next minute may trade three times as much."""
START_PACE = 0.01
"""The first minute goes by slowly until all is live. Time is the trades' (`clock_speed = 0`), or rooms would expect it
to end as ours do."""
LOWEST = 100_000
STEP, STEP_BACK = 1.2, 1.1
LEVELS_MAX = 20
FAILED_MAX = 2
"""Of levels in a row, and of the times that one is held: somebody else may use the machine for a moment."""
LEVEL_S = 5.0
HOLDS = 5
SETTLE_S = 1.0
DRAIN_MAX_S = 1.0
KEPT_RATE = 0.95
"""A market that sent less than this of what was asked had to wait."""
BEHIND_MAX = 48 * 2**20
"""Bytes in front of a reader at which a level is given up, before its connection breaks."""
LOOK_S = 0.1
LAST_MAX_S = 60.0


def run(seconds: float, saving: bool, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return how the highest rate was held, and the levels on the way; `report`: is called with each of those."""
    floods = [floor.flood() for _ in range(HOLDS)]
    sections: dict[str, dict[str, Any]] = {
        "simulator": {"trades_per_second": FULL * SINGLE_TRADES, "speed": START_PACE, "start_time": BUSY_MS},
        "exchange": {"clock_speed": 0.0},
        "engine": {} if saving else SAVING_NEVER,
        "audit": {"every_minutes": 0},
    }
    with whole(**sections) as system:
        system.start(*ROOMS)
        system.wait_live()
        before = system.last_ids()
        levels = []
        rate, best, failed, full = float(LOWEST), 0.0, 0, float(FULL)
        for _ in range(LEVELS_MAX):
            level = _level(system, rate, LEVEL_S, full)
            full = level["at pace 1/s"]
            levels.append(level)
            report(level)
            if level["sustained"]:
                best, failed = rate, 0
            else:
                failed += 1
                _mend(system)
            if failed == FAILED_MAX:
                break
            rate *= STEP
        if best:
            best = max(best / STEP, LOWEST)
        holds: list[dict[str, Any]] = []
        failed = 0
        while len(holds) < HOLDS and best >= LOWEST:
            held = _level(system, best, seconds, full)
            full = held["at pace 1/s"]
            report(held)
            if held["sustained"]:
                holds.append(held)
                continue
            _mend(system)
            levels.append(held)
            failed += 1
            if failed == FAILED_MAX:
                levels += holds
                best, holds, failed = best / STEP_BACK, [], 0
        counted = {"times failed": failed, "nothing lost": _nothing_lost(system, before, saving), "levels": levels}
        return _summed_up(holds) | _beside(holds, floods) | counted


def _level(system: Whole, rate: float, seconds: float, full: float) -> dict[str, Any]:
    """Let the market run at a rate and then stand still; return how that went. `full`: its rate at pace 1, about."""
    system.pace(rate / full)
    ask(system.config, "resume", "POST")
    behind = _watch(system, rate, SETTLE_S)
    cpu, batches = system.cpu(), _batches(system)
    first, began = ask(system.config, "status"), time.monotonic()
    behind = max(behind, _watch(system, rate, seconds if behind <= BEHIND_MAX else LOOK_S))
    ask(system.config, "pause", "POST")
    paused = time.monotonic()
    last, pace = ask(system.config, "status"), float(ask(system.config, "speed")["speed"])
    drained = _drained(system, last)
    spent, elapsed = system.cpu(), paused - began
    sent = _sum(last) - _sum(first)
    kept = sent / (elapsed * rate)
    by_room = shares(cpu, spent, elapsed + drained)
    return {
        "sustained": drained <= DRAIN_MAX_S and kept >= KEPT_RATE and behind <= BEHIND_MAX,
        "asked for/s": round(rate),
        "rate kept": round(kept, 2),
        "at pace 1/s": round(rate / pace),
        "sent and applied/s": round(sent / (elapsed + max(0.0, drained - DRAIN_MAX_S))),
        "seconds": round(elapsed, 1),
        "drained after s": round(drained, 2),
        "socket behind, KiB": behind >> 10,
        "cores": by_room,
        "CPU s a million": shares(cpu, spent, sent / 1e6),
        "busiest": max((share, name) for name, share in by_room.items() if name != "all")[1],
        "saved batches": _batches(system) - batches,
    }


def _watch(system: Whole, rate: float, seconds: float) -> int:
    """Keep the market at a rate; return the most bytes in front of a reader, as soon as they are too many."""
    deadline, behind = time.monotonic() + seconds, 0
    sent, at = _sum(ask(system.config, "status")), time.monotonic()
    while time.monotonic() < deadline and behind <= BEHIND_MAX:
        time.sleep(LOOK_S)
        state = ask(system.config, "speed")
        behind = max(behind, int(state["behind"]))
        before, sent, since, at = sent, _sum(ask(system.config, "status")), at, time.monotonic()
        off = rate * (at - since) / max(sent - before, 1)
        system.pace(float(state["speed"]) * min(max(off, 1 / SLOWER_MAX), QUICKER_MAX))
    return behind


def _mend(system: Whole) -> None:
    """Let the market run slowly until nothing is missing: to be reseeded takes the exchange's time."""
    system.pace(LOWEST / FULL)
    ask(system.config, "resume", "POST")
    time.sleep(SETTLE_S)  # A connection that broke is noticed by then.
    system.forget()
    system.wait_live()
    ask(system.config, "pause", "POST")


def _summed_up(holds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several times the same: the median, the least and the most of each."""
    if not holds:
        return {"sustained": False}
    figures: dict[str, Any] = {"asked for/s": holds[0]["asked for/s"], "times held": len(holds)}
    for name in ("sent and applied/s", "seconds", "drained after s", "socket behind, KiB", "saved batches"):
        figures[name] = spread([hold[name] for hold in holds], 2)
    for name in ("cores", "CPU s a million"):
        figures |= {f"{name}, {room}": spread([hold[name][room] for hold in holds], 3) for room in holds[0][name]}
    return {"sustained": True} | figures


def _beside(holds: list[dict[str, Any]], floods: list[floor.Flood]) -> dict[str, Any]:
    """Return the sockets' own figures, and how klagg's compare with them."""
    frames, cpu = zip(*floods, strict=True)
    figures: dict[str, Any] = {
        "sockets alone, frames/s": spread(frames),
        "sockets alone, CPU s a million": spread(cpu, 3),
    }
    if holds:
        rate = median(hold["sent and applied/s"] for hold in holds)
        spent = median(sum(hold["CPU s a million"][room] for room in ("ingest", "engine")) for hold in holds)
        figures["sockets alone, times the rate"] = round(median(frames) / rate, 1)
        figures["ingest and engine, times sockets alone's CPU"] = round(spent / median(cpu), 1)
    return figures


def _batches(system: Whole) -> int:
    return int(system.health().get("batches", 0))


def _sum(status: dict[str, Any]) -> int:
    return sum(ids["aggTrade"] for ids in status["last_ids"].values())


def _drained(system: Whole, status: dict[str, Any]) -> float:
    """Return after how many seconds the busiest symbols' last trades were published: events come in order."""
    busy = list(status["last_ids"])[:5]
    began = time.monotonic()
    system.unapplied({symbol: status["last_ids"][symbol]["aggTrade"] for symbol in busy}, LAST_MAX_S)
    return time.monotonic() - began


def _nothing_lost(system: Whole, before: dict[str, int], saving: bool) -> str:
    """Say whether every id that was sent was applied, and saved; the market stands still.

    Symbols without a trade since `before` have rows of the exchange's own, without ids.
    """
    last_ids = {symbol: last for symbol, last in system.last_ids().items() if last > before[symbol]}
    lacking = system.unapplied(last_ids, LAST_MAX_S)
    if lacking:
        return f"no: {len(lacking)} symbols lack trades, as {dict(list(lacking.items())[:3])}"
    wait_for("no missing id", lambda: not system.health()["missing_ids"], LAST_MAX_S)
    if saving:
        settle(system.config, LAST_MAX_S)
    return "yes: all applied and saved" if saving else "yes: all applied"
