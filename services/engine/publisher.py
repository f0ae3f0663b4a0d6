"""The snapshots' socket, which strangers connect to: how many may, how much each may ask, and how much waits for all.

Knows nothing of topics. ZeroMQ tells who came and went (its monitor) and which connection a message is from, both by
the descriptor; to end a connection is to shut that down. ZeroMQ itself has no bound for connections, and one that is
beyond the process's descriptors ends it: the internal sockets' `accept` takes that for a bug.

Who subscribes what is counted here. ZeroMQ (4.3.5) passes on whatever a connection gives up, also what only others
subscribe: believed, one message of a stranger would take a topic from everybody.

ZeroMQ does not tell how much waits for whom either, and to change its bound while connections end is a crash (libzmq
4.3.5, its issue 4524). The kernel does: who keeps up has sent most of what was given to it, and of who is behind it has
all that it takes.
"""

import fcntl
import resource
import socket
import struct
import sys
import termios
from contextlib import suppress

import zmq

from shared.sockets import listen, unbound

MESSAGE_BYTES_MAX = 1_024
"""A subscription, and all else that comes in; what is longer ends its connection. A topic has 330 at the most."""
QUEUE_MAX, QUEUES_MAX = 20_000, 200_000
"""Messages that wait for one subscriber, and for all who are behind: 128 bytes each, and the bodies, of which there is
one for all. One has room for two rounds of every topic of 500 symbols; what is more is lost to it. Are all too far
behind, those who have been longest are disconnected."""
SEND_BUFFER = 128 << 10
"""Bytes that the kernel keeps for one subscriber; it takes twice as many."""
BEHIND_BYTES = SEND_BUFFER // 2
"""Who has so much unsent is behind: ZeroMQ fills the kernel's buffer again before a third of it is free."""
LOOK_AFTER = 100_000
"""Messages, times connections, between two looks at who is behind: 10 ms of sending, for 1 µs a connection."""
PING_MS, ANSWER_MAX_MS = 10_000, 20_000
"""Who does not answer, or takes nothing, for so long is disconnected: it comes again when it can."""
GREETING_MAX_MS = 5_000
"""Who has not said by then what it is, is no subscriber."""
CONNECTIONS_MAX = 1_000
"""At once; the newest is closed, and no more than half of the descriptors are theirs."""
CHANGES_MAX = 2_000
"""Connections that came or went taken a turn: some 10 ms."""
SUBSCRIPTIONS_MAX = 1_000
"""Messages taken a turn: some 5 ms."""
UNREAD_MAX = 100
"""Messages of a connection: ZeroMQ puts all that are there into its index at once, 40 µs for one of the longest."""
ASKED_BYTES_MAX = 512 << 10
"""A connection's subscriptions in `ASKED_NS`: every topic of a large market. More is no subscriber either."""
PREFIXES_BYTES_MAX = 512 << 10
"""Of all different subscriptions: twice every topic of a large market. ZeroMQ has up to 107 bytes a byte in its index,
and goes through all of that whenever a connection ends: 40 ms."""
HELD_MAX = 500_000
"""Subscriptions of all connections, 100 bytes each here and in ZeroMQ: 66 times every topic of 500 symbols."""
MESSAGE_COST = 8
"""What counts for a message beside its bytes."""
ASKED_NS = 60_000_000_000
MONITOR = "inproc://snapshots-monitor"
CHANGE = struct.Struct("=Hi")
"""What the monitor says: an event, and the descriptor."""
NOBODY = -1
"""Who has gone already; ZeroMQ unsubscribes for it."""
SUBSCRIBED, GIVEN_UP = b"\x01", b"\x00"
"""How messages begin that say so; the rest is the prefix."""
ODD = b""
"""A message that says neither."""
THERE = int(zmq.POLLIN)

OPTIONS = {
    zmq.XPUB_VERBOSER: 1,
    zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX,
    zmq.SNDHWM: QUEUE_MAX,
    zmq.RCVHWM: UNREAD_MAX,
    zmq.SNDBUF: SEND_BUFFER,
    # A ping that finds no room is never sent, and so never missed: then it is TCP that waits in vain.
    zmq.HEARTBEAT_IVL: PING_MS,
    zmq.HEARTBEAT_TIMEOUT: ANSWER_MAX_MS,
    zmq.TCP_MAXRT: ANSWER_MAX_MS,
    zmq.HANDSHAKE_IVL: GREETING_MAX_MS,
}


class Publisher:
    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str) -> None:
        self.socket = unbound(context, zmq.XPUB)
        for option, value in OPTIONS.items():
            self.socket.setsockopt(option, value)
        # Without its descriptor on its messages nobody could be held to a bound: with this, ZeroMQ takes no peer that
        # speaks ZMTP 1 or 2, as libzmq 3 does, of whom it tells none. Nobody is asked for a name.
        self.socket.setsockopt(zmq.ZAP_DOMAIN, b"snapshots")
        self.socket.monitor(MONITOR, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.changes = context.socket(zmq.PAIR)
        self.changes.setsockopt(zmq.RCVHWM, 0)  # A full queue would halt ZeroMQ's own thread.
        self.changes.connect(MONITOR)
        listen(self.socket, endpoint)
        bound = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._home = bound.removeprefix("ipc://") if bound.startswith("ipc:") else bound.rpartition(":")[2]
        """What all its connections have in common: a path or a port."""
        self._asked: dict[int, int] = {}
        """What each connection has asked lately, bytes; the newest is last."""
        self._asked_until = 0
        self._held: dict[int, set[bytes]] = {}
        """What each connection subscribes."""
        self._held_count = 0
        self._holders: dict[bytes, int] = {}
        """How many connections subscribe each prefix."""
        self._prefixes_bytes = 0
        self._changed: list[bytes] = []
        """What was subscribed or given up, in order."""
        self._behind: dict[int, int] = {}
        """Who is behind, and how much had been sent when it still kept up; the longest is first."""
        self._sent = self._looked = 0
        """Messages: sent, and sent until the last look."""
        self.figures = {"connections": 0, "connections_closed": 0}

    def count(self) -> None:
        """Take who came and who went, and close those that are too many."""
        for _ in range(CHANGES_MAX):
            if not int(self.changes.get(zmq.EVENTS)) & THERE:
                break
            change, _ = self.changes.recv_multipart(zmq.NOBLOCK)
            event, connection = CHANGE.unpack(change)
            self._forget(connection)
            if event == zmq.EVENT_ACCEPTED:
                self._asked[connection] = 0
        most = min(CONNECTIONS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        while len(self._asked) > most:
            self.close(next(reversed(self._asked)))
        self.figures["connections"] = len(self._asked)

    def sent(self, messages: int) -> None:
        """Know that so many messages were sent, and disconnect some of those who are behind if all are too far."""
        self._sent += messages
        if len(self._asked) * (self._sent - self._looked) < LOOK_AFTER:
            return
        for connection in self._asked:
            if _unsent(connection) < BEHIND_BYTES:
                self._behind.pop(connection, None)
            else:
                self._behind.setdefault(connection, self._looked)
        self._looked = self._sent
        waiting = sum(self._waiting(connection) for connection in self._behind)
        while waiting > QUEUES_MAX:
            longest = next(iter(self._behind))
            waiting -= self._waiting(longest)
            self.close(longest)

    def _waiting(self, connection: int) -> int:
        return min(QUEUE_MAX, self._sent - self._behind[connection])

    def asked(self, now_ns: int) -> list[bytes]:
        """Take up to `SUBSCRIPTIONS_MAX` messages; return what was subscribed, and what nobody subscribes any more.

        It looks as ZeroMQ passes it on: a byte that says which of the two, and a prefix.
        """
        if now_ns >= self._asked_until:
            self._asked_until = now_ns + ASKED_NS
            self._asked = dict.fromkeys(self._asked, 0)
        frames: list[zmq.Frame] = []
        with suppress(zmq.Again):
            while len(frames) < SUBSCRIPTIONS_MAX:
                frames.append(self.socket.recv(zmq.NOBLOCK, copy=False))
        # Behind that: whoever has said something came before it, and a descriptor may be somebody else's since.
        while int(self.changes.get(zmq.EVENTS)) & THERE:
            self.count()
        for frame in frames:
            connection = _sender(frame)
            if connection in self._asked:
                self._take(connection, frame.bytes)
        changed, self._changed = self._changed, []
        return changed

    def _take(self, connection: int, message: bytes) -> None:
        kind, prefix = message[:1], message[1:]
        held = self._held.setdefault(connection, set())
        if kind == SUBSCRIBED:
            self._changed.append(message)
            if prefix not in held:
                held.add(prefix)
                self._held_count += 1
                holders = self._holders[prefix] = self._holders.get(prefix, 0) + 1
                self._prefixes_bytes += len(prefix) * (holders == 1)
        elif kind == GIVEN_UP and prefix in held:
            held.discard(prefix)
            self._given_up(prefix)
        else:
            self._changed.append(ODD)
        self._asked[connection] += len(message) + MESSAGE_COST
        if self._asked[connection] > ASKED_BYTES_MAX:
            self.close(connection)
        while self._prefixes_bytes > PREFIXES_BYTES_MAX:
            self.close(max(self._held, key=self._share))
        while self._held_count > HELD_MAX:
            self.close(max(self._held, key=lambda connection: len(self._held[connection])))

    def _share(self, connection: int) -> float:
        """Return a connection's part of all different subscriptions, bytes: who came last may need only a little."""
        return sum(len(prefix) / self._holders[prefix] for prefix in self._held[connection])

    def _given_up(self, prefix: bytes) -> None:
        self._held_count -= 1
        self._holders[prefix] -= 1
        if not self._holders[prefix]:
            del self._holders[prefix]
            self._prefixes_bytes -= len(prefix)
            self._changed.append(GIVEN_UP + prefix)

    def close(self, connection: int) -> None:
        """End a connection; ZeroMQ sees that and tidies up.

        If it has ended meanwhile and the next one has its descriptor, that is ended too, and comes again.
        """
        if connection not in self._asked:
            return
        self._forget(connection)
        self.figures["connections_closed"] += 1
        with suppress(OSError):  # It may have ended meanwhile, and its descriptor may be somebody else's.
            peer = socket.socket(fileno=connection)
            try:
                name = peer.getsockname()
                if (name if isinstance(name, str) else str(name[1])) == self._home:
                    peer.shutdown(socket.SHUT_RDWR)
            finally:
                peer.detach()

    def _forget(self, connection: int) -> None:
        self._asked.pop(connection, None)
        for prefix in self._held.pop(connection, ()):
            self._given_up(prefix)
        self._behind.pop(connection, None)


def _unsent(connection: int) -> int:
    """Return how many bytes wait in the kernel."""
    try:
        return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:  # It has ended.
        return 0


def _sender(frame: zmq.Frame) -> int:
    try:
        return int(frame.get("__fd"))
    except zmq.ZMQError:
        return NOBODY
