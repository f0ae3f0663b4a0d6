"""From start to live, 500 symbols: with nothing there, with yesterday's database, and after a kill of one room.

Live means that every symbol is there, no id is missing, and trades that left the exchange after the start are applied.
What chaos does to rooms under faults is in `tests/chaos.py`.
"""

import signal
import time
from statistics import median
from typing import Any

from bench.whole import Whole, whole
from tests.pipeline.truth import ask
from tests.support import wait_for

OURS = ("postgres", "persist", "engine", "ingest")
RATE = 8_000.0
REST_S = 6.0
"""Between starts: what is unsaved gets saved, and what a start set off is over."""


def run(runs: int) -> dict[str, Any]:
    """Return seconds to live: one cold start, and so many of each of the others."""
    with whole(simulator={"trades_per_second": RATE}) as system:
        system.start("simulator")
        wait_for("the simulator", lambda: _answers(system), 120)
        results: dict[str, Any] = {"cold": _live(system, *OURS)}
        warm = []
        for _ in range(runs):
            time.sleep(REST_S)
            system.stop(*OURS)
            system.forget()
            warm.append(_live(system, *OURS))
        results["warm, all rooms"] = _told(warm)
        for name in OURS:
            killed = []
            for _ in range(runs):
                time.sleep(REST_S)
                system.forget()
                room = system.rooms.pop(name)
                room.process.send_signal(signal.SIGKILL)
                room.process.wait()
                killed.append(_live(system, name))
            results[f"after kill -9: {name}"] = _told(killed)
        return results


def _live(system: Whole, *names: str) -> float:
    began, traded = time.monotonic(), ask(system.config, "status")["time"]
    system.start(*names)
    system.wait_live()
    wait_for("newer trades", lambda: system.health()["exchange_time"] >= traded, 60, 0.01)
    return time.monotonic() - began


def _told(seconds: list[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 2), "least": round(min(seconds), 2), "most": round(max(seconds), 2)}


def _answers(system: Whole) -> bool:
    try:
        return bool(ask(system.config, "status"))
    except OSError:
        return False
