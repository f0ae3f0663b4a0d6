"""The ZeroMQ sockets between the services: their endpoints, how they are made, and the locks of the services.

The engine binds all of its sockets, so that every other process may start and end at any time. A send on a bound PUSH
socket without a peer would block, so that every send here is non-blocking, and its caller decides what happens to a
message that could not be sent.

A second process that binds the same ipc path takes it over without an error, so that a process takes a lock first.
"""

import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO, Any

import zmq

from shared.private import NotPrivate, private_folder

QUEUE_MAX = 100_000
"""Messages a queue holds at most; at a batch a message these are minutes of the busiest market."""
ENTERED = 0o711
"""The mode of the folder of sockets and locks if PostgreSQL runs as another user, who has to enter it."""
IPC_PATH_MAX = 100
"""The kernel takes 107 bytes; ZeroMQ and a suffix need a few."""


class PortTaken(RuntimeError):
    """Another process has what this one was to bind or to lock."""


def ipc(run_dir: Path, name: str) -> str:
    """Return the endpoint of an internal socket: `events`, `commands` or `store`. Raises NotPrivate."""
    path = run_dir.resolve() / f"{name}.ipc"
    if len(os.fsencode(path)) > IPC_PATH_MAX:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        path = private_folder() / f"{digest}.ipc"
    return f"ipc://{path}"


def lock_service(run_dir: Path, service: str) -> IO[str]:
    """Take the service's lock for as long as the returned file is open, in a folder that other users cannot open.

    Any user who could open the file could keep the lock. Raises PortTaken if another process has it, NotPrivate.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run_dir / f"{service}.lock"
    try:
        if run_dir.stat().st_mode & 0o777 != ENTERED:
            run_dir.chmod(0o700)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "a+")
        os.fchmod(file.fileno(), 0o600)
    except OSError as error:
        raise NotPrivate(f"{path} cannot be made this user's own: {error.strerror}; remove {run_dir}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise PortTaken(f"another {service} (process {file.read() or '?'}) already runs on {run_dir}") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def bind(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str) -> "zmq.Socket[bytes]":
    """Return a bound socket. Raises PortTaken."""
    socket = unbound(context, kind)
    listen(socket, endpoint)
    return socket


def listen(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    """Bind a socket, after its options were set; it is closed if that fails. Raises PortTaken."""
    set_address_family(socket, endpoint)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise PortTaken(f"cannot listen on {endpoint}: {error}") from error


def connect(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str) -> "zmq.Socket[bytes]":
    """Return a socket that connects as soon as the other side is bound."""
    socket = unbound(context, kind)
    # Often, so that a process that restarts is found at once: on this machine an attempt costs nothing.
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    socket.connect(endpoint)
    return socket


def send(socket: "zmq.Socket[bytes]", message: bytes) -> bool:
    """Send without waiting. Return False if the queue is full or there is no peer; then the message is not sent."""
    try:
        socket.send(message, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def set_address_family(socket: Any, endpoint: str) -> None:
    """Set a socket up for the kind of address that the endpoint has: ZeroMQ expects IPv4 unless told otherwise."""
    if "[" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)


def unbound(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    """Return a socket that is not yet connected to anything."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, 1_000)
    return socket
