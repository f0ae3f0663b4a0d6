"""A subscriber of snapshots that keeps to no rule but those of the wire."""

import socket

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"


class Peer:
    """A subscriber that writes ZMTP by itself, and so does what no library would."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(GREETING + READY)
        received = b""
        while not received.endswith(b"XPUB"):  # What is said before that is refused.
            some = self.socket.recv(100)
            if not some:
                raise ConnectionError("closed before it said who it is")
            received += some

    def subscribe(self, *topics: bytes) -> None:
        self.send(*(b"\x01" + topic for topic in topics))

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(b"\x02" + len(message).to_bytes(8, "big") + message for message in messages))

    def ended(self) -> bool:
        """Read what is there; say whether the other side has closed."""
        self.socket.settimeout(0.01)
        try:
            return not self.socket.recv(1 << 20)
        except TimeoutError:
            return False
        except OSError:
            return True
