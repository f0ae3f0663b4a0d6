"""What was measured: CPU seconds and memory of processes, read from /proc; latencies; what several runs came to."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_TICKS = os.sysconf("SC_CLK_TCK")


class Seen(NamedTuple):
    """A snapshot that arrived."""

    symbol: str
    last_id: int
    at_ns: int


def family(pid: int) -> list[int]:
    """Return a process and everything it started that still runs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children, those that have ended included."""
    total = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def memory_mib(pid: int) -> float:
    """Return the memory of a process and its children; a page that several share counts once in all."""
    total = 0
    for member in family(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def spread(values: Sequence[float], digits: int = 0) -> dict[str, float]:
    """Return the median, the least and the most, rounded to so many digits; whole numbers if none."""
    figures = {"median": median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) if digits else round(value) for name, value in figures.items()}


def latencies(written: list[list[Any]], seen: list[Seen]) -> list[tuple[str, tuple[int, float]]]:
    """Return (symbol, (when it was written, ms until a snapshot had it)) of each note that a snapshot answers."""
    answers: list[tuple[str, tuple[int, float]]] = []
    for stream in {name for name, _, _ in written}:
        symbol = stream.partition("@")[0].upper()
        own = [each for each in seen if each.symbol == symbol]
        # A repaired older row may follow a newer one; what counts is how far snapshots have come.
        reached = np.maximum.accumulate(np.array([each.last_id for each in own], np.int64))
        for name, last_id, at_ns in written:
            index = int(np.searchsorted(reached, last_id)) if name == stream else len(own)
            if index < len(own):
                answers.append((symbol, (at_ns, (own[index].at_ns - at_ns) / 1e6)))
    return answers


def percentiles(ms: NDArray[np.float64]) -> dict[str, float]:
    """Return how many there are, their median, high percentiles and most; of none, that there are none."""
    if not len(ms):
        return {"blocks": 0}
    shown = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
    return {"blocks": len(ms)} | {name: round(float(np.percentile(ms, share)), 2) for name, share in shown.items()}
