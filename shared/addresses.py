"""Hosts and ports as text: which hosts are this machine, and how host and port are written.

Nothing is looked up, and whether a port is listened on is not known here.
"""

import ipaddress


def is_loopback(host: str) -> bool:
    """Say whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def at(host: str, port: int) -> str:
    """Return a host and a port as URLs have them: `127.0.0.1:80`, `[::1]:80`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listener(endpoint: str) -> tuple[str, int]:
    """Return where a ZeroMQ endpoint listens: host and port; ("", 0) for a socket in the file system.

    The host is an address, `*`, or the name of a network interface. Raises ValueError where nothing could listen.
    """
    protocol, separator, address = endpoint.partition("://")
    if protocol == "ipc" and separator and address:
        return "", 0
    host, _, digits = address.rpartition(":")
    if protocol != "tcp" or not separator or not host:
        raise ValueError("neither tcp://ADDRESS:PORT nor ipc://PATH")
    if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= 65_535:
        raise ValueError(f"the port {digits!r} is outside 1 .. 65535")
    bare = host.removeprefix("[").removesuffix("]")
    if host != (f"[{bare}]" if ":" in bare else bare):
        raise ValueError("an IPv6 address has brackets: tcp://[::1]:5556")
    if host == "localhost":
        raise ValueError("a name is not looked up here: 127.0.0.1 or [::1]")
    return bare, int(digits)
