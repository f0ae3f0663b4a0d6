"""Play seeds and say which fail."""

import argparse
import sys
import time

from tests.simulated.simulation import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulated", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one alone and say all that is wrong")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--begin", type=int, default=0)
    arguments = parser.parse_args()
    seeds = (
        range(arguments.begin, arguments.begin + arguments.seeds)
        if arguments.seed is None
        else range(arguments.seed, arguments.seed + 1)
    )
    failed = []
    engines = begun_anew = lost = 0
    began = told_at = time.monotonic()
    for number, seed in enumerate(seeds, 1):
        wrong, played = run(seed)
        engines, begun_anew, lost = engines + played.engines, begun_anew + played.begun_anew, lost + played.lost
        if wrong:
            failed.append(seed)
            print(f"seed {seed}: {len(wrong)} wrong")
            for line in wrong[: 3 if arguments.seed is None else 10_000]:
                print(f"  {line}", flush=True)
        if time.monotonic() - told_at > 10:
            told_at = time.monotonic()
            print(f"{number} of {len(seeds)} seeds, {number / (told_at - began) * 60:.0f} a minute", flush=True)
    print(
        f"{len(seeds)} seeds in {time.monotonic() - began:.0f} s, {len(failed)} failed {failed[:20]};"
        f" {engines} engines, {begun_anew} beginnings anew, {lost} rows left memory unsaved"
    )
    sys.exit(bool(failed))


main()
