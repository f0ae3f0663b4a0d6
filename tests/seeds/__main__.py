"""Play seeds and say which fail."""

import argparse
import os
import sys
import time
from multiprocessing import get_context

from tests.seeds.simulation import Played, run

PROGRESS_S = 10.0
SHOWN_MAX = 3
"""Differences shown of one seed of many."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.seeds", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one alone and say all that is wrong")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--begin", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.seed is not None:
        played = [run(arguments.seed)]
        _show_wrong(played[0], len(played[0].wrong))
    else:
        played = _play(range(arguments.begin, arguments.begin + arguments.seeds), arguments.processes)
    failed = sorted(one.seed for one in played if one.wrong)
    print(
        f"{len(played)} seeds, {len(failed)} failed {failed[:20]}; {sum(one.engines for one in played)} engines,"
        f" {sum(one.reseeded for one in played)} symbols reseeded,"
        f" {sum(one.lost for one in played)} rows left memory unsaved"
    )
    sys.exit(bool(failed))


def _play(seeds: range, processes: int) -> list[Played]:
    played = []
    began = shown_at = time.monotonic()
    with get_context("spawn").Pool(processes) as pool:
        for one in pool.imap_unordered(run, seeds, chunksize=5):
            played.append(one)
            _show_wrong(one, SHOWN_MAX)
            if time.monotonic() > shown_at + PROGRESS_S:
                shown_at = time.monotonic()
                rate = len(played) / (shown_at - began) * 60
                print(f"{len(played)} of {len(seeds)} seeds, {rate:.0f} a minute", flush=True)
    return played


def _show_wrong(played: Played, shown_max: int) -> None:
    if played.wrong:
        print(f"seed {played.seed}: {len(played.wrong)} wrong")
    for line in played.wrong[:shown_max]:
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
