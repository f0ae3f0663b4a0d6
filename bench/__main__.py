"""Measure, print tables, and write the same as JSON to `bench.json` in the folder of the run."""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import growth, ingest, kernel, latency, persist, starts, sustained

Results = dict[str, Any]
ROWS_MADE = {False: "rows made at the end", True: "rows made after each batch"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the highest rate is held")
    parser.add_argument("--runs", type=int, default=5, help="starts of each kind")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="leave out the others")
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(machine, flush=True)
    results: Results = {"machine": machine}
    for name, part in PARTS.items():
        if not arguments.only or name in arguments.only:
            results[name] = part(arguments.seconds, arguments.runs)
            arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {arguments.json}")


def _kernel(_seconds: float, _runs: int) -> Results:
    sizes = (1, 10, 100, 1_000, 10_000)
    print("\nEngine, 15 intervals, ns a trade by batch size (median of 5 runs)")
    print(f"{'symbols':>10}" + "".join(f"{size:>10,}" for size in sizes))
    results: Results = {}
    for watched in (False, True):
        print(ROWS_MADE[watched])
        for symbols in (100, 500, 2_000, 5_000):
            costs = {size: kernel.run(symbols, size, watched) for size in sizes}
            print(f"{symbols:>10,}" + "".join(f"{costs[size]['median']:>10,.0f}" for size in sizes))
            results[f"{symbols} symbols, watched {watched}"] = {str(size): cost for size, cost in costs.items()}
    print("\nKernel alone, batches of 1,000, ns a trade (median of 5 runs, least and most)")
    for watched in (False, True):
        print(ROWS_MADE[watched])
        for intervals, symbols in ((1, 500), (6, 500), (15, 500), (15, 100), (15, 2_000), (15, 5_000)):
            name = f"{intervals} intervals, {symbols:,} symbols"
            results[f"{name}, watched {watched}"] = cost = kernel.growth(intervals, symbols, watched)
            print(f"  {name:30}{cost['median']:>8,} ({cost['least']:,} to {cost['most']:,})")
    return results


def _ingest(_seconds: float, _runs: int) -> Results:
    print("\nIngest, 500 symbols, ns of CPU a trade (median of 5 runs)")
    print(f"{'trades a read':>24}{'all':>10}{'socket and parser':>20}{'trades/s':>12}")
    results: Results = {}
    for name, tls, size in (
        ("plain", False, 0),
        ("TLS", True, 0),
        ("plain, 1,000", False, 1_000),
        ("plain, 100", False, 100),
        ("plain, 10", False, 10),
        ("plain, 1", False, 1),
    ):
        results[name] = figures = ingest.run(tls, size)
        print(
            f"  {name:13} {figures['trades a batch']:>8,.1f} {figures['cpu ns a trade']['median']:>9,}"
            f" {figures['socket and parser alone']['median']:>19,} {figures['trades/s']['median']:>11,}"
        )
    print("\nSteps of ingest, ns of CPU a read, without a socket (median of 5 runs)")
    results["steps"] = {size: ingest.steps(size) for size in (1, 10, 100, 1_000)}
    for size, steps in results["steps"].items():
        print(f"  {size:>5,} trades " + "".join(f"  {step} {cost['median']:,}" for step, cost in steps.items()))
    return results


def _persist(_seconds: float, _runs: int) -> Results:
    results: Results = {}
    for kind, new in (("overwritten", False), ("new", True)):
        for size in persist.SIZES:
            print(f"\nPersist, batches of {size:,} rows, {kind} (median of 5 runs, least and most)")
            results[f"{size} {kind}"] = figures = persist.run(size, new)
            for name, rates in figures.items():
                rate, cpu = rates["rows/s"], rates["CPU s per million rows"]
                print(
                    f"  {name:18}{rate['median']:>9,} rows/s ({rate['least']:,} to {rate['most']:,}),"
                    f" {rates['times executemany']:>4}× executemany; CPU s per million rows:"
                    f" Python {cpu['Python']}, PostgreSQL {cpu['PostgreSQL']}"
                )
    return results


def _sustained(seconds: float, _runs: int) -> Results:
    results = {}
    for name, saving in (("with persistence", True), ("without persistence", False)):
        print(f"\nHighest rate sustained, 500 symbols × 15 intervals, {name}", flush=True)
        results[name] = figures = sustained.run(seconds, saving, _tell_level)
        _print({key: value for key, value in figures.items() if key != "levels"})
    return results


def _tell_level(level: Results) -> None:
    shown = {
        key: level[key]
        for key in ("sent and applied/s", "rate kept", "socket behind, KiB", "drained after s", "busiest")
    }
    _line("level that held" if level["sustained"] else "level that did not", shown | {"cores": level["cores"]["all"]})


def _latency(_seconds: float, runs: int) -> Results:
    print(f"\nFrame written to snapshot received, 500 symbols × 15 intervals, persistence on, ms, of {runs} starts")
    measured: dict[str, dict[str, Any]] = {f"{rate:,}/s": {"rate": rate} for rate in latency.RATES}
    measured["burst of 50,000 on 5,000/s"] = {"rate": latency.BURST_RATE, "burst": True}
    measured["5,000/s, everything subscribed"] = {"rate": 5_000, "everything": True}
    results: Results = {}
    for name, how in measured.items():
        results[name] = figures = latency.run(runs=runs, **how)
        _line(name, "")
        _print(figures)
    return results


def _growth(_seconds: float, runs: int) -> Results:
    results = {}
    for count in growth.SYMBOLS:
        print(f"\n{count} symbols, about {growth.RATE:,} aggregates/s, of {runs} starts", flush=True)
        results[f"{count} symbols"] = figures = growth.symbols(count, runs)
        _print(figures)
    print(
        f"\nAn hour of {growth.HOUR_RATE:,.0f} single trades/s, 500 symbols, in a minute, of {runs} starts", flush=True
    )
    results["an hour"] = figures = growth.hours(runs)
    _print(figures)
    return results


def _starts(_seconds: float, runs: int) -> Results:
    print(f"\nStart to live, 500 symbols, s (median of {runs} runs, least and most)", flush=True)
    results = starts.run(runs)
    _print(results)
    return results


def _print(figures: Results) -> None:
    for key, value in figures.items():
        _line(key, value)


def _line(name: str, value: Any) -> None:
    print(f"  {name:32} {_words(value)}", flush=True)


def _words(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"median", "least", "most"}:
        return f"{value['median']} ({value['least']} to {value['most']})"
    return ", ".join(f"{part} {_words(figure)}" for part, figure in value.items())


PARTS: dict[str, Callable[[float, int], Results]] = {
    "kernel": _kernel,
    "ingest": _ingest,
    "persist": _persist,
    "sustained": _sustained,
    "latency": _latency,
    "growth": _growth,
    "starts": _starts,
}

main()
