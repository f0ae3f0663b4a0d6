"""How the simulator's process begins: it listens, serves the market and the control API, and ends at a signal.

A crash costs nothing: a generated market is a function of its seed and the time, and a replay begins again.
"""

import asyncio
import logging
import signal

import uvloop
from aiohttp import web

from services.simulator.control import ControlApi
from services.simulator.loop import Simulator
from services.simulator.writing import warm_up
from shared.addresses import at
from shared.config import Config
from shared.http_access import BadRequests, refuse_undecodable_headers
from shared.sockets import PortTaken

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    if config.exchange.name != "simulator":
        log.info("not needed: the exchange is %s", config.exchange.name)
        return 0
    return uvloop.run(_run(config))


async def _run(config: Config) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    warm_up()
    settings = config.simulator
    BadRequests.watch()
    simulator = Simulator(config)
    runner = web.AppRunner(
        _application(simulator, settings.host), access_log=None, shutdown_timeout=0.2, handler_cancellation=True
    )
    await runner.setup()
    assert runner.server is not None
    refuse_undecodable_headers(runner.server)
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        await runner.cleanup()
        raise PortTaken(f"cannot listen on {at(settings.host, settings.port)}: {error}") from error
    log.info("listening on %s: %s", at(settings.host, settings.port), simulator.describe())
    work = loop.create_task(simulator.run())
    stop = loop.create_task(ended.wait())
    try:
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        stop.cancel()
        work.cancel()
        simulator.break_connections()
        await runner.cleanup()
    log.info("ended; %d trades left the exchange", simulator.market.trades)
    return 0


def _application(simulator: Simulator, host: str) -> web.Application:
    """Return what is served: REST and the control have paths of their own, whatever is left is a websocket's."""
    control = ControlApi(simulator, host)
    application = web.Application(middlewares=[control.guard])
    simulator.add_rest(application.router)
    control.add_routes(application.router)
    simulator.add_websockets(application.router)
    return application
