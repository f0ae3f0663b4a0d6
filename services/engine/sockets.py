"""The engine's sockets. All are bound here, so that every neighbour may come and go."""

import time

import zmq

from services.engine.publisher import Publisher
from services.engine.window import rows_to_load
from shared.config import Config
from shared.sockets import bind, ipc, send
from shared.wire import Load, encode


class EngineSockets:
    def __init__(self, config: Config, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.session = time.time_ns() // 1_000
        self.events = bind(context, zmq.PULL, ipc(config.run_path, "events"))
        self.commands = bind(context, zmq.PUSH, ipc(config.run_path, "commands"))
        self.store = bind(context, zmq.PUSH, ipc(config.run_path, "store"))
        self.publisher = Publisher(context, config.engine.snapshots)
        self._load = encode(Load(self.session, rows_to_load(config.engine.window)))

    def ask_store(self, wait_ms: int = 0) -> bool:
        """Ask the store for its rows; return False if nobody is there."""
        return self.store.poll(wait_ms, zmq.POLLOUT) != 0 and send(self.store, self._load)
