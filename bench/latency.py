"""From the frame leaving the simulator to the snapshot at a subscriber, at several rates and through a burst.

The simulator notes when it wrote the last trade of each block of some symbols, busy ones and quiet ones; a subscriber
of their 1m klines notes when the first snapshot arrived that has that trade or a later one. Both read the machine's
monotonic clock. Left out is the time until all symbols are live and what a first start brought is saved, and
`WARM_UP_S` more; that time is apart: from each symbol's first snapshot on, while others are still announced. Rates
are about: minutes differ, and what was applied is reported. Each start has its own sockets alone, measured before it.
"""

import time
from typing import Any

import msgpack
import numpy as np

from bench import floor
from bench.whole import BUSY_MS, SINGLE_TRADES, Whole, shares, whole
from harness.figures import Seen, latencies, percentiles, spread
from harness.truth import ask
from shared.snapshot import kline_topic

RATES = (1_000, 5_000, 20_000, 50_000)
RANKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400)
"""Whose snapshots are measured; every twelfth symbol from the ninth on hardly trades, so none of those."""
WARM_UP_S = 5.0
ROWS_IN_USE = 500 * 15 * 2
"""The newest rows, and those before them that a minute's end leaves."""
BURST_RATE, BURST_TRADES = 5_000, 50_000
SECONDS = 10.0
"""Measured of each start: starts differ more than minutes do, by who happens to run beside whom."""
BURST_TAIL_S = 2.0
"""What a burst leaves to be sent still counts as part of it."""


def run(rate: int, runs: int, everything: bool = False, burst: bool = False) -> dict[str, Any]:
    """Return latencies in ms at so many aggregates/s, of so many starts; `everything`: of a subscriber of all."""
    alone, ours = [], []
    for _ in range(runs):
        alone.append(percentiles(floor.run()))
        ours.append(once(rate, SECONDS, everything, burst))
    spreads: dict[str, Any] = {name: _spreads([one[name] for one in ours]) for name in ("measured", "at the start")}
    spreads["sockets alone"] = _spreads(alone)
    times = [one["measured"]["p50"] / sockets["p50"] for one, sockets in zip(ours, alone, strict=True)]
    spreads["p50, times sockets alone"] = spread(times, 2)
    for name in ("unanswered", "applied/s", "snapshots/s"):
        spreads[name] = spread([one[name] for one in ours])
    spreads["cores"] = _spreads([one["cores"] for one in ours])
    return spreads


def _spreads(figures: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([each[name] for each in figures], 2) for name in figures[0]}


def once(rate: int, seconds: float, everything: bool, burst: bool) -> dict[str, Any]:
    """Start a system and measure it; return the figures of that."""
    simulator = {"trades_per_second": rate * SINGLE_TRADES, "start_time": BUSY_MS}
    with whole(simulator=simulator) as system:
        system.start("postgres", "persist", "engine", "simulator")
        symbols = _sample(system)
        streams = ",".join(f"{symbol.lower()}@aggTrade" for symbol in symbols)
        _written(system, streams)
        topics = ["kline."] if everything else [kline_topic(symbol, "1m") for symbol in symbols]
        socket = system.subscriber(topics)
        system.start("ingest")
        seen: list[Seen] = []
        messages = 0
        wanted = {kline_topic(symbol, "1m").encode() for symbol in symbols}

        def listen(until: float) -> None:
            nonlocal messages
            while (left := until - time.monotonic()) > 0:
                if socket.poll(int(left * 1000) + 1):
                    topic, body = socket.recv_multipart()
                    at_ns = time.monotonic_ns()
                    messages += 1
                    if topic in wanted:
                        row = msgpack.unpackb(body)
                        seen.append(Seen(row["symbol"], row["last_id"], at_ns))

        deadline = time.monotonic() + 300
        while not system.live() or system.health()["rows_unsaved"] > ROWS_IN_USE:
            listen(time.monotonic() + 0.2)
            if time.monotonic() > deadline:
                raise RuntimeError("the system does not become live")
        ready_ns = time.monotonic_ns()
        listen(time.monotonic() + WARM_UP_S)
        before, cpu, messages, began_ns = system.health(), system.cpu(), 0, time.monotonic_ns()
        if burst:
            system.pace(1 + BURST_TRADES / rate)
            listen(time.monotonic() + 1.0)
            system.pace(1.0)
            seconds = BURST_TAIL_S
        listen(time.monotonic() + seconds)
        elapsed, spent = (time.monotonic_ns() - began_ns) / 1e9, system.cpu()
        ended_ns = time.monotonic_ns()
        listen(time.monotonic() + 1.0)
        socket.close(linger=0)
        after = system.health()
        # What is written from here on, nobody has listened for.
        written = [note for note in _written(system, "") if note[2] < ended_ns]
        late = latencies(written, seen)
        first = {
            symbol: min(each.at_ns for each in seen if each.symbol == symbol) for symbol in {s.symbol for s in seen}
        }
        starts = np.array([first.get(symbol, ended_ns) for symbol, _ in late], np.int64)
        at, ms = np.array([at_ns for _, (at_ns, _) in late]), np.array([ms for _, (_, ms) in late])
        return {
            "measured": percentiles(ms[(at >= began_ns) & (at < ended_ns)]),
            "at the start": percentiles(ms[(at >= starts) & (at < ready_ns)]),
            "unanswered": len(written) - len(late),
            "applied/s": round((after["applied"] - before["applied"]) / (elapsed + 1.0)),
            "snapshots/s": round(messages / (elapsed + 1.0)),
            "cores": shares(cpu, spent, elapsed),
        }


def _sample(system: Whole) -> list[str]:
    deadline = time.monotonic() + 120
    while True:
        try:
            known = list(system.last_ids())
            return [known[rank] for rank in RANKS if rank < len(known)]
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _written(system: Whole, streams: str) -> list[list[Any]]:
    notes: list[list[Any]] = ask(system.config, "written", streams=streams)
    return notes
