"""A recording through the whole pipeline: the same processes as ever, in a folder of their own, then CSV files.

Decides when a replay is over: when every symbol's last id of the recording is in the database, none before it is
being asked for, and every minute that has ended is closed. Before anything is written, the history must hold
(`klagg verify`). What is not in it, because the recording lacks it or could not be read, is told and decides the exit
code. Knows nothing of klines and files' contents: the simulator reads those, the rooms make these.

Crash: the rooms end with this process (shared/process.py); only the temporary folder stays behind a `kill -9`.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from services.persist.export import HOLES, PARTIAL, Hole, export_csv, export_holes, export_partial, left_out
from services.persist.verify import verify
from shared.addresses import at
from shared.config import Config, load
from shared.interval import MINUTE_MS, utc
from shared.postgres import database_url
from shared.process import die_with_parent
from shared.sockets import ipc

log = logging.getLogger(__name__)

ROOMS = ("postgres", "persist", "engine", "ingest", "simulator")
"""In the order of starting. Stopping goes the other way, so that whoever has something to hand on still can."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".zip")
POLL_S = 0.1
PROGRESS_S, SAME_PROGRESS_S = 2.0, 10.0
"""How often to tell how far it is, and how often that it is still there."""
TEMPORARY_MAX = 40
"""The path of a socket has 107 bytes at most, and the processes put theirs below the temporary folder."""
STALL_MAX_S = 120.0
"""A replay in which nothing has moved for so long will not end."""
START_MAX_S = 600.0
"""The same before the first trade: a first start compiles the engine, in half a minute if the machine is idle."""
STOP_MAX_S = 10.0
"""How long a room may take to end before it is killed."""
SAVE_INTERVAL_MS = 250
"""The database tells how far the replay is, so it follows closely."""
WEIGHT_LIMIT = 1_000_000
"""Nobody else asks this exchange."""
PAUSE_MAX_S = 60.0
"""By the exchange's time: longer ones are jumped over."""
BLAME_LINES_MAX = 15
TOLD_MAX = 20
"""Holes told on the screen; all are in a file."""
INCOMPLETE = 4
"""The exit code where files were written, and something is not in them."""


class ReplayFailed(RuntimeError):
    """A replay without a result, in words for the person who asked for it. `code`: 2 if it is the input's fault."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def replay(
    files: list[Path],
    *,
    stream: str,
    export: Path,
    speed: float,
    keep: Path | None,
    first_days: dict[str, date],
) -> int:
    """Replay recordings and write every closed kline below `export`; return 0, or `INCOMPLETE` if something is lacking.

    `first_days`: where the 3d klines of symbols count from. Raises ReplayFailed. Whatever happens, no process stays
    behind, and no folder but `export` and `keep`.
    """
    sources = [_checked(file) for file in files]
    try:
        export.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReplayFailed(f"{export}: {error.strerror}", code=2) from error
    with _folder(keep) as folder, _interruptible():
        path = _write_config(folder, sources, stream, speed, first_days)
        config = load({"KLAGG_CONFIG": str(path)})
        pipeline = _Pipeline(folder, path)
        try:
            for room in ROOMS:
                pipeline.start(room)
            began_at = time.monotonic()
            status = _await_end(pipeline, config, stream)
            log.info("replayed in %.1f s", time.monotonic() - began_at)
            for room in reversed(ROOMS[1:]):
                pipeline.stop(room)
            with psycopg.connect(database_url(config), autocommit=True) as connection:
                _check(connection)
                log.info("the history holds; writing %s", export)
                export_csv(connection, export)
                partial = export_partial(connection, export, *status["span"])
                holes = export_holes(connection, export)
                saturated = left_out(connection)
            _tell_partial(partial, export)
            _tell_grid(sorted(status["last_ids"].keys() - first_days.keys()))
            for symbol, count in saturated:
                log.warning("%d klines of %s are not written: more was traded than their numbers hold", count, symbol)
            return INCOMPLETE if _tell_lacking(status, holes, export) or saturated else 0
        finally:
            # A second Ctrl-C must not leave half of them running; what follows takes a few seconds at most.
            with _uninterrupted():
                for room in reversed(ROOMS):
                    pipeline.stop(room)


class _Saved(NamedTuple):
    """What is in the database."""

    symbols: dict[str, tuple[int, bool]]
    """Each symbol's highest id, and whether none below it is missing."""
    unclosed: int
    """How many 1m klines have ended by the exchange's time and are not closed yet."""
    minute: str
    """The newest one of some symbol; empty before there is any."""


class _Pipeline:
    """The rooms as processes, with a log each."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._folder = folder
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("KLAGG_", "SUPERVISOR_"))}
        self._environ = outside | {"KLAGG_CONFIG": str(config)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, room: str) -> None:
        with (self._folder / f"{room}.log").open("wb") as output:
            self._processes[room] = subprocess.Popen(
                [sys.executable, "-m", f"services.{room}"],
                cwd=Path(__file__).resolve().parents[1],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which then ends them in order.
                process_group=0,
                # They do it themselves, but not before Python has loaded what they need.
                preexec_fn=die_with_parent,
            )

    def stop(self, room: str) -> None:
        """End a room that runs, gracefully if it can be."""
        process = self._processes.get(room)
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end; killing it", room)
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raises ReplayFailed if a room has ended by itself."""
        for room, process in self._processes.items():
            code = process.poll()
            if code is not None:
                # The simulator reads the files; what it needs besides, a port, was free a moment ago.
                blame = 2 if room == "simulator" and code in (2, 3) else 1
                raise ReplayFailed(f"{room} ended with exit code {code}:\n{self.last_words(room)}", code=blame)

    def doing(self, room: str) -> str:
        """Return what a room has said last, without the time and its name."""
        words = self.last_words(room).rpartition("\n")[2].split(maxsplit=3)
        return words[3] if len(words) == 4 else ""

    def last_words(self, room: str) -> str:
        lines = (self._folder / f"{room}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-BLAME_LINES_MAX:])


def _check(connection: psycopg.Connection[Any]) -> None:
    """Raises ReplayFailed if the history contradicts itself."""
    # Tables that were filled a moment ago: without figures of them, the checks take a time that grows with its square.
    connection.execute("ANALYZE klines, symbols")
    failed = [result for result in verify(connection, lambda *_: None) if result.failures]
    if failed:
        lines = [f"{result.check.name}: {result.failures} places, {'; '.join(result.places[:5])}" for result in failed]
        raise ReplayFailed("the history does not hold, and nothing is written:\n" + "\n".join(lines))


def _tell_partial(partial: int, export: Path) -> None:
    if partial:
        log.info(
            "%d klines reach beyond the recording's first or last event, and may lack what it does not have: %s",
            partial,
            export / PARTIAL,
        )


def _tell_grid(symbols: list[str]) -> None:
    """Tell whose 3d klines may be others than the exchange's."""
    if symbols:
        log.info(
            "3d klines of %s count from their first day here, and the exchange's from their first of all: --first-day",
            ", ".join(symbols[:TOLD_MAX]) + (" ..." if len(symbols) > TOLD_MAX else ""),
        )


def _tell_lacking(status: dict[str, Any], holes: list[Hole], export: Path) -> bool:
    """Tell what of the recording's ids and lines is not in the files; return whether there is anything."""
    for hole in holes[:TOLD_MAX]:
        log.warning("%s lacks ids %d to %d: %s", hole.symbol, hole.first_id, hole.last_id, hole.words())
    if holes:
        ids = sum(hole.last_id - hole.first_id + 1 for hole in holes)
        log.warning("%d ids are in no kline, in %d holes: %s", ids, len(holes), export / HOLES)
    _tell_fallen(status["fallen"], holes)
    left_out, contradicting = status["left_out"], status["contradicting"]
    for file, line, beginning, reason in left_out["first"]:
        log.warning("left out: %s line %d, %r: %s", file, line, beginning, reason)
    if left_out["count"]:
        log.warning("%d lines were not understood and are left out", left_out["count"])
    for symbol, number, file, line in contradicting["first"]:
        log.warning(
            "id %d of %s came again with another trade, which is left out: %s line %d", number, symbol, file, line
        )
    if contradicting["count"]:
        log.warning("%d ids came again with another trade; the first one counts", contradicting["count"])
    if status["repeated"]:
        log.info("%d trades came twice and count once", status["repeated"])
    return bool(holes or left_out["count"] or contradicting["count"])


def _tell_fallen(fallen: dict[str, Any], holes: list[Hole]) -> None:
    """Tell which ids of the holes are in the recording all the same, in an order in which nobody can use them."""
    lacking = [
        (number, symbol, file, line, utc(time // MINUTE_MS * MINUTE_MS))
        for symbol, number, time, file, line in fallen["first"]
        if any(hole.symbol == symbol and hole.first_id <= number <= hole.last_id for hole in holes)
    ]
    for line in lacking:
        log.warning("id %d of %s is in the recording, %s line %d, but its kline, of %s, was over: it lacks it", *line)
    if lacking and fallen["count"] > len(fallen["first"]):
        log.warning("%d trades are so much older than one with a lower id", fallen["count"])


def _await_end(pipeline: _Pipeline, config: Config, stream: str) -> dict[str, Any]:
    """Wait until all that was recorded is saved, and return what the simulator says then. Raises ReplayFailed."""
    moved_at = told_at = time.monotonic()
    before: object = None
    told = ""
    while True:
        pipeline.check()
        status = _status(config)
        wanted = _wanted(status, stream)
        saved = _saved(config, int(status.get("time", 0)))
        done = sum(saved.symbols.get(symbol, (-1, False)) >= (last_id, True) for symbol, last_id in wanted.items())
        if status and not wanted:
            raise ReplayFailed(f"there is no trade of the {stream} stream in the recording", code=2)
        if status.get("ended") and done == len(wanted) and not saved.unclosed:
            return status
        now = time.monotonic()
        reading = "" if status else pipeline.doing("simulator")
        progress = (status.get("time"), status.get("trades"), saved, reading)
        if progress != before:
            before, moved_at = progress, now
        elif now - moved_at > (stall_max_s := STALL_MAX_S if status.get("trades") else START_MAX_S):
            missing = sorted(
                set(wanted) - {symbol for symbol, state in saved.symbols.items() if state >= (wanted[symbol], True)}
            )
            logs = "\n".join(f"{room}: {pipeline.last_words(room)}" for room in ("ingest", "engine"))
            raise ReplayFailed(f"nothing has moved for {stall_max_s:.0f} s; not saved: {missing[:10]}\n{logs}")
        words = reading or _progress(status, saved, done, len(wanted))
        if now - told_at >= (PROGRESS_S if words != told else SAME_PROGRESS_S):
            told, told_at = words, now
            log.info("%s", words)
        time.sleep(POLL_S)


def _wanted(status: dict[str, Any], stream: str) -> dict[str, int]:
    """Return the last id of each symbol that the stream has."""
    last_ids = {symbol: ids.get(stream) for symbol, ids in (status.get("last_ids") or {}).items()}
    return {symbol: last_id for symbol, last_id in last_ids.items() if last_id is not None}


def _progress(status: dict[str, Any], saved: _Saved, done: int, symbols: int) -> str:
    if not status:
        return "starting ..."
    words = f"at {utc(status['time'])}, {status['trades']} trades played"
    if saved.minute:
        words += f"; saved up to {saved.minute}"
    return f"{words}; {done} of {symbols} symbols saved to the end"


def _status(config: Config) -> dict[str, Any]:
    """Ask the simulator how far it is; empty while it does not answer."""
    url = f"http://{at(config.simulator.host, config.simulator.port)}/simulator/status"
    # No proxy of the environment stands between two processes of one machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5.0) as answer:
            status: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return {}
    return status


def _saved(config: Config, time_ms: int) -> _Saved:
    with suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable):
        with psycopg.connect(database_url(config), connect_timeout=2) as connection:
            rows = connection.execute("SELECT symbol, last_id, isempty(gaps) FROM symbols").fetchall()
            found = connection.execute(
                "SELECT (SELECT count(*) FROM klines WHERE interval = '1m' AND NOT closed"
                "   AND close_time < to_timestamp(%s)),"
                " (SELECT max(open_time) AT TIME ZONE 'UTC' FROM klines"
                "   WHERE symbol = (SELECT min(symbol) FROM symbols) AND interval = '1m')",
                [time_ms / 1000],
            ).fetchone()
        unclosed, minute = found or (0, None)
        return _Saved({symbol: (last_id, whole) for symbol, last_id, whole in rows}, unclosed, str(minute or ""))
    return _Saved({}, 0, "")


def _checked(file: Path) -> str:
    """Return the file's absolute path. Raises ReplayFailed."""
    if not file.name.endswith(SUFFIXES):
        raise ReplayFailed(f"{file}: a recording's name ends in {', '.join(SUFFIXES)}", code=2)
    try:
        with file.open("rb") as content:
            if not content.read(1):
                raise ReplayFailed(f"{file}: the file is empty", code=2)
    except OSError as error:
        raise ReplayFailed(f"{file}: {error.strerror}", code=2) from error
    return str(file.resolve())


def _write_config(folder: Path, sources: list[str], stream: str, speed: float, first_days: dict[str, date]) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    days = ", ".join(f"{json.dumps(symbol, ensure_ascii=False)} = {day}" for symbol, day in first_days.items())
    # JSON's strings, numbers and lists are TOML's as well.
    text = f"""\
data_dir = "data"
[exchange]
stream = "{stream}"
clock_speed = 0.0
first_days = {{ {days} }}
weight_share = 1.0
# The simulator takes any: trades that it played before the pipeline was ready are asked for by their ids.
api_key = "replay"
[engine]
save_interval_ms = {SAVE_INTERVAL_MS}
snapshots = {json.dumps(ipc(folder, "snapshots"))}
[simulator]
port = {port}
speed = {speed}
pause_max_s = {PAUSE_MAX_S}
replay = {json.dumps(sources, ensure_ascii=False)}
listing_interval_s = 0.0
weight_limit = {WEIGHT_LIMIT}
"""
    path = folder / "klagg.toml"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise ReplayFailed(f"{keep}: the folder is not empty", code=2)
        except OSError as error:
            raise ReplayFailed(f"{keep}: {error.strerror}", code=2) from error
        yield keep.resolve()
        return
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="klagg-replay-", dir=usual if len(usual) <= TEMPORARY_MAX else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process the way Ctrl-C does: with everything tidied up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, what in before.items():
            signal.signal(number, what)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, what in zip(numbers, before, strict=True):
            signal.signal(number, what)
