"""How the engine's process begins: its sockets, the question to the store, and then what takes long to load.

The compiler's library and the compiled code take a second. Whoever needs the engine finds its sockets before that, and
the store answers meanwhile: what comes waits in the queue. A crash in between costs nothing; the answer is for this
session, and no other engine takes it.
"""

import zmq

from services.engine.sockets import EngineSockets
from shared.config import Config
from shared.process import StopSignal
from shared.sockets import lock_service
from shared.tuning import disable_huge_pages, request_short_slices

STORE_WAIT_MS = 150
"""A store that has lost its engine looks for the next one more often than this."""


def main(config: Config) -> int:
    stop = StopSignal()
    request_short_slices()  # Before there are threads.
    disable_huge_pages()
    lock = lock_service(config.run_path, "engine")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        sockets = EngineSockets(config, context)
        asked = sockets.ask_store(STORE_WAIT_MS)

        from services.engine.loop import Loop

        Loop(config, sockets, stop, asked).run()
    finally:
        context.destroy(linger=1_000)
        lock.close()
    return 0
