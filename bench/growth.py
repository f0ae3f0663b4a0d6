"""Memory and CPU as symbols and events grow: at the same rate over more symbols, and through an hour in a minute."""

import time
from statistics import median
from typing import Any

from bench import floor
from bench.whole import BUSY_MS, ROOMS, SINGLE_TRADES, Whole, shares, whole
from harness.figures import spread
from harness.truth import ask

SYMBOLS = (100, 500, 1_000)
RATE = 12_000
"""Aggregates/s, about."""
SETTLE_S, SECONDS = 10.0, 10.0
HOUR_S = 3_600
SPEED = 60.0
HOUR_RATE = 500.0


def symbols(count: int, runs: int) -> dict[str, Any]:
    """Return what so many symbols cost at the same rate, of so many starts."""
    simulator = {"symbols": count, "trades_per_second": RATE * SINGLE_TRADES, "start_time": BUSY_MS}
    observed = []
    for _ in range(runs):
        with whole(simulator=simulator) as system:
            system.start(*ROOMS, "viz")
            system.wait_live()
            time.sleep(SETTLE_S)
            observed.append(_observed(system, SECONDS))
    return _spreads(observed) | _beside_processes(observed, runs)


def hours(runs: int) -> dict[str, Any]:
    """Return what an hour of the market costs that goes by in a minute, and what has grown in it, of so many starts."""
    observed = [_hour() for _ in range(runs)]
    return _spreads(observed) | _beside_processes(observed, runs)


def _hour() -> dict[str, Any]:
    """Return what one such hour costs."""
    simulator = {"trades_per_second": HOUR_RATE, "start_time": BUSY_MS}
    # As in a replay, time is the trades': what rooms wait for by the clock would be over before it can be answered.
    with whole(simulator=simulator, exchange={"clock_speed": 0.0}, audit={"every_minutes": 0}) as system:
        system.start(*ROOMS, "viz")
        system.wait_live()
        before = system.last_ids()
        system.pace(SPEED)
        time.sleep(SETTLE_S)
        observed = _observed(system, HOUR_S / SPEED)
        system.pace(1.0)
        time.sleep(SETTLE_S / 2)
        ask(system.config, "pause", "POST")
        traded = {symbol: last for symbol, last in system.last_ids().items() if last > before[symbol]}
        lacking = system.unapplied(traded, SETTLE_S)
        figures = system.health()
        return observed | {
            "symbols that lack trades": len(lacking),
            "missing ids at last": figures["missing_ids"],
            "reseeded": figures["reseeded"],
            "rows overwritten unsaved": figures["unsaved_overwritten"],
        }


def _observed(system: Whole, seconds: float) -> dict[str, Any]:
    before, cpu, memory, began = system.health(), system.cpu(), system.memory(), time.monotonic()
    market = ask(system.config, "status")["time"]
    time.sleep(seconds)
    after, elapsed = system.health(), time.monotonic() - began
    applied = after["applied"] - before["applied"]
    return {
        "market's minutes": round((ask(system.config, "status")["time"] - market) / 60_000, 1),
        "applied/s": round(applied / elapsed),
        "cores": shares(cpu, system.cpu(), elapsed),
        "memory at first, MiB": memory,
        "memory at last, MiB": system.memory(),
    }


def _spreads(observed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the spread of every figure, and of every figure in a group of them."""
    spreads: dict[str, Any] = {}
    for name, first in observed[0].items():
        values = [each[name] for each in observed]
        if isinstance(first, dict):
            spreads[name] = {part: spread([value[part] for value in values], 2) for part in first}
        else:
            spreads[name] = spread(values, 0 if isinstance(first, int) else 1)
    return spreads


def _beside_processes(observed: list[dict[str, Any]], runs: int) -> dict[str, Any]:
    """Return what as many processes take that only import what the rooms do, and how the rooms compare with them."""
    alone = [floor.memory(len(ROOMS) + 1) for _ in range(runs)]
    rooms = median(each["memory at last, MiB"]["all"] for each in observed)
    return {
        "as many processes that only import, MiB": spread(alone),
        "memory, times those": round(rooms / median(alone), 1),
    }
