"""The scanner and the decoder read the same of every frame; and what the exchange sends is scanned."""

import gzip
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.frames import FrameReader
from services.ingest.instruments import NAME_MAX, Instruments
from services.ingest.symbols import Decimals
from services.simulator.frames import AggTemplate, TradeTemplate
from services.simulator.rows import AGG_ROW, KINDS, TRADE_ROW
from services.simulator.rows import Instrument as Simulated
from shared.decimals import decimals_of
from shared.wire import instruments_of, trade_rows
from tests.ingest.played import START
from tests.support import RECORDINGS

KINDS_OF_STREAM = ("aggTrade", "trade")
SYMBOLS = ("BTCUSDT", "币安人生USDT", "A" * NAME_MAX, "B" * (NAME_MAX + 1), "", "ETHUSDT")
STREAMS = sorted(path.name for path in RECORDINGS.glob("*-stream-*.jsonl.gz"))


class Outcome:
    """What a reader made of reads: every row in words, and everything that it counted."""

    def __init__(self, kind: str, decimals: dict[str, tuple[int, int]]) -> None:
        self.decimals = Decimals(decimals)
        self.refused: Counter[str] = Counter()
        self.reader = FrameReader(kind, self.decimals, lambda why, _: self.refused.update([why]))
        self.reads: list[Any] = []

    def take(self, frames: list[bytes]) -> None:
        read = self.reader.read(frames)
        rows: list[Any] = []
        if read.trades is not None:
            instruments = instruments_of(read.trades)
            rows = [(instruments[row[0]], *row[1:]) for row in trade_rows(read.trades.rows).tolist()]
            rows.append(read.trades.event_time)
        said = (read.event_time, read.tickers, read.ticker_time, read.replies, read.shutdown)
        self.reads.append((rows, said, self.refused.copy(), self.reader.foreign))


def agree(kind: str, reads: list[list[bytes]], decimals: dict[str, tuple[int, int]]) -> Outcome:
    """Let the same frames be scanned and decoded; return what the scanner's reader made of them."""
    scanned, decoded = Outcome(kind, decimals), Outcome(kind, decimals)
    for frames in reads:
        scanned.take(frames)
        # A space in front changes nothing but that the frame is not plain.
        decoded.take([b" " + frame for frame in frames])
        assert scanned.reads[-1] == decoded.reads[-1]
    assert decoded.reader.decoded == sum(len(frames) for frames in reads)
    assert {symbol: scanned.decimals[symbol] for symbol in decimals} == {
        symbol: decoded.decimals[symbol] for symbol in decimals
    }
    return scanned


NUMBERS = st.one_of(
    st.from_regex(r"[0-9]{1,8}(\.[0-9]{1,4})?", fullmatch=True),
    st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{0,12})?([eE][+-]?[0-9]{1,2})?", fullmatch=True),
    st.sampled_from(["0", "0.000", "1.2300000000000", "", ".", "1.", ".5", "00.5", "NaN", "9" * 28, "1" + "0" * 18]),
    st.text(max_size=5),
)
INTEGERS = st.one_of(
    st.integers(0, 1_000),
    st.sampled_from([-1, 0, START, 10**14, 10**14 + 1, 10**17, 10**18, 2**62, 2**62 + 1, 2**63, 2**64, 10**30]),
)
ANYTHING = st.one_of(
    INTEGERS,
    NUMBERS,
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
GARBAGE = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            b"",
            b"\n",
            b"{}",
            b"[]",
            b'{"result":null,"id":3}',
            b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
            b'{"stream":"!miniTicker@arr","data":[{"s":"ETHUSDT","E":1770123456789,"c":"1"}]}',
            b'{"stream":"',
            b'{"stream":"x","data":{"',
            b'{"stream":"x","data":{"s',
            b'{"stream":"x","data":{"s"',
            b'{"stream":"x","data":{"s":',
            b'{"stream":"x","data":{"s":1}',
            b'{"stream":"x","data":{}}',
            b"[" * 5_000,
        ]
    ),
)


def data_of(kind: str) -> st.SearchStrategy[list[tuple[str, Any]]]:
    """Make the keys and values of a trade: mostly as they should be, in any order, some odd, some there twice."""
    often = {
        "e": st.just(kind),
        "E": st.integers(START, START + 9),
        "s": st.sampled_from((*SYMBOLS, "NOSUCH", "BTCUSD")),
        ("a" if kind == "aggTrade" else "t"): st.integers(0, 9),
        "p": st.from_regex(r"[0-9]{1,5}\.[0-9]{2}", fullmatch=True),
        "q": st.from_regex(r"[0-9]{1,5}\.[0-9]{3}", fullmatch=True),
        "T": st.integers(START, START + 9),
        "m": st.booleans(),
    }
    if kind == "aggTrade":
        often |= {"f": st.just(5), "l": st.integers(5, 9)}
    odd: dict[str, st.SearchStrategy[Any]] = {
        "p": NUMBERS,
        "q": NUMBERS,
        "f": INTEGERS,
        "l": INTEGERS,
        "T": INTEGERS,
        "E": INTEGERS,
        "a": INTEGERS,
        "t": INTEGERS,
        "st": st.sampled_from([1, 1, 2, "1", 0]),
        "X": st.sampled_from(["MARKET", "NA", "MARKET ", "MARKE", "", "INSURANCE_FUND", 1, "\x7f", "ß"]),
        "s": ANYTHING,
        "m": ANYTHING,
        "nq": ANYTHING,
        "M": ANYTHING,
        "": ANYTHING,
        "s\n": ANYTHING,
        "ß": ANYTHING,
        "longer": ANYTHING,
        "longers": ANYTHING,
    }
    changes = st.lists(st.one_of([st.tuples(st.just(key), values) for key, values in odd.items()]), max_size=2)

    def build(parts: tuple[dict[str, Any], list[tuple[str, Any]], bool, bool]) -> list[tuple[str, Any]]:
        content, extra, twice, missing = parts
        pairs = list(content.items())
        if not twice:
            pairs = [pair for pair in pairs if pair[0] not in dict(extra)]
        return pairs[1:] + extra if missing else pairs + extra

    rarely = st.sampled_from([False] * 9 + [True])
    built = st.tuples(st.fixed_dictionaries(often), st.one_of(st.just([]), changes), rarely, rarely).map(build)
    return built.flatmap(lambda pairs: st.one_of(st.just(pairs), st.permutations(pairs)))


@st.composite
def frames_of(draw: st.DrawFn, kind: str) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(GARBAGE)
    pairs = draw(data_of(kind))
    compact = draw(st.sampled_from([True] * 6 + [False]))
    ascii_only = draw(st.sampled_from([False] * 6 + [True]))

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":") if compact else (", ", ": "))

    content = ",".join(f"{text(key)}:{text(value)}" for key, value in pairs)
    stream = text(draw(st.sampled_from(["x@aggTrade", "x@aggTrade", "币", "a\\b", ""])))
    frame = f'{{"stream":{stream},"data":{{{content}}}}}'
    spoiled = frame.encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 19)):
        case 0:
            return spoiled[: draw(st.integers(0, len(spoiled)))]
        case 1:
            place = draw(st.integers(0, len(spoiled) - 1))
            return spoiled[:place] + draw(st.binary(max_size=2)) + spoiled[place + 1 :]
        case 2:
            return spoiled + draw(st.sampled_from([b" ", b"}", b"\n", b",", spoiled]))
    return spoiled


@pytest.mark.parametrize("kind", KINDS_OF_STREAM)
@settings(deadline=None, database=None, print_blob=True, max_examples=400)
@given(data=st.data())
def test_what_is_scanned_is_what_would_be_decoded(kind: str, data: st.DataObject) -> None:
    reads = data.draw(st.lists(st.lists(frames_of(kind), min_size=1, max_size=6), min_size=1, max_size=4))
    agree(kind, reads, dict.fromkeys(SYMBOLS, (2, 3)))


@pytest.mark.parametrize("name", STREAMS or [pytest.param("", marks=pytest.mark.skip("the recordings are not here"))])
def test_a_recording_is_scanned_but_for_the_first_trades(name: str) -> None:
    frames = [line for line in gzip.decompress((RECORDINGS / name).read_bytes()).splitlines() if b"@kline" not in line]
    data = [json.loads(line)["data"] for line in frames]
    needs: dict[str, tuple[int, int]] = {}
    for row in data:
        price, quantity = needs.get(row["s"], (0, 0))
        needs[row["s"]] = (max(price, decimals_of(row["p"])), max(quantity, decimals_of(row["q"])))
    reads = [frames[at : at + 50] for at in range(0, len(frames), 50)]
    scanned = agree(data[0]["e"], reads, needs)
    firsts = {min(at for at, row in enumerate(data) if row["s"] == symbol) // 50 for symbol in needs}
    assert 0 < scanned.reader.decoded <= 50 * len(firsts)
    assert not scanned.refused


@pytest.mark.parametrize("kind", KINDS_OF_STREAM)
def test_what_the_simulator_writes_is_scanned(kind: str) -> None:
    instrument = Simulated(symbol="币安人生USDT", price_decimals=2, quantity_decimals=0)
    rows = np.zeros(20, AGG_ROW if kind == "aggTrade" else TRADE_ROW)
    rows["time"] = rows["event_time"] = START
    rows["price"], rows["quantity"], rows["id"] = 12345, 7, np.arange(20)
    if kind == "trade":
        rows["kind"] = np.arange(20) % len(KINDS)
    else:
        rows["first"], rows["last"] = 3, 5
    template = AggTemplate(instrument) if kind == "aggTrade" else TradeTemplate(instrument)
    frames = [b'{"stream":"%b","data":%b}' % (template.stream.encode(), text) for text in template.messages(rows)]
    scanned = agree(kind, [frames[:1], frames[1:]], {instrument.symbol: (2, 0)})
    assert scanned.reader.decoded == 1
    assert not scanned.refused
    assert len(scanned.reads[1][0]) == 20


@pytest.mark.parametrize("kind", KINDS_OF_STREAM)
def test_the_table_is_packed_again_only_when_it_changes(kind: str) -> None:
    decimals = Decimals({f"S{number}": (2, 3) for number in range(1_000)})
    instruments = Instruments(decimals)
    assert instruments.numbers(f"S{number}" for number in range(1_000)) == list(range(1_000))
    packed = instruments.packed
    decimals.grow("OTHER", 1, 1)
    decimals.grow("S5", 1, 1)
    instruments.renew()
    assert instruments.packed == packed
    decimals.grow("S5", 4, 1)
    instruments.renew()
    assert instruments.packed != packed
    assert instruments.decimals[5].tolist() == [4, 3]
    assert instruments.numbers(["S7", "S0"]) == [7, 0]


def test_what_is_expected_is_scanned_from_the_first_trade_on() -> None:
    frame = b'{"stream":"","data":{"s":"%b","a":1,"p":"1.5","q":"2","f":1,"l":1,"T":7,"E":7,"m":true}}'
    outcome = Outcome("aggTrade", {"A": (1, 0), "B": (1, 0)})
    outcome.reader.expect(["A"])
    outcome.take([frame % b"A"])
    assert outcome.reader.decoded == 0
    outcome.take([frame % b"B"])
    assert outcome.reader.decoded == 1
    outcome.take([frame % b"A", frame % b"B"])
    assert outcome.reader.decoded == 1
    assert [len(rows) for rows, *_ in outcome.reads] == [2, 2, 3]


def test_decimals_that_grow_elsewhere_are_those_of_the_next_read() -> None:
    frame = b'{"stream":"","data":{"s":"A","a":%d,"p":"1.5","q":"2","f":1,"l":1,"T":7,"E":7,"m":true}}'
    outcome = Outcome("aggTrade", {"A": (1, 0)})
    outcome.take([frame % 1])
    outcome.take([frame % 2])
    outcome.decimals.grow("A", 3, 1)
    outcome.take([frame % 3])
    assert [rows[0][3:5] for rows, *_ in outcome.reads] == [(15, 2), (15, 2), (1500, 20)]
    assert outcome.reader.decoded == 1
