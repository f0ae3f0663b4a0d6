"""How the simulator's process begins: it listens, serves the market and the operator's desk, and ends at a signal.

A crash costs nothing: a generated market is a function of its seed and the time, and a replay begins anew.
"""

import asyncio
import logging
import signal

import uvloop
from aiohttp import web

from services.simulator.desk import Desk
from services.simulator.loop import Simulator
from services.simulator.writing import warm_up
from shared.addresses import at
from shared.config import Config
from shared.sockets import PortTaken
from shared.visitors import Unreadable, take_only_text

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
    Unreadable.watch()
    simulator = Simulator(config)
    runner = web.AppRunner(
        _application(simulator, settings.host), access_log=None, shutdown_timeout=0.2, handler_cancellation=True
    )
    await runner.setup()
    assert runner.server is not None
    take_only_text(runner.server)
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
    """Return what is served: REST and the desk have paths of their own, whatever is left is a websocket's."""
    desk = Desk(simulator, host)
    application = web.Application(middlewares=[desk.guard])
    simulator.add_rest(application.router)
    desk.add_routes(application.router)
    simulator.add_websockets(application.router)
    return application
