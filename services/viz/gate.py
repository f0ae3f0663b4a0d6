"""Who is let in: how many connections, and for how long without a request.

Decides when a connection that asks nothing is closed. Knows no page and no viewer.

A connection that has not finished the head of a request after `HEAD_S` is closed, and so is one that is done and asks
nothing more. When there are too many all the same, the one that has been idle for longest makes room; when all are
busy, a new one is told so (503) and closed.
"""

import asyncio
import resource

from aiohttp import web

HEAD_S = 10.0
"""A browser sends a head at once, however slow its line is."""
CONNECTIONS_MAX = 4_000
"""Eight times the viewers; an idle one costs some 10 KB."""
DESCRIPTORS_SPARE = 100
"""For the engine, the database and the page's own files."""


class Gate:
    """Makes the server's side of each new connection, as `asyncio` asks for it."""

    def __init__(self, server: web.Server, busy: set[object], connections_max: int = 0) -> None:
        """`busy`: the connections of which a request is being answered. `connections_max`: 0 means as many as fit."""
        self._server = server
        self._busy = busy
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_SPARE
        self.connections_max = connections_max or min(CONNECTIONS_MAX, descriptors)
        self.closed = 0
        """Connections that were closed because there were too many."""

    def __call__(self) -> asyncio.Protocol:
        connections = self._server.connections
        if len(connections) >= self.connections_max:
            self.closed += 1
            # They are in the order in which they came.
            idle = next((held for held in connections if held not in self._busy), None)
            if idle is None:
                return _Full()
            idle.force_close()
        return self._server()


class _Full(asyncio.Protocol):
    """Says that there is no room, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Too many connections\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()
