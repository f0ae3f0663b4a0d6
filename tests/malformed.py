"""Malformed HTTP requests of many kinds, made from a seed, and what a server answers to them.

Decides what is sent. Knows no room: a test says which addresses there are and which parameters they take.
"""

import asyncio
import base64
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

PATIENCE_S = 0.4
"""How long an answer is waited for: half a request gets none."""
AT_ONCE = 100
READ_MAX = 65_536

NUMBERS = [
    *("0", "-1", "+1", "1", "-0", "1e9", "1.5", "nan", "inf", "-inf", "1_000", "0x10", " 1", "1 "),
    *(str(2**31), str(2**63 - 1), str(2**63), str(-(2**63)), str(2**64), str(2**200), "9" * 400, "9" * 5_000),
    *("²", "٣", "%C2%B2", "%D9%A3", "1%00", "253402300799999", "253402300800000", "-62135596800001"),
]
NAMES = [
    *("", "BTCUSDT", "btcusdt", "A" * 65, "A" * 5_000, "%00", "A%00B", "../x", "A/B", "A\\B", "%", "%zz", "%ff%fe"),
    *("%F0%9F", "%ED%A0%80", "\udcff\udcfe", "é", "'", "';--", "{}", "[]", "null", "A B", "\x7f", "%0d%0aX: y"),
    *("1m", "2m", "1M", "1mo", "3d", "%31m", "1m,1h", "aggTrade", "btcusdt@aggTrade/" * 40),
]
HOSTS = [
    *("", "[", "[::1", "[::1]x", "]", "a b", "@", "a@127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999999"),
    *("evil.example", "127.0.0.1,127.0.0.1", "%31", "\xff", "٣", "x" * 9_000, "[v1.x]", "[fe80::1%25eth0]", "//", "?"),
]
HEADERS = [
    *("Range: bytes=-", "Range: bytes=9-1", "Range: bytes=0-" + "9" * 300, "Range: x", "Range: bytes=²-٣"),
    *(
        "If-Modified-Since: x",
        "If-Modified-Since: Thu, 99 Jan 99999 99:99:99 GMT",
        "If-Range: x",
        "If-None-Match: \xff",
    ),
    *("If-Unmodified-Since: Thu, 01 Jan 0000 00:00:00 GMT", 'If-None-Match: W/"', "If-Match: ,", "If-Match: *"),
    *(
        "Expect: x",
        "Expect: 100-continue",
        "Accept-Encoding: \xff",
        "Accept-Encoding: gzip;q=x",
        "Cookie: \x01=;;=\xff",
    ),
    *("Content-Type: ;;charset=\xff", "Content-Type: text/plain; charset=zz", "Content-Encoding: gzip", "Origin: ["),
    *("Origin: null", "Origin: http://[x", "Origin: \xff", "Connection: \xff", "Connection: upgrade", "Upgrade: h2c"),
    *("X-Forwarded-For: \xff", "Authorization: Basic x", "X: " + "y" * 70_000, "no colon", ": no name", " folded"),
    *("A\x00: b", "A: b\x00c", "A b: c", "A: b\rC: d", "A: b\nC: d", "A" * 9_000 + ": b", "Host: second.example"),
    *("\xff: b", "X-MBX-APIKEY: \xff", "Proxy-Connection: x", "TE: trailers", "Keep-Alive: timeout=-1"),
]
LENGTHS = ["-1", "+5", "0x10", "", " ", "5 5", "5,5", "1" * 30, str(2**63), str(2**64), "²", "5\r\nContent-Length: 6"]
CODINGS = ["chunked", "gzip, chunked", "chunked, gzip", "identity", "x", "chunked, chunked", "\xff", " chunked"]
CHUNKS = [
    *(
        "zz\r\nab\r\n",
        "-1\r\nab\r\n",
        "f" * 40 + "\r\nab\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "2;" + "x" * 9_000 + "\r\nab\r\n",
    ),
    *("\r\n", "0x2\r\nab\r\n", "2\nab\n", "0\r\nA\x00: b\r\n\r\n", "0\r\n" + "A: b\r\n" * 300 + "\r\n", "2 \r\nab\r\n"),
]
KEYS = ["", "x", "AAAA", "=" * 24, "A" * 24, "\xff" * 22 + "==", "A" * 5_000, base64.b64encode(b"k" * 15).decode()]
VERSIONS = ["", "0", "7", "14", "99", "-1", "x", "13, 8", "\xff", "1" * 400]
EXTENSIONS = ["permessage-deflate; server_max_window_bits=99", "permessage-deflate; x", ";;;", "\xff", "x" * 4_000]
FRAMES = [
    *("\x81", "\x81\x05hello", "\xff\x80aaaa", "\x8f\x80aaaa", "\x81\xff" + "\xff" * 8 + "aaaa", "\x81\xfe\xff\xff"),
    *(
        "\x89\xfe\x01\x00aaaa" + "x" * 256,
        "\x88\x81aaaax",
        "\x88\x82aaaa\x62\x88",
        "\x80\x80aaaa",
        "\x01\x80aaaa\x81\x80aaaa",
    ),
    *("\x81\x82aaaa\x9e\x9f", "\xc1\x84aaaa\xff\xff\xff\xff", "\x82\x84aaaa\x00\x00\x00\x00", "\x09\x80aaaa"),
]
LINES = [
    *("", "GET", "GET /", "GET  / HTTP/1.1", "/ HTTP/1.1", "get / HTTP/1.1", "G\x00T / HTTP/1.1", "GET / HTTP/9.9"),
    *(
        "GET / HTTP/1.1 x",
        "GET / HTTP/1.x",
        "GET / http/1.1",
        "\xff\xfe / HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "\x16\x03\x01",
    ),
    *("GET http://[ HTTP/1.1", "GET http://evil.example/ HTTP/1.1", "GET http://127.0.0.1:99999999/ HTTP/1.1"),
    *("CONNECT a:1 HTTP/1.1", "CONNECT [ HTTP/1.1", "OPTIONS * HTTP/1.1", "GET * HTTP/1.1", "GET ?x HTTP/1.1"),
    *("GET // HTTP/1.1", "GET //[ HTTP/1.1", "GET //a:b@c:99999/x HTTP/1.1", "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1"),
    *(
        "GET /../../etc/passwd HTTP/1.1",
        "GET /%00 HTTP/1.1",
        "GET /% HTTP/1.1",
        "GET /%ff HTTP/1.1",
        "GET /#x HTTP/1.1",
    ),
    *("GET /" + "a" * 9_000 + " HTTP/1.1", "GET /" + "a/" * 3_000 + " HTTP/1.1", "PRI * HTTP/2.0", "TRACE / HTTP/1.1"),
    *(
        "DELETE / HTTP/1.1",
        "HEAD /health HTTP/1.1",
        "POST /ws HTTP/1.1",
        "GET /é HTTP/1.1",
        "GET /?" + "&" * 3_000 + " HTTP/1.1",
    ),
    *("X" * 9_000 + " / HTTP/1.1", "GET / HTTP/1.0", "GET / HTTP/0.9", "GET\t/\tHTTP/1.1", "GET scheme:x HTTP/1.1"),
]

Parameters = Mapping[str, Sequence[str]]
"""Of an address, such as `GET /api/history`: its parameters, each with values that are right."""


def requests(seed: int, count: int, addresses: Mapping[str, Parameters], host: str) -> list[tuple[str, bytes]]:
    """Return `count` requests with the name of their kind. `host` is the one that the server answers to."""
    made = _Maker(random.Random(seed), addresses, host)
    kinds: list[Callable[[], str]] = [made.line, made.host, made.header, made.body, made.opening, made.frames]
    kinds += [made.question, made.question, made.question, made.torn, made.noise]
    some = []
    for _ in range(count):
        kind = made.random.choice(kinds)
        some.append((kind.__name__, kind().encode("utf-8" if made.random.random() < 0.2 else "latin-1", "replace")))
    return some


class _Maker:
    """Text of requests, of which a character is mostly a byte."""

    def __init__(self, source: random.Random, addresses: Mapping[str, Parameters], host: str) -> None:
        self.random = source
        self._addresses = addresses
        self._host = host

    def _request(self, *headers: str, line: str = "", host: str | None = None, body: str = "") -> str:
        first = [] if host == "" else [f"Host: {self._host if host is None else host}"]
        return "\r\n".join([line or f"{self._address()} HTTP/1.1", *first, *headers, "", body])

    def _address(self) -> str:
        return self.random.choice(list(self._addresses))

    def line(self) -> str:
        return self._request(line=self.random.choice(LINES))

    def host(self) -> str:
        return self._request(host=self.random.choice(HOSTS))

    def header(self) -> str:
        if self.random.random() < 0.05:
            return self._request(*(f"A{index}: b" for index in range(3_000)))
        return self._request(*self.random.sample(HEADERS, self.random.randint(1, 3)))

    def body(self) -> str:
        chosen = self.random.choice
        headers = []
        if self.random.random() < 0.6:
            headers.append(f"Transfer-Encoding: {chosen(CODINGS)}")
        if self.random.random() < 0.6:
            headers.append(f"Content-Length: {chosen(LENGTHS)}")
        if self.random.random() < 0.3:
            headers.append(f"Content-Encoding: {chosen(['gzip', 'deflate', 'br', 'zstd', 'x'])}")
        return self._request(*headers, body=chosen(CHUNKS) * self.random.randint(1, 3))

    def opening(self) -> str:
        """Of a websocket."""
        key = base64.b64encode(self.random.randbytes(16)).decode()
        headers = {
            "Upgrade": ("websocket", ["h2c", "", "\xff", "websocket, x"]),
            "Connection": ("Upgrade", ["close", "", "keep-alive, Upgrade"]),
            "Sec-WebSocket-Version": ("13", VERSIONS),
            "Sec-WebSocket-Key": (key, KEYS),
            "Sec-WebSocket-Extensions": ("permessage-deflate", EXTENSIONS),
            "Sec-WebSocket-Protocol": ("x" * 4_000, ["", "\xff", ",,,"]),
        }
        lines = []
        for name, (right, wrong) in headers.items():
            if self.random.random() < 0.9:
                lines.append(f"{name}: {right if self.random.random() < 0.7 else self.random.choice(wrong)}")
        method = "GET" if self.random.random() < 0.8 else "POST"
        return self._request(*lines, line=f"{method} {self._socket()} HTTP/1.1")

    def _socket(self) -> str:
        return self.random.choice([address.split()[1] for address in self._addresses])

    def frames(self) -> str:
        """What is no frame, in a websocket that was opened as it should be."""
        key = base64.b64encode(self.random.randbytes(16)).decode()
        headers = (
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )
        body = "".join(self.random.choices(FRAMES, k=3))
        return self._request(*headers, line="GET /ws HTTP/1.1", body=body)

    def question(self) -> str:
        address = self._address()
        query = []
        for name, right in self._addresses[address].items():
            if self.random.random() < 0.9:
                value = self.random.choice([*right, *right] if self.random.random() < 0.6 else NUMBERS + NAMES)
                query.append(f"{name}={value}")
        if self.random.random() < 0.1:
            query.append(self.random.choice(["=", "&&", "x", "limit=1;end=2", "%00=%00", "symbol[]=A", "=" * 300]))
        if self.random.random() < 0.1 and query:
            query += query
        return self._request(line=f"{address}?{'&'.join(query)} HTTP/1.1")

    def torn(self) -> str:
        """A request of another kind, with a few characters changed, cut off, or sent twice."""
        text = self.random.choice([self.question, self.header, self.body, self.opening])()
        for _ in range(self.random.randint(0, 4)):
            at = self.random.randrange(len(text))
            text = text[:at] + chr(self.random.randrange(256)) + text[at + 1 :]
        if self.random.random() < 0.3:
            text = text[: self.random.randrange(len(text))]
        return text + text if self.random.random() < 0.2 else text

    def noise(self) -> str:
        return self.random.randbytes(self.random.randint(1, 2_000)).decode("latin-1")


async def ask_all(port: int, asked: Sequence[tuple[str, bytes]]) -> Counter[int]:
    """Send each request on a connection of its own, and return how often each status came; 0: no answer."""
    statuses: Counter[int] = Counter()
    waiting = iter(asked)

    async def ask() -> None:
        for _, request in waiting:
            statuses[await _ask(port, request)] += 1

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return statuses


async def _ask(port: int, request: bytes) -> int:
    """Return the worst status of what is answered; 0: nothing is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(request)
        async with asyncio.timeout(PATIENCE_S):
            while b"HTTP/1." not in answer or answer.count(b"\n") < 1:
                some = await reader.read(READ_MAX)
                if not some:
                    break
                answer += some
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return max((int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)), default=0)
