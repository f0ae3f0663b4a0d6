"""klagg's command line: start one service, check the configuration, replay a recording, verify a history.

Decides what a command and its arguments mean. It is no service, so that it may start all of them,
each as `python -m services.<name>` would.
"""

import argparse
import asyncio
import fcntl
import logging
import runpy
import socket
import sys
import time
from contextlib import ExitStack
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from shared.addresses import at, is_loopback, listener
from shared.config import Config, ConfigError, load
from shared.interval import utc
from shared.names import is_name
from shared.private import NotPrivate
from shared.sockets import ipc

if TYPE_CHECKING:
    from services.persist.store import Connection

SERVICES = {
    "ingest": "the exchange's trades, as events for the engine",
    "engine": "trades into klines; publishes them",
    "persist": "klines into the database",
    "viz": "the page",
    "simulator": "an exchange of one's own, if exchange.name says so",
    "postgres": "the database that comes with klagg, unless database.url names another",
}


PROGRESS_S = 2.0
DIFFERENCES_MAX = 20
"""Minutes printed of one symbol; all are counted."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "check":
                return check(load())
            case "replay":
                return _replay(options)
            case "verify":
                return _verify(load(), options)
            case service:
                # Ends this process with the exit code of the service.
                runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)
                raise AssertionError(f"{service} returned")
    except ConfigError as error:
        print(f"klagg: configuration: {error}", file=sys.stderr)
        return 2
    except NotPrivate as error:
        print(f"klagg: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("klagg: interrupted", file=sys.stderr)
        return 130


def _replay(options: argparse.Namespace) -> int:
    # Imported here, because a service that is started by its name does not need it.
    from services.replay import replay
    from services.rooms import ReplayFailed

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="klagg replay: %(message)s")
    try:
        return replay(
            options.files,
            stream=options.stream,
            export=options.export,
            speed=options.speed,
            keep=options.keep,
            first_days=dict(options.first_day),
        )
    except ReplayFailed as error:
        print(f"klagg replay: {error}", file=sys.stderr)
        return error.code


def _verify(config: Config, options: argparse.Namespace) -> int:
    import psycopg

    from shared.postgres import database_url, error_text

    if options.since is not None and not options.against_exchange:
        print("klagg verify: --since is for --against-exchange; the tables are verified as a whole", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(database_url(config), connect_timeout=5, autocommit=True) as connection:
            if options.against_exchange:
                return asyncio.run(_compare(config, connection, options.symbols, options.since or 0))
            return _verify_tables(connection, options.symbols)
    except psycopg.Error as error:
        print(f"klagg verify: {error_text(error, config.database.url)}", file=sys.stderr)
        return 2


def _verify_tables(connection: "Connection", symbols: list[str] | None) -> int:
    from services.persist.verify import UNKNOWABLE, verify

    printed_at = time.monotonic()

    def progress(name: str, done: int, total: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at > PROGRESS_S:
            printed_at = time.monotonic()
            print(f"klagg verify: {name}: {done} of {total} symbols", file=sys.stderr)

    results = verify(connection, progress, symbols)
    for result in results:
        state = f"{result.failures} FAILED" if result.failures else "ok"
        print(f"{result.check.name:26} {state:12} {result.check.says}")
        for remark in result.remarks:
            print(f"    {remark}")
        for example in result.examples:
            print(f"    {example}")
        if result.failures > len(result.examples):
            print(f"    ... and {result.failures - len(result.examples)} more")
    print(UNKNOWABLE)
    return 1 if any(result.failures for result in results) else 0


async def _compare(config: Config, connection: "Connection", symbols: list[str] | None, since: int) -> int:
    """Compare stored minutes with the exchange's own. Return the exit code."""
    from services.engine.comparison import Comparison
    from services.ingest.binance.messages import Malformed
    from services.ingest.kline_history import ExchangeMinutes, MinuteRange, http_session
    from services.ingest.rest import RestError
    from services.persist.minutes import closed_minutes, traded

    code = 0
    async with http_session() as http:
        exchange = ExchangeMinutes(config, http)
        for known in traded(connection):
            if symbols is not None and known.symbol not in symbols:
                continue
            comparison = Comparison(known.price_decimals, known.quantity_decimals)
            try:
                for ours in closed_minutes(connection, known, since):
                    minutes = MinuteRange(
                        known.symbol, int(ours[0]["open_time"]), int(ours[-1]["open_time"]), *known[1:]
                    )
                    comparison.take(ours, await exchange.rows(minutes))
            except (RestError, Malformed) as error:
                print(f"klagg verify: {known.symbol}: the exchange does not answer: {error}", file=sys.stderr)
                return 2
            counts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(comparison.counts.items()))
            print(f"{known.symbol:20} {'DIFFERS' if comparison.differences else 'ok':12} minutes: {counts or 'none'}")
            for open_time, fields in comparison.differences[:DIFFERENCES_MAX]:
                differences = ", ".join(
                    f"{name} {ours} here, {official} there" for name, (ours, official) in fields.items()
                )
                print(f"    {known.symbol} 1m {utc(open_time)}: {differences or 'the exchange has no such minute'}")
            if comparison.differences:
                code = 1
    return code


def check(config: Config) -> int:
    """Print what will listen where, and what would keep klagg from running. Return the exit code. Raises NotPrivate."""
    ipc(config.run_path, "events")  # If data_dir is long, the sockets are in a folder of /tmp, which must be private.
    addresses = [("viz", "http://", config.viz.host, config.viz.port)]
    if config.exchange.name == "simulator":
        addresses.append(("simulator", "http://", config.simulator.host, config.simulator.port))
    if not config.database.url and config.database.port:
        addresses.append(("database", "", "127.0.0.1", config.database.port))
    host, port = listener(config.engine.snapshots)
    if host:
        addresses.append(("engine", "tcp://", host, port))
    running = _running(config)
    code = 0
    with ExitStack() as probes:
        # The probes stay open until the end: two settings may name the same address.
        for section, protocol, host, port in addresses:
            reason = _why_not(host, port, probes)
            address = at(host, port)
            if reason and not running:
                another = f"PORT={port + 1}" if section != "engine" else f"SNAPSHOTS=tcp://127.0.0.1:{port + 1}"
                print(
                    f"klagg: {section} cannot listen on {address}: {reason}. "
                    f"To use another address: KLAGG_{section.upper()}_{another}",
                    file=sys.stderr,
                )
                code = 3
            else:
                public = "" if is_loopback(host) else "  (other machines can reach it)"
                taken = f"  ({reason}: klagg runs on this folder, process {running})" if reason else ""
                print(f"{section:10} {protocol}{address}{public}{taken}")
    if not listener(config.engine.snapshots)[0]:
        print(f"{'engine':10} {config.engine.snapshots}")
    # A klagg that runs on this folder holds the tables.
    return code if running else max(code, _check_database(config))


def _check_database(config: Config) -> int:
    """Check the database of `database.url`. One that does not answer is no error: persist waits for it."""
    if not config.database.url:
        return 0
    from services.persist.tables import look

    reason, waits = look(config.database.url, config.exchange.name)
    if reason:
        print(f"klagg: database: {reason}{'; persist waits for it' if waits else ''}", file=sys.stderr)
    return 3 if reason and not waits else 0


def _running(config: Config) -> str:
    """Return the pid of a service that runs on this data_dir, by its lock; empty if there is none."""
    for path in config.run_path.glob("*.lock"):
        try:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read() or "?"
        except OSError:
            continue
    return ""


def _why_not(host: str, port: int, probes: ExitStack) -> str:
    """Return why nothing can listen there; empty if it can, and then a probe does until `probes` end."""
    if host in dict(socket.if_nameindex()).values():
        return ""  # ZeroMQ takes the name of an interface as well.
    try:
        family, _, _, _, address = socket.getaddrinfo(
            "0.0.0.0" if host == "*" else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        probe = probes.enter_context(socket.socket(family))
        # As servers do: connections of a server that has just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="klagg",
        description="Binance's live trades as klines of every interval, each trade applied exactly once.",
        epilog="Settings: klagg.toml, or KLAGG_<SECTION>_<KEY> in the environment. `make run` runs everything.",
    )
    parser.add_argument("--version", action="version", version=f"klagg {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for service, what in SERVICES.items():
        commands.add_parser(service, help=f"run one process: {what}", description=f"Run one process: {what}.")
    commands.add_parser(
        "check",
        help="say what will listen where, whether it can, and whether the database is fit",
        description="Read the configuration, try its addresses and look at database.url. Exit code 2: it is wrong; 3: "
        "an address cannot be listened on, or the database cannot be used.",
    )
    command = commands.add_parser(
        "verify",
        help="prove the stored history: ids without a hole, longer klines merged of shorter ones",
        description="Hold every stored kline to what must be true if each trade was applied exactly once, and name the "
        "places where it is not. Exit code 1: something does not hold; 2: the database or the exchange is not there.",
    )
    command.add_argument(
        "--symbols", type=lambda text: text.split(","), metavar="A,B", help="these alone; default: all of them"
    )
    command.add_argument(
        "--against-exchange",
        action="store_true",
        help="compare the closed minutes with the exchange's own klines instead, by REST and within its limits: that "
        "takes about 1 of weight for 200 minutes of a symbol",
    )
    command.add_argument(
        "--since", type=_time, metavar="DATE", help="with --against-exchange: minutes from then on, as 2026-11-26T12:00"
    )
    command = commands.add_parser(
        "replay",
        help="play recordings through the whole pipeline and write the klines as CSV",
        description="Play recordings through the whole pipeline, as real processes in a folder of their own, and write "
        "every closed kline in the form of the exchange's archive: DIR/<SYMBOL>/<SYMBOL>-<interval>.csv.",
        epilog="Exit code 0: all of the recording is in the klines, and proven; 4: files were written, but ids are"
        " missing (holes.csv), lines of the recording were left out, or more than 31 days in which nothing was recorded"
        " were skipped (skipped.csv), all of it told; 2: a file or an argument is wrong; 1: the replay did not reach"
        " its end, or its history does not hold; 130: interrupted.",
    )
    command.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="frames as received (.jsonl, .jsonl.gz), or the archive's trades (.csv, .csv.gz, .zip)",
    )
    command.add_argument("--stream", choices=["trade", "aggTrade"], default="aggTrade", help="default: %(default)s")
    command.add_argument("--export", type=Path, required=True, metavar="DIR", help="where the CSV files go")
    command.add_argument(
        "--speed", type=_speed, default=10_000.0, metavar="N", help="times real time, at most; default: %(default)g"
    )
    command.add_argument(
        "--first-day",
        type=_first_day,
        action="append",
        default=[],
        metavar="SYMBOL=DATE",
        help="the day on which a symbol was traded first, as BTCUSDT=2017-08-17: its 3d klines count from it",
    )
    command.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="leave the database and the logs there, those of what comes behind a skipped pause in FOLDER/2 and so on;"
        " a new or empty folder",
    )
    return parser


def _version() -> str:
    try:
        return version("klagg")
    except PackageNotFoundError:
        return "of a folder that `make run` has not installed"


def _time(text: str) -> int:
    """Return a UTC time in ms."""
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no time like 2026-11-26T12:00") from None


def _first_day(text: str) -> tuple[str, date]:
    symbol, _, day = text.rpartition("=")
    try:
        if is_name(symbol):
            return symbol, date.fromisoformat(day)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is nothing like BTCUSDT=2017-08-17")


def _speed(text: str) -> float:
    speed = float(text)
    if not 0.001 <= speed <= 10_000:
        raise argparse.ArgumentTypeError(f"{text} is outside 0.001 .. 10000")
    return speed


if __name__ == "__main__":
    sys.exit(main())
