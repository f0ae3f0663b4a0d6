"""Measure, print a table, and write the same as JSON to `bench.json` in the folder of the run."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from bench import ingest, kernel, persist, system

RATE = 20_000.0
"""Single trades/s of an average minute, of which two or three make an aggregate; what came is in the result."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each run of the system is measured")
    parser.add_argument("--only", choices=("kernel", "ingest", "persist", "system"), help="leave out the others")
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    }
    print(results["machine"])
    if arguments.only in (None, "kernel"):
        results["kernel"] = _kernel()
    if arguments.only in (None, "ingest"):
        results["ingest"] = _ingest()
    if arguments.only in (None, "persist"):
        results["persist"] = _persist()
    if arguments.only in (None, "system"):
        results["system"] = _system(arguments.seconds)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.json}")


def _kernel() -> dict[str, Any]:
    sizes = (1, 10, 100, 1_000, 10_000)
    print("\nEngine, 15 intervals, ns a trade by batch size (median of 5 runs)")
    print(f"{'symbols':>10}" + "".join(f"{size:>10,}" for size in sizes))
    results = {}
    for symbols in (100, 500, 1_000):
        costs = {size: kernel.run(symbols, size) for size in sizes}
        print(f"{symbols:>10,}" + "".join(f"{costs[size]['median']:>10,.0f}" for size in sizes))
        results[str(symbols)] = {str(size): cost for size, cost in costs.items()}
    return results


def _ingest() -> dict[str, Any]:
    print("\nIngest, 500 symbols, ns of CPU a trade (median of 5 runs)")
    print(f"{'trades a read':>24}{'all':>10}{'socket and parser':>20}{'trades/s':>12}")
    results: dict[str, Any] = {}
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


def _persist() -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind, new in (("overwritten", False), ("new", True)):
        for size in persist.SIZES:
            print(f"\nPersist, batches of {size:,} rows, {kind} (median of 5 runs, least and most)")
            results[f"{size} {kind}"] = figures = persist.run(size, new)
            for name, told in figures.items():
                rate, cpu = told["rows/s"], told["CPU s per million rows"]
                print(
                    f"  {name:18}{rate['median']:>9,} rows/s ({rate['least']:,} to {rate['most']:,}),"
                    f" {told['times executemany']:>4}× executemany; CPU s per million rows:"
                    f" Python {cpu['Python']}, PostgreSQL {cpu['PostgreSQL']}"
                )
    return results


def _system(seconds: float) -> dict[str, Any]:
    results = {}
    for symbols in (300, 500):
        name = f"{symbols} symbols"
        print(f"\nWhole system, {name}")
        results[name] = system.run(symbols, RATE, seconds)
        for key, value in results[name].items():
            words = (
                ", ".join(f"{part} {figure}" for part, figure in value.items()) if isinstance(value, dict) else value
            )
            print(f"  {key:28} {words}")
    return results


main()
