"""Who is let in: how many connections, for how long without a request, and under which names.

Decides when a connection that asks nothing is closed, and which Host may be asked for. Knows no page and no viewer.

A connection that has not finished the head of a request after `HEAD_S` is closed, and so is one that is done and asks
nothing more. When there are too many all the same, the one that has been idle for longest makes room; when all are
busy, a new one is told so (503) and closed.
"""

import asyncio
import ipaddress
import resource
import socket
from collections.abc import Iterable

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


class Names:
    """The names under which this server may be asked for. Any other is one that a stranger's page has made up: its
    owner lets it lead to this machine, so that a browser takes what is here for his (rebinding).
    """

    def __init__(self, host: str, allowed: Iterable[str]) -> None:
        """`host`: where the server listens; `allowed`: names that lead to it, besides its own."""
        self._only_loopback = is_loopback(host)
        self._names = {name.lower().rstrip(".") for name in allowed}
        if not self._only_loopback:
            own = socket.gethostname().lower()
            self._names |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local", host.lower()}

    def refused(self, host: str) -> str:
        """Say why nothing is served under this name or address; empty if it is."""
        host = host.lower().rstrip(".")
        if is_loopback(host) or host in self._names:
            return ""
        if self._only_loopback:
            return "this server listens on this machine only; viz.host in klagg.toml opens it to others"
        # An address is no name that anybody could let lead elsewhere.
        return "" if _is_address(host) else "this server is not known by this name; see viz.allowed_hosts in klagg.toml"


def is_loopback(host: str) -> bool:
    """Say whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
