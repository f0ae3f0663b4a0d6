"""Who may ask a server of ours by HTTP: nobody whom another site's page has sent, and nobody who sends no request.

Decides by what a browser says of where it comes from, and what is told of bytes that are no request. Knows neither
addresses nor status codes.
"""

import ipaddress
import logging
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shared.addresses import is_loopback

TOLD_MAX = 200
"""Characters of what a visitor sent that get into the log."""


class Names:
    """The names under which this server may be asked for. Any other is one that a stranger's page has made up: its
    owner lets it lead to this machine, so that a browser takes what is here for his (rebinding).
    """

    def __init__(self, room: str, host: str, allowed: Iterable[str] = ()) -> None:
        """`host`: where the room's server listens; `allowed`: names that lead to it, besides its own."""
        self._room = room
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
            return f"this server listens on this machine only; {self._room}.host in klagg.toml opens it to others"
        # An address is no name that anybody could let lead elsewhere.
        return "" if _is_address(host) else "this server is not known by this name; see viz.allowed_hosts in klagg.toml"

    def why_refused(self, headers: Mapping[str, str]) -> str:
        """Say why a request is refused; empty if it is not."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        try:
            refused = self.refused(urlsplit(f"//{host}").hostname or "")
            elsewhere = origin is not None and urlsplit(origin).netloc != host
        except ValueError:
            return "that is no address of a page"
        return refused or ("pages of other sites are not served" if elsewhere else "")


def take_only_text(server: web.Server) -> None:
    """Let a server refuse requests with headers that are no text: what quotes one cannot be sent."""
    serve = server.request_handler

    async def serve_text(request: web.BaseRequest) -> web.StreamResponse:
        try:
            "".join(request.headers.values()).encode()
        except UnicodeEncodeError:
            return web.Response(status=400, text="headers must be text")
        return await serve(request)

    server.request_handler = serve_text


class Unreadable(logging.Filter):
    """Counts requests that are none, or broke off, instead of a traceback for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @classmethod
    def watch(cls) -> "Unreadable":
        """Begin to count those of this process's server."""
        unreadable = cls()
        logging.getLogger("aiohttp.server").addFilter(unreadable)
        logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # It warns of what a visitor would rather speak.
        return unreadable

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the first through, in words, and whatever is a mistake of ours."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError):
            return True
        self.count += 1
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
        record.msg = "refused what is no request; more of them are only counted: %s"
        record.args = (" ".join(str(error).split())[:TOLD_MAX],)
        return self.count == 1


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
