"""A recording through the whole pipeline: the same processes as live, in a folder of their own, then CSV files.

Decides when a replay is over: when every symbol's last id of the recording is in the database, none before it is
being asked for, and every minute that has ended is closed. Before anything is written, the history must hold
(`klagg verify`). What is not in it, because the recording lacks it or could not be read, is logged and decides the exit
code. Knows nothing of klines and files' contents: the simulator reads those, the rooms make these.

Where a recording stands still for longer than any kline lasts, its stretches are replays of their own, one after the
other, each with a new database: nothing says what was traded between them, so there are no klines of that time. Their
files are joined.

Crash: the rooms end with this process (shared/process.py); only the temporary folder stays behind a `kill -9`.
"""

import json
import logging
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from services.persist.export import (
    HOLES,
    PARTIAL,
    SKIPPED,
    Hole,
    Partial,
    Skipped,
    export_csv,
    export_lacking,
    holes_of,
    known_of,
    left_out,
    partial_of,
)
from services.persist.verify import verify
from services.rooms import ReplayFailed, Rooms, interruptible, uninterrupted
from shared.addresses import at
from shared.config import Config, load
from shared.interval import MINUTE_MS, utc
from shared.postgres import database_url
from shared.sockets import ipc

log = logging.getLogger(__name__)

ROOMS = ("postgres", "persist", "engine", "ingest", "simulator")
"""In the order of starting, but that ingest waits for the simulator to have read. Stopping goes the other way, so that
a room that has something to hand on still can."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".zip")
POLL_S = 0.1
PROGRESS_S, SAME_PROGRESS_S = 2.0, 10.0
"""How often to log how far it is, and how often that it is still there."""
TEMPORARY_MAX = 40
"""The path of a socket has 107 bytes at most, and the processes' sockets lie below the temporary folder."""
STALL_MAX_S = 120.0
"""A replay in which nothing has moved for so long will not end."""
START_MAX_S = 600.0
"""The same before the first trade: a first start compiles the engine, in half a minute if the machine is idle."""
SAVE_INTERVAL_MS = 250
"""The database shows how far the replay is, so it follows closely."""
WEIGHT_LIMIT = 1_000_000
"""Nobody else asks this exchange."""
PAUSE_MAX_S = 60.0
"""By the exchange's time: longer ones are jumped over."""
LOGGED_MAX = 20
"""Holes shown on the screen; all are in a file."""
INCOMPLETE = 4
"""The exit code where files were written, and something is not in them."""


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
    with _folder(keep) as folder, interruptible():
        rooms, files_of_all = Rooms(), folder / "export"
        recorded = _Recorded(rooms, folder, sources, stream, speed, first_days)
        found = _Found()
        try:
            for status, config in recorded.stretches():
                with psycopg.connect(database_url(config), autocommit=True) as connection:
                    _check(connection)
                    log.info("the history holds")
                    export_csv(connection, files_of_all, append=True)
                    found.add(connection, status)
            if not found.spans:
                raise ReplayFailed(f"there is no trade of the {stream} stream in the recording", code=2)
            log.info("writing %s", export)
            files_of_all.mkdir(exist_ok=True)
            found.write(files_of_all)
            for name in (HOLES, PARTIAL, SKIPPED):
                (export / name).unlink(missing_ok=True)
            shutil.copytree(files_of_all, export, dirs_exist_ok=True)
            shutil.rmtree(files_of_all)
            return INCOMPLETE if found.log_lacking(export, first_days) else 0
        finally:
            # A second Ctrl-C must not leave half of them running; what follows takes a few seconds at most.
            with uninterrupted():
                for room in reversed(ROOMS):
                    rooms.stop(room)


class _Recorded:
    """A recording, stretch by stretch."""

    def __init__(
        self, rooms: Rooms, folder: Path, sources: list[str], stream: str, speed: float, first_days: dict[str, date]
    ) -> None:
        self._rooms = rooms
        self._folder = folder
        self._stream = stream
        self._first_days = first_days
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._simulator = {"port": self._port, "speed": speed, "pause_max_s": PAUSE_MAX_S, "replay": sources}

    def stretches(self) -> Iterator[tuple[dict[str, Any], Config]]:
        """Yield what the simulator says at the end of each stretch, while all of it is in a database that is there.

        Raises ReplayFailed.
        """
        index, left = 0, 1
        while left:
            folder = self._folder / str(index + 1) if index else self._folder
            folder.mkdir(exist_ok=True)
            path, config = self._configure(folder, self._first_days)
            for room in ROOMS[:3]:
                self._rooms.start(room, folder, path)
            if not index:
                self._rooms.start("simulator", folder, path)
            else:
                _ask(self._port, "next", b"")
            status = _await_reading(self._rooms, self._port)
            assert status["stretch"] == index
            index, left = index + 1, status["stretches"] - status["stretch"] - 1
            if _wanted(status, self._stream):
                if status["stretches"] > 1:
                    span = " to ".join(map(utc, status["span"]))
                    log.info("stretch %d of %d, %s, in %s", index, status["stretches"], span, folder)
                # Klines of 3d count from the same day in all stretches.
                self._configure(folder, {name: date.fromisoformat(day) for name, day in status["first_days"].items()})
                self._rooms.start("ingest", folder, path)
                began_at = time.monotonic()
                status = _await_end(self._rooms, config, self._stream)
                log.info("replayed in %.1f s", time.monotonic() - began_at)
                for room in ("ingest", "engine", "persist"):
                    self._rooms.stop(room)
                yield status, config
            for room in ("engine", "persist", "postgres"):
                self._rooms.stop(room)

    def _configure(self, folder: Path, first_days: dict[str, date]) -> tuple[Path, Config]:
        path = folder / "klagg.toml"
        path.write_text(_config_text(folder, self._stream, self._simulator, first_days), encoding="utf-8")
        return path, load({"KLAGG_CONFIG": str(path)})


class _Found:
    """What is in no kline, or in one in part, of all stretches."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        """When the first and the last event of each stretch left."""
        self._holes: list[Hole] = []
        self._partial: list[Partial] = []
        self._saturated: Counter[str] = Counter()
        self._known: dict[str, Hole] = {}
        """Of each symbol: the ids of the last stretch that had it, and between which times they lie."""
        self._status: dict[str, Any] = {}

    def add(self, connection: psycopg.Connection[Any], status: dict[str, Any]) -> None:
        """Take what a database has of the stretch that is in it."""
        self._status = status
        first, last = status["span"]
        self.spans.append((first, last))
        for known in known_of(connection):
            before = self._known.get(known.symbol)
            if before is not None and before.last_id + 1 < known.first_id:
                ends = before.to_time // MINUTE_MS * MINUTE_MS, known.from_time + MINUTE_MS - 1
                self._holes.append(Hole(known.symbol, before.last_id + 1, known.first_id - 1, *ends))
            self._known[known.symbol] = known
        self._holes += holes_of(connection)
        self._partial += partial_of(connection, first, last)
        self._saturated.update(dict(left_out(connection)))

    @property
    def _skipped(self) -> list[Skipped]:
        return [Skipped(before[1], after[0]) for before, after in pairwise(self.spans)]

    def write(self, folder: Path) -> None:
        self._holes.sort()
        self._partial.sort()
        export_lacking(folder, self._holes, self._partial, self._skipped)

    def log_lacking(self, export: Path, first_days: dict[str, date]) -> bool:
        """Log what is lacking; return whether anything is."""
        if self._partial:
            words = "%d klines reach beyond what was recorded, and may lack what was traded there: %s"
            log.info(words, len(self._partial), export / PARTIAL)
        _log_grid(sorted(self._known.keys() - first_days.keys()))
        for symbol, count in sorted(self._saturated.items()):
            log.warning("%d klines of %s are not written: more was traded than their numbers hold", count, symbol)
        for skipped in self._skipped:
            log.warning("nothing was recorded from %s: there are no klines of that time", skipped.words())
        return _log_lacking(self._status, self._holes, export) or bool(self._saturated or self._skipped)


class _Saved(NamedTuple):
    """What is in the database."""

    symbols: dict[str, tuple[int, bool]]
    """Each symbol's highest id, and whether none below it is missing."""
    unclosed: int
    """How many 1m klines have ended by the exchange's time and are not closed yet."""
    minute: str
    """The newest one of some symbol; empty before there is any."""


def _check(connection: psycopg.Connection[Any]) -> None:
    """Raises ReplayFailed if the history contradicts itself."""
    # Tables that were filled a moment ago: without figures of them, the checks take a time that grows with its square.
    connection.execute("ANALYZE klines, symbols")
    failed = [result for result in verify(connection, lambda *_: None) if result.failures]
    if failed:
        lines = [f"{each.check.name}: {each.failures} places, {'; '.join(each.examples[:5])}" for each in failed]
        raise ReplayFailed("the history does not hold, and nothing is written:\n" + "\n".join(lines))


def _log_grid(symbols: list[str]) -> None:
    """Log whose 3d klines may be others than the exchange's."""
    if symbols:
        log.info(
            "3d klines of %s count from their first day here, and the exchange's from their first of all: --first-day",
            ", ".join(symbols[:LOGGED_MAX]) + (" ..." if len(symbols) > LOGGED_MAX else ""),
        )


def _log_lacking(status: dict[str, Any], holes: list[Hole], export: Path) -> bool:
    """Log what of the recording's ids and lines is not in the files; return whether there is anything."""
    for hole in holes[:LOGGED_MAX]:
        log.warning("%s lacks ids %d to %d: %s", hole.symbol, hole.first_id, hole.last_id, hole.words())
    if holes:
        ids = sum(hole.last_id - hole.first_id + 1 for hole in holes)
        log.warning("%d ids are in no kline, in %d holes: %s", ids, len(holes), export / HOLES)
    _log_fallen(status["fallen"], holes)
    left_out, contradicting = status["left_out"], status["contradicting"]
    for file, line, beginning, reason in left_out["first"]:
        log.warning("left out: %s line %d, %r: %s", file, line, beginning, reason)
    if left_out["count"]:
        log.warning("%d lines were not understood and are left out", left_out["count"])
    for symbol, trade_id, file, line in contradicting["first"]:
        log.warning(
            "id %d of %s came again with another trade, which is left out: %s line %d", trade_id, symbol, file, line
        )
    if contradicting["count"]:
        log.warning("%d ids came again with another trade; the first one counts", contradicting["count"])
    if status["repeated"]:
        log.info("%d trades came twice and count once", status["repeated"])
    return bool(holes or left_out["count"] or contradicting["count"])


def _log_fallen(fallen: dict[str, Any], holes: list[Hole]) -> None:
    """Log which ids of the holes are in the recording all the same, in an order in which nobody can use them."""
    lacking = [
        (trade_id, symbol, file, line, utc(time // MINUTE_MS * MINUTE_MS))
        for symbol, trade_id, time, file, line in fallen["first"]
        if any(hole.symbol == symbol and hole.first_id <= trade_id <= hole.last_id for hole in holes)
    ]
    for line in lacking:
        log.warning("id %d of %s is in the recording, %s line %d, but its kline, of %s, was over: it lacks it", *line)
    if lacking and fallen["count"] > len(fallen["first"]):
        log.warning("%d trades are so much older than one with a lower id", fallen["count"])


class _Watch:
    """Logs how far a replay is, and notices when nothing moves any more."""

    def __init__(self) -> None:
        self._moved_at = self._logged_at = time.monotonic()
        self._before: object = None
        self._logged = ""

    def is_stalled(self, progress: object, words: str, stall_max_s: float) -> bool:
        """Log `words` now and then; return whether `progress` has been the same for too long."""
        now = time.monotonic()
        if progress != self._before:
            self._before, self._moved_at = progress, now
        if now - self._logged_at >= (PROGRESS_S if words != self._logged else SAME_PROGRESS_S):
            self._logged, self._logged_at = words, now
            log.info("%s", words)
        return now - self._moved_at > stall_max_s


def _await_reading(rooms: Rooms, port: int) -> dict[str, Any]:
    """Wait until the simulator has read the recording, and return what it says then. Raises ReplayFailed."""
    watch = _Watch()
    while not (status := _ask(port, "status")):
        rooms.check()
        words = rooms.last_line("simulator") or "starting ..."
        if watch.is_stalled(words, words, START_MAX_S):
            raise ReplayFailed(f"nothing has moved for {START_MAX_S:.0f} s:\n{rooms.last_lines('simulator')}")
        time.sleep(POLL_S)
    return status


def _await_end(rooms: Rooms, config: Config, stream: str) -> dict[str, Any]:
    """Wait until all that was recorded is saved, and return what the simulator says then. Raises ReplayFailed."""
    watch = _Watch()
    while True:
        rooms.check()
        status = _ask(config.simulator.port, "status")
        wanted = _wanted(status, stream)
        saved = _saved(config, int(status.get("time", 0)))
        done = sum(saved.symbols.get(symbol, (-1, False)) >= (last_id, True) for symbol, last_id in wanted.items())
        if status.get("ended") and done == len(wanted) and not saved.unclosed:
            return status
        progress = (status.get("time"), status.get("trades"), saved)
        stall_max_s = STALL_MAX_S if status.get("trades") else START_MAX_S
        if watch.is_stalled(progress, _progress(status, saved, done, len(wanted)), stall_max_s):
            missing = sorted(
                set(wanted) - {symbol for symbol, state in saved.symbols.items() if state >= (wanted[symbol], True)}
            )
            logs = "\n".join(f"{room}: {rooms.last_lines(room)}" for room in ("ingest", "engine"))
            raise ReplayFailed(f"nothing has moved for {stall_max_s:.0f} s; not saved: {missing[:10]}\n{logs}")
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


def _ask(port: int, what: str, content: bytes | None = None) -> dict[str, Any]:
    """Ask the simulator how far it is, or POST; empty while it does not answer."""
    # No proxy of the environment stands between two processes of one machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{at('127.0.0.1', port)}/simulator/{what}", content, timeout=5.0) as answer:
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


def _config_text(folder: Path, stream: str, simulator: dict[str, Any], first_days: dict[str, date]) -> str:
    days = ", ".join(f"{json.dumps(symbol, ensure_ascii=False)} = {day}" for symbol, day in first_days.items())
    # JSON's strings, numbers and lists are TOML's as well.
    market = "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in simulator.items())
    return f"""\
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
{market}
listing_interval_s = 0.0
weight_limit = {WEIGHT_LIMIT}
"""


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
