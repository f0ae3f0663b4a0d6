"""Faults of the system in chaos: kills and stops, a failing exchange and store, and hostile neighbours.

Decides what happens, by name and from a source of chance. Who starts the rooms again, and what must be true afterwards,
is chaos.py's. What is found wrong at once is noted in `system.wrong`.
"""

import asyncio
import random
import signal
import urllib.error
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg

from harness.truth import ask
from tests import hostile, malformed, store_faults

if TYPE_CHECKING:
    from tests.chaos import System

ROOMS = ("postgres", "persist", "engine", "ingest", "viz")
"""The simulator is the exchange: it stays."""
STOPPED_S = (0.2, 4.0)
FAULTS: tuple[dict[str, object], ...] = (
    {"kind": "drop"},
    {"kind": "close"},
    {"kind": "shutdown", "seconds": 1},
    {"kind": "refuse", "seconds": 2},
    {"kind": "silent", "seconds": 5},
    {"kind": "mute"},
    {"kind": "skip", "seconds": 5, "share": 0.02},
    {"kind": "repeat", "seconds": 5, "share": 0.1},
    {"kind": "reorder", "seconds": 5, "share": 0.1},
    {"kind": "delay", "seconds": 5, "share": 0.02, "ms": 4_000},
    {"kind": "garbage", "seconds": 5, "share": 0.05},
    {"kind": "omit", "seconds": 20, "share": 0.1},
    {"kind": "stall", "seconds": 5, "share": 0.5, "ms": 3_000},
    {"kind": "error", "seconds": 5, "share": 0.5},
    {"kind": "cut", "seconds": 5, "share": 0.3},
    {"kind": "limit", "seconds": 3, "share": 0.3, "ms": 2_000},
    {"kind": "ban", "seconds": 4},
    {"kind": "lifetime", "seconds": 5, "ms": 3_000},
    {"kind": "time", "ms": 21_600_000},
    {"kind": "time", "ms": -315_360_000_000},
    {"kind": "event", "ms": 315_360_000_000},
    {"kind": "event", "ms": 3_600_000, "symbol": "BTCUSDT"},
    {"kind": "clock", "ms": 20_000},
    {"kind": "clock", "ms": -5_000},
    {"kind": "list"},
    {"kind": "decimals"},
    {"kind": "late", "ms": 20_000},
    {"kind": "late", "ms": 70_000},
    {"kind": "relist"},
)
REFINED = ("ETHUSDT", "SOLUSDT", "XRPUSDT", "DOGEUSDT", "BNBUSDT", "ADAUSDT", "SUIUSDT", "LINKUSDT")
LATE = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
"""Symbols whose times fall, ..."""
RELISTED = ("AVAXUSDT", "LTCUSDT", "BCHUSDT")
"""... and those whose ids restart: both at once could not be told apart."""
SOMEBODY = {"decimals": REFINED, "late": LATE, "relist": RELISTED}
"""Faults that are of one of these symbols."""
FAULTS_SHARE = 0.4
STORE_SHARE = 0.1
HOSTILE_SHARE = 0.1
STORE = ("set back", "emptied", "refusing")
REFUSED_S = 8.0
POWER_CUT_SHARE = 0.05
FULL_S = 5.0
MALFORMED = 300
"""Requests at once."""
SUBSCRIPTIONS = 10_000
ADDRESSES: dict[str, malformed.Parameters] = {
    **{f"GET {path}": {} for path in ("/", "/api/symbols", "/health", "/readyz", "/ws")},
    "GET /api/history": {"symbol": ["BTCUSDT"], "interval": ["1m", "1M"], "limit": ["5"], "end": ["1790000000000"]},
}


def inject_fault(system: "System", source: random.Random) -> str:
    """Do something bad to the system or to the exchange and return its name."""
    if source.random() < FAULTS_SHARE:
        fault = source.choice(FAULTS)
        if fault["kind"] in SOMEBODY:
            fault = fault | {"symbol": source.choice(SOMEBODY[str(fault["kind"])])}
        try:
            ask(system.config, "fault", "POST", **fault)
        except urllib.error.HTTPError as error:
            # The market's own numbers cannot have more decimals, or a symbol trades too seldom to be late.
            if fault["kind"] not in ("decimals", "late") or error.code != 400:
                raise
            return f"exchange: no {fault['kind']}"
        return f"exchange: {fault['kind']}"
    if source.random() < STORE_SHARE:
        return inject_store_fault(system, source)
    if source.random() < HOSTILE_SHARE:
        return source.choice(HOSTILE)(system, source)
    if source.random() < POWER_CUT_SHARE:
        for room in system.rooms.values():
            room.process.send_signal(signal.SIGKILL)
        return "power cut"
    name = source.choice(ROOMS)
    room = system.rooms[name]
    act = source.choice(("kill", "kill", "kill", "stop", "restart"))
    if act == "stop":
        seconds = source.uniform(*STOPPED_S)
        room.process.send_signal(signal.SIGSTOP)
        system.wait(seconds)
        if room.process.poll() is None:
            room.process.send_signal(signal.SIGCONT)
    else:
        room.process.send_signal(signal.SIGKILL if act == "kill" else signal.SIGTERM)
    return f"{act} {name}"


def inject_store_fault(system: "System", source: random.Random) -> str:
    """Do something bad to the tables and return its name."""
    act = source.choice(STORE)
    try:
        match act:
            case "set back":
                set_back = store_faults.backed_up(system.config)
                system.wait(source.uniform(*STOPPED_S))
                set_back()
            case "emptied":
                store_faults.empty(system.config)
            case "refusing":
                store_faults.refuse(system.config, source.choice(REFINED))
                system.wait(REFUSED_S)
                store_faults.take_all(system.config)
    except psycopg.Error:
        return f"store: away, not {act}"
    return f"store: {act}"


def fill_disk(system: "System", source: random.Random) -> str:
    """Leave the database without any space on its disk for a while."""
    if system.disk is None:
        return "no disk of its own, not full"
    system.disk.fill()
    system.wait(source.uniform(1.0, FULL_S))
    system.disk.free()
    return "disk full"


def ask_nonsense(system: "System", source: random.Random) -> str:
    """Send the page malformed requests: none of them may be its own fault."""
    viz = system.config.viz
    asked = malformed.requests(source.getrandbits(32), MALFORMED, ADDRESSES, f"{viz.host}:{viz.port}")
    try:
        statuses = asyncio.run(malformed.ask_all(viz.port, asked))
    except OSError:
        return "page: away, no malformed HTTP"
    system.wrong += [
        f"{n} malformed requests got {status}" for status, n in statuses.items() if status >= 500 and status != 503
    ]
    return "malformed HTTP"


def subscribe_much(system: "System", source: random.Random) -> str:
    """Subscribe everything again and again, and read nothing of it."""
    with suppress(OSError):
        peer = hostile.Peer(int(system.config.engine.snapshots.rpartition(":")[2]))
        system.peers.append(peer)
        peer.subscribe(*[source.choice((b"kline.", b"kline.B", b""))] * SUBSCRIPTIONS)
        return "hostile subscriber"
    return "snapshots: away, no hostile subscriber"


HOSTILE: tuple[Callable[["System", random.Random], str], ...] = (fill_disk, ask_nonsense, subscribe_much)
"""What hostile neighbours do; each of it happens in a run at least once."""
