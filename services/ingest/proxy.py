"""The proxy that the environment names, and the tunnel through it for a websocket.

Decides which proxy leads to an address, by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY as other programs read them.
An exchange on this machine is never asked through one. Only plain HTTP proxies are known.
"""

import asyncio
import base64
import socket
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from shared.addresses import at, is_loopback
from shared.process import Unavailable

PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
PROXIES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
"""By scheme of a URL, the proxy that it uses: a websocket uses the same as REST."""
REPLY_MAX = 8_192
"""Bytes of a proxy's answer, of which only the first line is read."""


def proxy_of(url: str) -> str:
    """Return the URL of the proxy that leads to `url`; empty if none does. Raises Unavailable if it cannot be used."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    proxies = getproxies_environment()
    if is_loopback(host) or proxy_bypass(f"{host}:{port}"):
        return ""
    proxy = proxies.get(PROXIES[parts.scheme]) or proxies.get("all") or ""
    if not proxy:
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        address = urlsplit(proxy)
        is_known = address.scheme == "http" and bool(address.hostname) and address.port != 0
    except ValueError:
        is_known = False
    if not is_known:
        # Only its beginning: there may be a password in it.
        raise Unavailable(
            f"the environment names a proxy for {host} that begins {proxy[:8]!r}: it has to be http://host:port"
        )
    return proxy


async def tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """Return a socket that is connected to `host` through the proxy. Raises OSError."""
    parts = urlsplit(proxy)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parts.hostname, parts.port or PORTS["http"], type=socket.SOCK_STREAM)
    why = OSError("the proxy has no address")
    for family, kind, protocol, _, address in found:
        tunnel = socket.socket(family, kind, protocol)
        tunnel.setblocking(False)
        try:
            await loop.sock_connect(tunnel, address)
            await loop.sock_sendall(tunnel, _request(parts.username, parts.password, host, port))
            await _read_answer(loop, tunnel)
        except OSError as error:
            tunnel.close()
            why = error
        except BaseException:
            tunnel.close()
            raise
        else:
            return tunnel
    raise why


def _request(username: str | None, password: str | None, host: str, port: int) -> bytes:
    target = at(host, port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if username is not None:
        credentials = f"{unquote(username)}:{unquote(password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _read_answer(loop: asyncio.AbstractEventLoop, tunnel: socket.socket) -> None:
    """Read the proxy's answer, and no more: the exchange sends nothing before it is sent something."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = await loop.sock_recv(tunnel, REPLY_MAX)
        answer += more
        if not more or len(answer) > REPLY_MAX:
            raise OSError(f"the proxy says {answer[:100]!r}")
    status = answer.split(b"\r\n")[0]
    if not status.startswith(b"HTTP/1.") or status[8:12] != b" 200":
        raise OSError(f"the proxy says {status[:100]!r}")
