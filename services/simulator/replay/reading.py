"""How a line of a recording is read: frames as received, and the archive's rows of trades.

Decides what a line says, exactly, or why it is not understood (`NotUnderstood`): nothing is guessed and nothing shifts.
Knows no order of events, no other line, and no stream but by name.
"""

import gzip
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from services.simulator.rows import KINDS, MARKET, Instrument
from shared.names import NAME_MAX, is_name

MICROSECONDS = 10**14
"""A time beyond this is in µs, as spot's archives are since 2025 (protocol §7)."""
TIME_MIN, TIME_MAX = 1_230_768_000_000, 4_102_444_800_000
"""The years 2009 to 2099, ms."""
ID_MAX = 2**62
DIGITS_MAX = 18
"""Of a number: what is sure to fit an int64."""
DECIMALS_MAX, TEXT_MAX = 10, 28
"""Of a number on the wire: who takes what the exchange sends takes no more."""
_ARCHIVE = re.compile(r"(?:^|-)(?P<symbol>[^-]+)-(?P<kind>aggTrades|trades)(?:-|\.|$)", re.IGNORECASE)
_PLAIN = re.compile(r"[0-9]{1,18}(?:\.[0-9]*)?", re.ASCII)
_WIRE = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_STAMPED = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+Z? +(?=\{)")
_MAKER = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}
_BOM = b"\xef\xbb\xbf"


class RecordingError(ValueError):
    """A file that is no recording, in words."""


class NotUnderstood(ValueError):
    """A line that is not understood, with the reason."""


class Number(NamedTuple):
    """A decimal as it was written: `digits` in units of 10**-decimals."""

    digits: int
    decimals: int


class Event(NamedTuple):
    """What a line says: a trade, or something that is only sent again."""

    stream: str
    symbol: str
    kind: str
    """aggTrade, trade, or empty."""
    event_time: int
    """0: it says none, which no trade does."""
    message: bytes | None
    """What was received, and can be sent again so; None for an archive's row."""
    id: int = 0
    first: int = 0
    last: int = 0
    time: int = 0
    price: Number = Number(0, 0)
    quantity: Number = Number(0, 0)
    plain_quantity: Number | None = None
    """Where the wire separates it (`nq`)."""
    what: int = MARKET
    """Of a trade: an index of `KINDS`."""
    maker: bool = False


Reader = Callable[[bytes], Event | None]
"""Reads a line; None if it is a heading or an answer, which say nothing. Raises NotUnderstood."""


class _Frame(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Data(msgspec.Struct):
    """A trade of either kind; other events have no more than a time."""

    e: str = ""
    E: int = 0
    s: str = ""
    T: int = 0
    p: str = ""
    q: str = ""
    nq: str | None = None
    a: int = -1
    t: int = -1
    f: int = -1
    l: int = -1  # noqa: E741
    m: bool | None = None
    X: str = "MARKET"


_frames = msgspec.json.Decoder(_Frame)
_data = msgspec.json.Decoder(_Data)


@contextmanager
def opened(path: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Open a recording: (the name, which says what it is; its lines) of each file in it. Raises RecordingError."""
    name = path.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            inside = sorted(entry for entry in archive.namelist() if _counts(entry))
            if not inside:
                raise RecordingError(f"{path}: no .csv or .jsonl in it, but {', '.join(archive.namelist()[:3])}")
            yield ((f"{path.name}:{entry}", archive.open(entry)) for entry in inside)
    elif name.endswith((".csv.gz", ".jsonl.gz")):
        with gzip.open(path) as packed:
            yield iter([(path.name, packed)])  # type: ignore[list-item]
    elif name.endswith((".csv", ".jsonl")):
        with path.open("rb") as file:
            yield iter([(path.name, file)])
    else:
        raise RecordingError(f"{path}: neither .jsonl nor .csv, plain, .gz or .zip")


def _counts(entry: str) -> bool:
    """Say whether a member of a zip is one of its files: macOS puts notes of its own beside them."""
    parts = entry.split("/")
    return entry.lower().endswith((".csv", ".jsonl")) and "__MACOSX" not in parts and not parts[-1].startswith("._")


def reader_of(name: str) -> Reader:
    """Return what reads the lines of a file of this name. Raises RecordingError."""
    base = name.rpartition(":")[2].rpartition("/")[2]
    if ".csv" not in base.lower():
        return read_frame
    found = _ARCHIVE.search(base)
    if found is None:
        raise RecordingError(f"{name}: an archive is called <SYMBOL>-aggTrades-<date> or <SYMBOL>-trades-<date>")
    try:
        symbol = checked_symbol(found["symbol"].upper())
    except NotUnderstood as error:
        raise RecordingError(f"{name}: {error}") from error
    base = Instrument(symbol=symbol, price_decimals=0, quantity_decimals=0).stream_base
    if found["kind"].lower() == "trades":
        return lambda line: _trade_row(line, symbol, f"{base}@trade")
    return lambda line: _aggregate_row(line, symbol, f"{base}@aggTrade")


def lines_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line without its end) of those that are not empty."""
    for number, line in enumerate(file, 1):
        text = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")
        if text.strip():
            yield number, text


def read_frame(line: bytes) -> Event | None:
    """Read a frame as received: of a combined stream, or raw, and after a timestamp or not."""
    stamp = _STAMPED.match(line)
    if stamp is not None:
        line = line[stamp.end() :]
    stream, data = "", line
    try:
        frame = _frames.decode(line)
        stream, data = frame.stream, bytes(frame.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if b'"result"' in line and _is_answer(line):
            return None
    try:
        read = _data.decode(data) if data[:1] == b"{" or not stream else _Data()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotUnderstood(f"no frame: {error}") from error
    if read.e not in ("aggTrade", "trade"):
        if not stream:
            raise NotUnderstood("no frame: neither a stream nor a trade")
        at = _ms(read.E or read.T)
        return Event(stream, read.s, "", at if TIME_MIN <= at < TIME_MAX else 0, data)
    symbol = checked_symbol(read.s)
    if not stream:
        stream = f"{Instrument(symbol=symbol, price_decimals=0, quantity_decimals=0).stream_base}@{read.e}"
    if read.m is None:
        raise NotUnderstood("no maker")
    time = _time(read.T)
    event_time = _time(read.E) if read.E else time
    as_sent = (event_time, time) == (read.E, read.T) and all(map(_WIRE.fullmatch, (read.p, read.q, read.nq or "0")))
    message = data if as_sent else None
    if read.e == "aggTrade":
        quantity = _number(read.q, "quantity")
        return Event(
            stream, symbol, "aggTrade", event_time, message, _id(read.a), *_range(read.f, read.l), time,
            _price(read.p), quantity, None if read.nq is None else _number(read.nq, "quantity"), MARKET, read.m,
        )  # fmt: skip
    what = KINDS.index(read.X) if read.X in KINDS else KINDS.index("NA")
    price = _price(read.p) if what == MARKET else _number(read.p, "price")
    return Event(
        stream, symbol, "trade", event_time, message, _id(read.t), 0, 0, time,
        price, _number(read.q, "quantity"), None, what, read.m,
    )  # fmt: skip


def checked_symbol(symbol: str) -> str:
    """Return a symbol's name if it is one: it becomes a path. Raises NotUnderstood."""
    if not is_name(symbol):
        raise NotUnderstood(f"{symbol[:NAME_MAX]!r} is no symbol")
    return symbol


def _is_answer(line: bytes) -> bool:
    """Say whether it is the exchange's answer to a subscription."""
    try:
        content = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(content, dict) and {"result", "id"} <= content.keys()


def _cells(line: bytes, counts: tuple[int, ...]) -> list[str] | None:
    """Return the cells of an archive's row; None for its heading."""
    try:
        cells = line.decode("utf-8").split(",")
    except UnicodeDecodeError as error:
        raise NotUnderstood("no UTF-8") from error
    if cells[0] in ("agg_trade_id", "id", "trade_id", "trade id"):
        return None
    if len(cells) not in counts:
        raise NotUnderstood(f"{len(cells)} columns, and not {' or '.join(map(str, counts))}")
    return cells


def _aggregate_row(line: bytes, symbol: str, stream: str) -> Event | None:
    """Read a row of aggTrades: 7 columns, spot's 8."""
    cells = _cells(line, (7, 8))
    if cells is None:
        return None
    a, price, quantity, first, last, at, maker = cells[:7]
    time = _time(_whole(at, "time"))
    return Event(
        stream, symbol, "aggTrade", time + 5, None, _id(_whole(a, "id")),
        *_range(_whole(first, "first id"), _whole(last, "last id")), time,
        _price(price), _number(quantity, "quantity"), None, MARKET, _maker(maker),
    )  # fmt: skip


def _trade_row(line: bytes, symbol: str, stream: str) -> Event | None:
    """Read a row of trades: 6 columns, spot's 7. What each is worth follows from price and quantity."""
    cells = _cells(line, (6, 7))
    if cells is None:
        return None
    trade_id, price, quantity, worth, at, maker = cells[:6]
    _number(worth, "quote quantity")
    time = _time(_whole(at, "time"))
    return Event(
        stream, symbol, "trade", time + 5, None, _id(_whole(trade_id, "id")), 0, 0, time,
        _price(price), _number(quantity, "quantity"), None, MARKET, _maker(maker),
    )  # fmt: skip


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise NotUnderstood(f"{name} {text[:30]!r} is no whole number")
    return int(text)


def _id(value: int) -> int:
    if not 0 <= value < ID_MAX:
        raise NotUnderstood(f"id {value} cannot be")
    return value


def _range(first: int, last: int) -> tuple[int, int]:
    if not 0 <= first <= last < ID_MAX:
        raise NotUnderstood(f"fills {first} to {last} cannot be")
    return first, last


def _ms(at: int) -> int:
    return at // 1000 if at > MICROSECONDS else at


def _time(at: int) -> int:
    time = _ms(at)
    if not TIME_MIN <= time < TIME_MAX:
        raise NotUnderstood(f"time {at} cannot be")
    return time


def _maker(text: str) -> bool:
    if text not in _MAKER:
        raise NotUnderstood(f"maker {text[:30]!r} is neither true nor false")
    return _MAKER[text]


def _number(text: Any, name: str) -> Number:
    """Read a decimal exactly; programs write them with exponents, too. Not negative."""
    if len(text) > TEXT_MAX:
        raise NotUnderstood(f"{name} {text[:30]!r} has too many digits")
    if _PLAIN.fullmatch(text):
        whole, _, part = text.partition(".")
        number = Number(int(whole + part), len(part))
    else:
        try:
            value = Decimal(text)
            sign, digits, exponent = value.as_tuple()
        except InvalidOperation as error:
            raise NotUnderstood(f"{name} {text[:30]!r} is no number") from error
        if not isinstance(exponent, int) or (sign and value):
            raise NotUnderstood(f"{name} {text[:30]!r} cannot be")
        if abs(exponent) > DIGITS_MAX or len(digits) > DIGITS_MAX:
            raise NotUnderstood(f"{name} {text[:30]!r} has too many digits")
        number = Number(int(value.scaleb(max(0, -exponent))), max(0, -exponent))
    while number.decimals > DECIMALS_MAX and number.digits % 10 == 0:
        number = Number(number.digits // 10, number.decimals - 1)
    if number.digits >= 10**DIGITS_MAX or number.decimals > DECIMALS_MAX:
        raise NotUnderstood(f"{name} {text[:30]!r} has too many digits")
    return number


def _price(text: str) -> Number:
    price = _number(text, "price")
    if not price.digits:
        raise NotUnderstood("price 0 cannot be")
    return price
