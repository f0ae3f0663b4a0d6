"""The viz as a process: from the engine's snapshots and the database to browsers.

Decides nothing: it connects the hub to the engine's snapshot port, as any other subscriber would, and to the web
server. What a crash costs: viewers reconnect by themselves and get their history again; no other process notices.
"""

import asyncio
import logging
import signal
import socket
import time
from contextlib import suppress

import uvloop
from aiohttp import web

from services.viz.database import DatabaseUnavailable, Reader
from services.viz.hub import STATUS_S, Hub
from services.viz.web import HEAD_S, ConnectionLimit, Web
from shared.client import AsyncSnapshots
from shared.config import Config
from shared.http_access import AllowedHosts, refuse_undecodable_headers
from shared.postgres import database_url
from shared.snapshot import HEALTH_TOPIC, TICKERS_TOPIC, Snapshot, Tickers
from shared.sockets import PortTaken

PROBE_S = 1.0
"""How often it is checked that the database answers."""
BACKLOG = 1_024
"""Connections that wait to be accepted while this process is busy."""
SHUTDOWN_S = 0.5
"""How long answers in progress may take at the end."""

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    return uvloop.run(run(config))


async def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Raises PortTaken."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    snapshots = AsyncSnapshots(config.engine.snapshots, [TICKERS_TOPIC, HEALTH_TOPIC])
    hub = Hub(snapshots.subscribe, snapshots.unsubscribe, config.engine.save_interval_ms / 1_000)
    reader = Reader(lambda: database_url(config))
    hub.set_database(reader.error)
    site = Web(hub, reader, time.monotonic, AllowedHosts("viz", config.viz.host, config.viz.allowed_hosts))
    runner = web.AppRunner(
        site.app(),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_S,
        keepalive_timeout=HEAD_S,
        lingering_time=1.0,
    )
    tasks: list[asyncio.Task[None]] = []
    server: asyncio.Server | None = None
    try:
        server = await listen(runner, site, config.viz.host, config.viz.port)
        tasks = [
            asyncio.create_task(read_engine(snapshots, hub)),
            asyncio.create_task(watch_database(reader, hub)),
            asyncio.create_task(send_status(snapshots, hub)),
        ]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            server.close()
        await runner.cleanup()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.close(), SHUTDOWN_S)
        snapshots.close()
    log.info("stopped")
    return 0


async def listen(runner: web.AppRunner, site: Web, host: str, port: int) -> asyncio.Server:
    await runner.setup()
    assert runner.server is not None
    refuse_undecodable_headers(runner.server)
    try:
        server = await asyncio.get_running_loop().create_server(
            ConnectionLimit(runner.server, site.busy), host, port, backlog=BACKLOG
        )
    except (OSError, socket.gaierror) as error:
        raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    log.info("the page is at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
    return server


async def read_engine(snapshots: AsyncSnapshots, hub: Hub) -> None:
    """Give the hub every message of the engine. After a loss the topic is subscribed again, which brings its rows."""
    async for topic, message in snapshots:
        now = time.monotonic()
        match message:
            case Snapshot():
                hub.snapshot(message, now)
                if snapshots.missing and hub.note_lost(topic, now):
                    log.info("%s: %d messages lost; asking for its rows again", topic, snapshots.missing)
                    snapshots.unsubscribe(topic)
                    snapshots.subscribe(topic)
            case Tickers():
                hub.tickers(message, now)
            case _:
                hub.engine_health(message, now)


async def watch_database(reader: Reader, hub: Hub) -> None:
    """Check the database, and take the list of symbols from it while the engine sends none."""
    while True:
        with suppress(DatabaseUnavailable):
            await reader.probe()
            if hub.status(time.monotonic()).engine != "live":
                hub.saved_symbols(await reader.symbols())
        hub.set_database(reader.error)
        await asyncio.sleep(PROBE_S)


async def send_status(snapshots: AsyncSnapshots, hub: Hub) -> None:
    """Send viewers the status, and log changes of the engine's state."""
    engine, refused = "absent", 0
    while True:
        now = time.monotonic()
        hub.lost, hub.undecoded = snapshots.lost.total(), snapshots.refused
        hub.send_status(now)
        state = hub.status(now).engine
        if state != engine:
            log.info("the engine is %s", state)
            engine = state
        if not refused and hub.refused + hub.undecoded:
            refused = hub.refused + hub.undecoded
            log.warning("refused a message of the engine, later ones are only counted: %s", snapshots.refused_last)
        await asyncio.sleep(STATUS_S)
