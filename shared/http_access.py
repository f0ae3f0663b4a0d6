"""Which HTTP requests a server of ours refuses: those that another site's page makes, and bytes that are no request.

Decides by the Host and Origin headers, and what is logged of bytes that are no request. Knows neither paths nor status
codes.
"""

import ipaddress
import logging
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shared.addresses import is_loopback

LOGGED_MAX = 200
"""Characters of a request that get into the log."""


class AllowedHosts:
    """The names by which this server may be addressed.

    Any other may be of an attacker's page, which lets a name of its own resolve to this machine, so that the browser
    takes this server for the page's own (DNS rebinding).
    """

    def __init__(self, service: str, host: str, allowed: Iterable[str] = ()) -> None:
        """`host`: where the service listens; `allowed`: names that resolve to it, besides the machine's own."""
        self._service = service
        self._only_loopback = is_loopback(host)
        self._names = {name.lower().rstrip(".") for name in allowed}
        if not self._only_loopback:
            own = socket.gethostname().lower()
            self._names |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local", host.lower()}

    def refused(self, host: str) -> str:
        """Return why requests to this name or address are refused; empty if they are served."""
        host = host.lower().rstrip(".")
        if is_loopback(host) or host in self._names:
            return ""
        if self._only_loopback:
            return f"this server listens on this machine only; {self._service}.host in klagg.toml opens it to others"
        # An address cannot be rebound as a name can.
        return "" if _is_address(host) else "this server is not known by this name; see viz.allowed_hosts in klagg.toml"

    def why_refused(self, headers: Mapping[str, str]) -> str:
        """Return why a request is refused; empty if it is not."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        try:
            refused = self.refused(urlsplit(f"//{host}").hostname or "")
            is_foreign = origin is not None and urlsplit(origin).netloc != host
        except ValueError:
            return "that is no address of a page"
        return refused or ("pages of other sites are not served" if is_foreign else "")


def refuse_undecodable_headers(server: web.Server) -> None:
    """Let a server answer 400 to headers that are no text: an answer that quoted one could not be sent."""
    serve = server.request_handler

    async def serve_text(request: web.BaseRequest) -> web.StreamResponse:
        try:
            "".join(request.headers.values()).encode()
        except UnicodeEncodeError:
            return web.Response(status=400, text="headers must be text")
        return await serve(request)

    server.request_handler = serve_text


class BadRequests(logging.Filter):
    """Counts requests that are malformed or broke off, in place of a traceback for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @classmethod
    def watch(cls) -> "BadRequests":
        """Begin to count those of this process's server."""
        bad_requests = cls()
        logging.getLogger("aiohttp.server").addFilter(bad_requests)
        logging.getLogger("aiohttp.websocket").setLevel(
            logging.ERROR
        )  # It warns of every protocol that a client offers.
        return bad_requests

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the first pass as one line, and every bug of ours as it is."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError):
            return True
        self.count += 1
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
        record.msg = "refused what is no request; more of them are only counted: %s"
        record.args = (" ".join(str(error).split())[:LOGGED_MAX],)
        return self.count == 1


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
