"""From start to live, 500 symbols: with nothing there, with a database that has them all, and after a kill of one room.

Live means that every symbol is there, no id is missing, and trades of the busiest symbols that left the exchange after
the start were published. Beside it, the start of a process that does nothing. What becomes of rooms that save, and of
all under faults, is measured by `tests/chaos.py`.
"""

import signal
import time
from typing import Any

from bench import floor
from bench.whole import Whole, whole
from harness.figures import spread
from harness.processes import wait_for
from harness.truth import ask

OURS = ("postgres", "persist", "engine", "ingest")
RATE = 8_000.0
BUSIEST = 8
"""Every twelfth symbol from the ninth on hardly trades: what it traded last may be in a minute that it begins with the
exchange's own kline of, which has no ids to wait for."""
WAIT_MAX_S = 60.0
REST_S = 6.0
"""Between starts: what is unsaved gets saved, and what a start set off is over."""
WEIGHT_S = 61.0
"""The exchange counts requests by the minute. An ingest that starts in a minute in which more was asked than the real
exchange allows waits for the next: it does not know yet that this one allows more."""


def run(runs: int) -> dict[str, Any]:
    """Return seconds to live, of so many starts of each kind."""
    alone = spread([floor.process() for _ in range(runs)], 2)
    cold = []
    for _ in range(runs - 1):
        with whole(simulator={"trades_per_second": RATE}) as system:
            _start_simulator(system)
            cold.append(_live(system, *OURS))
    with whole(simulator={"trades_per_second": RATE}) as system:
        _start_simulator(system)
        cold.append(_live(system, *OURS))
        results: dict[str, Any] = {"one process that only imports": alone, "cold": spread(cold, 2)}
        warm = []
        for _ in range(runs):
            time.sleep(REST_S)
            system.stop(*OURS)
            # Another simulator knows the same market, and of no request.
            system.stop("simulator")
            _start_simulator(system)
            system.forget()
            warm.append(_live(system, *OURS))
        results["warm, all rooms"] = spread(warm, 2)
        for name, rest_s in (("engine", REST_S), ("ingest", WEIGHT_S)):
            killed = []
            for _ in range(runs):
                time.sleep(rest_s)
                system.forget()
                room = system.rooms.pop(name)
                room.process.send_signal(signal.SIGKILL)
                room.process.wait()
                killed.append(_live(system, name))
            results[f"after kill -9: {name}"] = spread(killed, 2)
        times = {name: round(found["median"] / alone["median"], 1) for name, found in results.items()}
        return results | {"times one process": times}


def _start_simulator(system: Whole) -> None:
    system.start("simulator")
    wait_for("the simulator", lambda: _answers(system), 120)


def _live(system: Whole, *names: str) -> float:
    began = time.monotonic()
    system.start(*names)
    ids = system.last_ids()
    system.wait_live()
    if system.unapplied(dict(list(ids.items())[:BUSIEST]), WAIT_MAX_S):
        raise RuntimeError("trades that left after the start are not applied")
    return time.monotonic() - began


def _answers(system: Whole) -> bool:
    try:
        return bool(ask(system.config, "status"))
    except OSError:
        return False
