"""How the engine's process begins: its sockets, the question to the store, and then what takes long to load.

The compiler's library and the compiled code take a second. Whoever needs the engine finds its sockets before that, and
the store answers meanwhile: what comes waits in the queue. A crash in between costs nothing; the answer is for this
session, and no other engine takes it.
"""

import time

import zmq

from services.engine.needs import rows_to_load
from services.engine.public import Public
from shared.config import Config
from shared.process import StopSignal, take_short_turns, take_small_pages
from shared.sockets import bind, ipc, lock_room, send
from shared.wire import Load, encode

STORE_WAIT_MS = 150
"""A store that has lost its engine looks for the next one more often than this."""


class Doors:
    """The engine's sockets. All are bound here, so that every neighbour may come and go."""

    def __init__(self, config: Config, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.session = time.time_ns() // 1_000
        self.events = bind(context, zmq.PULL, ipc(config.run_path, "events"))
        self.commands = bind(context, zmq.PUSH, ipc(config.run_path, "commands"))
        self.store = bind(context, zmq.PUSH, ipc(config.run_path, "store"))
        self.public = Public(context, config.engine.snapshots)
        self._load = encode(Load(self.session, rows_to_load(config.engine.window)))

    def ask_store(self, wait_ms: int = 0) -> bool:
        """Ask the store for its rows; return False if nobody is there."""
        return self.store.poll(wait_ms, zmq.POLLOUT) != 0 and send(self.store, self._load)


def main(config: Config) -> int:
    stop = StopSignal()
    take_short_turns()  # Before there are threads.
    take_small_pages()
    lock = lock_room(config.run_path, "engine")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        doors = Doors(config, context)
        asked = doors.ask_store(STORE_WAIT_MS)

        from services.engine.loop import Loop

        Loop(config, doors, stop, asked).run()
    finally:
        context.destroy(linger=1_000)
        lock.close()
    return 0
