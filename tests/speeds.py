"""A recording's klines are the same bytes at any speed.

    python -m tests.speeds [RECORDING ...] [--stream trade] [--slice MINUTES] [--speeds 100 1000 10000]

Without any, the cases beside the project are played. Each recording is replayed at each speed by the command itself,
and the files that it writes are compared: all of them, byte for byte. What is in a folder goes together, in the order
of names and the other way round alternately. `--slice` takes the first minutes of a recording of frames, for what would
last too long at the slowest speed. Ends with 1 if anything differs, exit codes as well.
"""

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.processes import RECORDINGS

SPEEDS = [100, 1_000, 10_000]
CASES = [
    ("order", "trade", 0),
    ("gap30h-jump500.jsonl.gz", "trade", 0),
    ("sparse-3sym-12h.jsonl.gz", "trade", 60),
    ("c01", "aggTrade", 0),
    ("c02", "aggTrade", 0),
    ("c04", "aggTrade", 0),
    ("c15", "aggTrade", 0),
    ("c17", "trade", 0),
    ("c32", "aggTrade", 0),
]
"""Name, stream, and how many minutes of it: all of what lasts 12 h would take 432 s at the slowest speed."""
REPLAY_MAX_S = 1_800


def files_of(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def sliced(path: Path, minutes: int, folder: Path) -> Path:
    """Write the frames of the first minutes of a recording into a file."""
    packed = path.name.endswith(".gz")
    out = folder / path.name.removesuffix(".gz")
    with gzip.open(path, "rt") if packed else path.open() as lines, out.open("w") as kept:
        end = 0
        for line in lines:
            at = json.loads(line)["data"]["T"]
            end = end or at + minutes * 60_000
            if at < end:
                kept.write(line)
    return out


def replay(files: list[Path], stream: str, speed: int, folder: Path) -> tuple[int, dict[str, bytes]]:
    """Replay, and return the exit code and what was written: name to content."""
    arguments = [*map(str, files), "--stream", stream, "--speed", str(speed), "--export", str(folder)]
    command = [sys.executable, "-m", "services.cli", "replay", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_MAX_S, check=False)
    if done.returncode not in (0, 4):
        print(done.stderr, flush=True)
    written = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}
    return done.returncode, written


def compare(files: list[Path], stream: str, speeds: list[int], folder: Path) -> bool:
    """Replay at each speed, show what comes out, and return whether it is always the same."""
    results = []
    for index, speed in enumerate(speeds):
        began = time.monotonic()
        ordered = files if index % 2 == 0 else files[::-1]
        code, written = replay(ordered, stream, speed, folder / str(speed))
        results.append((code, written))
        digest = hashlib.sha256(b"".join(name.encode() + written[name] for name in written)).hexdigest()[:16]
        rows = sum(content.count(b"\n") for content in written.values())
        words = f"exit code {code}, {len(written)} files, {rows} lines, sha256 {digest}"
        print(f"  speed {speed:>6}: {words}, {time.monotonic() - began:.0f} s", flush=True)
        for name in sorted(written.keys() | results[0][1].keys()):
            if written.get(name) != results[0][1].get(name):
                print(f"    {name} differs from that of speed {speeds[0]}", flush=True)
    return all(result == results[0] and result[1] for result in results)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.speeds", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="files, or folders of files that go together")
    parser.add_argument("--stream", default="aggTrade", choices=["aggTrade", "trade"])
    parser.add_argument("--slice", type=int, default=0, metavar="MINUTES", help="only the first minutes of each file")
    parser.add_argument("--speeds", nargs="+", type=int, default=SPEEDS)
    options = parser.parse_args()
    plays = [(path, options.stream, options.slice) for path in options.recordings] or [
        (RECORDINGS.parent / "cases" / name, stream, minutes) for name, stream, minutes in CASES
    ]
    differing = 0
    for path, stream, minutes in plays:
        with tempfile.TemporaryDirectory(prefix="ks") as folder:
            files = files_of(path)
            if minutes:
                files = [sliced(file, minutes, Path(folder)) for file in files]
            print(f"{path.name}{f', {minutes} minutes' if minutes else ''}", flush=True)
            if not compare(files, stream, options.speeds, Path(folder)):
                differing += 1
                print("  DIFFERS", flush=True)
    print(f"{len(plays)} recordings, {differing} differ", flush=True)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
