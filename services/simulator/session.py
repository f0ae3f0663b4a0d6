"""The websocket side of the protocol: paths, streams, control messages and what ends a connection. No socket, no clock.

Decides the exact answer to a control message (protocol §1.4), which streams a route delivers (§0.1, §1.1), and when a
client has sent too many messages (§1.3). Knows no market: every stream name is acknowledged, whether it exists or not.
"""

import json
import re
from typing import Any, NamedTuple

STREAMS_MAX = 1024
"""Streams of one connection; one more costs the connection."""
BURST_MAX = 15
"""Client messages in a row that are allowed, ..."""
MESSAGES_PER_S = 10.0
"""... and how fast that allowance is refilled."""
PING_S = 180.0
PONG_TIMEOUT_S = 600.0
LIFE_S = 24 * 3600.0
POLICY_VIOLATION = 1008

METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_PATH = re.compile(r"^(?:/(?P<route>market|public|private))?/(?P<mode>ws|stream)(?:/(?P<streams>.*))?$")
_PUBLIC = re.compile(r"^[^@!]+@trade$")
_MARKET = re.compile(r"^([^@!]+@(aggTrade|kline_[0-9]+[a-zA-Z])|!miniTicker@arr)$")


class Opening(NamedTuple):
    """What the URL of a websocket asks for."""

    route: str
    """`market`, `public`, `private`, or empty: the URL from before there were routes, which delivers what is public."""
    combined: bool
    streams: list[str]


def read_address(path: str, query: str) -> Opening | None:
    """Read a decoded path and the query's `streams`; None if there is no websocket at this path (§1.1)."""
    found = _PATH.match(path)
    if found is None:
        return None
    combined = found["mode"] == "stream"
    if combined and found["streams"]:
        return None
    named = query if combined else found["streams"] or ""
    return Opening(found["route"] or "", combined, [name for name in named.split("/") if name])


def delivers(route: str, stream: str) -> bool:
    """Say whether a stream has data on this route; every name is acknowledged everywhere (§0.1)."""
    return bool((_MARKET if route == "market" else _PUBLIC).match(stream)) and route != "private"


class Reply(NamedTuple):
    """The answer, and if the connection ends after it, why."""

    text: str
    close_code: int = 0
    close_reason: str = ""


class Session:
    """The state of one connection, as the exchange keeps it."""

    def __init__(self, opening: Opening, now_s: float) -> None:
        """`now_s`: any clock that only goes forward, in seconds."""
        self.route = opening.route
        self.combined = opening.combined
        self.streams: dict[str, None] = {}
        self.delivered: set[str] = set()
        """Those of `streams` that have data on this route."""
        self._tokens = float(BURST_MAX)
        self._refilled_s = now_s
        self._add(opening.streams[:STREAMS_MAX])
        self.crowded = len(dict.fromkeys(opening.streams)) > STREAMS_MAX

    def allows(self, now_s: float) -> bool:
        """Count a message of the client, of any kind; False if it was one too many."""
        self._tokens = min(BURST_MAX, self._tokens + (now_s - self._refilled_s) * MESSAGES_PER_S)
        self._refilled_s = now_s
        self._tokens -= 1
        return self._tokens >= 0

    def control(self, text: str) -> Reply:
        """Answer a control message."""
        try:
            message = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            line, column = (error.lineno, error.colno) if isinstance(error, json.JSONDecodeError) else (1, 1)
            broken = _error(3, f"Invalid JSON: expected value at line {line} column {column}", None)
            return broken._replace(close_code=POLICY_VIOLATION, close_reason="Invalid request")
        request_id = message.get("id") if isinstance(message, dict) else None
        request_id = request_id if type(request_id) is int and 0 <= request_id < 2**64 else None
        if not isinstance(message, dict) or "method" not in message:
            return _error(2, f"Invalid request: missing field `method` at line 1 column {len(text)}", request_id)
        method, params = message["method"], message.get("params", [])
        if method not in METHODS:
            expected = ", ".join(f"`{known}`" for known in METHODS)
            return _error(
                2,
                f"Invalid request: unknown variant `{method}`, expected one of {expected} at line 1 column 28",
                request_id,
            )
        if request_id is None:
            return _error(2, "Invalid request: request ID must be an unsigned integer", None)
        if not isinstance(params, list):
            return _error(2, "Invalid request: invalid type: params must be a sequence", request_id)
        if method == "LIST_SUBSCRIPTIONS":
            return _result(list(self.streams), request_id)
        if method in ("SET_PROPERTY", "GET_PROPERTY"):
            return self._property(method, params, request_id)
        return self._subscription(method, params, request_id)

    def _subscription(self, method: str, params: list[Any], request_id: int) -> Reply:
        if not all(isinstance(name, str) for name in params):
            return _error(2, "Invalid request: invalid type: stream name must be a string", request_id)
        if method == "UNSUBSCRIBE":
            for name in params:
                self.streams.pop(name, None)
                self.delivered.discard(name)
            return _result(None, request_id)
        if len(self.streams | dict.fromkeys(params)) > STREAMS_MAX:
            crowded = _error(4, "Too many subscriptions", request_id)
            return crowded._replace(close_code=POLICY_VIOLATION, close_reason="Invalid request")
        self._add(params)
        return _result(None, request_id)

    def _add(self, names: list[str]) -> None:
        self.streams |= dict.fromkeys(names)
        self.delivered |= {name for name in names if delivers(self.route, name)}

    def _property(self, method: str, params: list[Any], request_id: int) -> Reply:
        wanted = 2 if method == "SET_PROPERTY" else 1
        if len(params) > wanted:
            return _error(2, "Invalid request: too many parameters", request_id)
        if not params or not isinstance(params[0], str):
            return _error(2, "Invalid request: property name must be a string", request_id)
        if params[0] != "combined":
            return _error(0, "Unknown property", request_id)
        if method == "GET_PROPERTY":
            return _result(self.combined, request_id)
        if len(params) < 2 or not isinstance(params[1], bool):
            return _error(1, "Invalid value type: expected Boolean", request_id)
        self.combined = params[1]
        return _result(None, request_id)


TOO_MANY_REQUESTS = "Too many requests"


def _result(result: Any, request_id: int) -> Reply:
    return Reply(_json({"result": result, "id": request_id}))


def _error(code: int, text: str, request_id: int | None) -> Reply:
    body: dict[str, Any] = {"error": {"code": code, "msg": text}}
    return Reply(_json(body | ({"id": request_id} if request_id is not None else {})))


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
