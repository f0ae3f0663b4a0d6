"""The proxy that the environment names, and the way through it for a websocket.

Decides which proxy leads to an address, by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY as other programs read them.
An exchange on this machine is never asked through one. Only plain HTTP proxies are known.
"""

import asyncio
import base64
import ipaddress
import socket
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from shared.process import Unavailable

PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
PROXIES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
"""Whose proxy it is: a websocket goes the way that its REST goes."""
REPLY_MAX = 8_192
"""Bytes of a proxy's answer; what matters is its first line."""


def proxy_of(url: str) -> str:
    """Return the URL of the proxy that leads to `url`; empty if none does. Raises Unavailable if it is of no use."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    proxies = getproxies_environment()
    if _is_local(host) or proxy_bypass(f"{host}:{port}"):
        return ""
    proxy = proxies.get(PROXIES[parts.scheme]) or proxies.get("all") or ""
    if not proxy:
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        its = urlsplit(proxy)
        is_known = its.scheme == "http" and bool(its.hostname) and its.port != 0
    except ValueError:
        is_known = False
    if not is_known:
        # Not the whole of it: there may be a password in it.
        raise Unavailable(
            f"the environment names a proxy for {host} that begins {proxy[:8]!r}: it has to be http://host:port"
        )
    return proxy


async def tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """Return a socket on which `host` answers, far behind the proxy. Raises OSError."""
    its = urlsplit(proxy)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(its.hostname, its.port or PORTS["http"], type=socket.SOCK_STREAM)
    why = OSError("the proxy has no address")
    for family, kind, protocol, _, address in found:
        way = socket.socket(family, kind, protocol)
        way.setblocking(False)
        try:
            await loop.sock_connect(way, address)
            await loop.sock_sendall(way, _request(its.username, its.password, host, port))
            await _accepted(loop, way)
        except OSError as error:
            way.close()
            why = error
        except BaseException:
            way.close()
            raise
        else:
            return way
    raise why


def _request(username: str | None, password: str | None, host: str, port: int) -> bytes:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if username is not None:
        key = f"{unquote(username)}:{unquote(password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(key).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _accepted(loop: asyncio.AbstractEventLoop, way: socket.socket) -> None:
    """Read the proxy's answer. Who is behind it says nothing before it is spoken to."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = await loop.sock_recv(way, REPLY_MAX)
        answer += more
        if not more or len(answer) > REPLY_MAX:
            raise OSError(f"the proxy says {answer[:100]!r}")
    status = answer.split(b"\r\n")[0]
    if not status.startswith(b"HTTP/1.") or status[8:12] != b" 200":
        raise OSError(f"the proxy says {status[:100]!r}")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
