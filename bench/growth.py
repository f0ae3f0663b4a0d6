"""Memory and CPU as symbols and events grow: at the same rate over more symbols, and through an hour in a minute."""

import time
from typing import Any

from bench.whole import BUSY_MS, ROOMS, SINGLE_TRADES, Whole, shares, whole
from tests.pipeline.truth import ask

SYMBOLS = (100, 500, 1_000)
RATE = 12_000
"""Aggregates/s, about."""
SETTLE_S = 10.0
HOUR_S = 3_600
SPEED = 60.0
HOUR_RATE = 500.0


def symbols(count: int, seconds: float) -> dict[str, Any]:
    """Return what so many symbols cost at the same rate."""
    simulator = {"symbols": count, "trades_per_second": RATE * SINGLE_TRADES, "start_time": BUSY_MS}
    with whole(simulator=simulator) as system:
        system.start(*ROOMS, "viz")
        live_s = system.wait_live()
        time.sleep(SETTLE_S)
        return {"live after s": round(live_s, 1)} | _observed(system, seconds)


def hour(real_seconds: float = HOUR_S / SPEED) -> dict[str, Any]:
    """Return what an hour of the market costs that goes by in a minute, and what has grown in it."""
    simulator = {"trades_per_second": HOUR_RATE, "start_time": BUSY_MS}
    # As in a replay, time is the trades': what rooms wait for by the clock would be over before it can be answered.
    with whole(simulator=simulator, exchange={"clock_speed": 0.0}, audit={"every_minutes": 0}) as system:
        system.start(*ROOMS, "viz")
        system.wait_live()
        before = system.last_ids()
        system.pace(SPEED)
        time.sleep(SETTLE_S)
        observed = _observed(system, real_seconds)
        system.pace(1.0)
        time.sleep(SETTLE_S / 2)
        ask(system.config, "pause", "POST")
        traded = {symbol: last for symbol, last in system.last_ids().items() if last > before[symbol]}
        lacking = system.unapplied(traded, SETTLE_S)
        figures = system.health()
        return observed | {
            "symbols that lack trades": len(lacking),
            "missing ids at last": figures["missing_ids"],
            "begun anew": figures["begun_anew"],
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
