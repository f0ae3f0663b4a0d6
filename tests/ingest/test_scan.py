"""The scanner and the decoder read the same of frames and klines; and what the exchange sends is scanned."""

import json
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from harness.processes import DATA, RECORDINGS, recording, unpacked
from services.ingest.binance.messages import read_klines
from services.ingest.binance.scan import plain_klines
from services.ingest.decimals import Decimals
from services.ingest.decode import FrameDecoder
from services.ingest.instruments import NAME_MAX, Instruments
from services.ingest.websocket import frames_of
from services.simulator.frames import TradeTemplate
from services.simulator.rows import AGG_ROW, KINDS, KLINE_ROW, TRADE_ROW
from services.simulator.rows import Instrument as Simulated
from services.simulator.writing import AggWriter, kline_page
from shared.decimals import decimals_of
from shared.wire import instruments_of, trade_rows
from tests.ingest.played import START

KINDS_OF_STREAM = ("aggTrade", "trade")
SYMBOLS = ("BTCUSDT", "币安人生USDT", "A" * NAME_MAX, "B" * (NAME_MAX + 1), "", "ETHUSDT")
STREAMS = sorted(path.name for folder in (DATA, RECORDINGS) for path in folder.glob("*-stream*.jsonl*"))


class Outcome:
    """What a decoder made of reads: every row in words, and everything that it counted."""

    def __init__(self, kind: str, decimals: dict[str, tuple[int, int]]) -> None:
        self.decimals = Decimals(decimals)
        self.refused: Counter[str] = Counter()
        self.decoder = FrameDecoder(kind, self.decimals, lambda why, _: self.refused.update([why]))
        self.reads: list[Any] = []

    def take(self, frames: list[bytes]) -> None:
        read = self.decoder.decode(frames_of(frames))
        rows: list[Any] = []
        if read.trades is not None:
            instruments = instruments_of(read.trades)
            rows = [(instruments[row[0]], *row[1:]) for row in trade_rows(read.trades.rows).tolist()]
            rows.append(read.trades.event_time)
        said = (read.event_time, read.tickers, read.ticker_time, read.replies, read.shutdown)
        self.reads.append((rows, said, self.refused.copy(), self.decoder.other_market))


def agree(kind: str, reads: list[list[bytes]], decimals: dict[str, tuple[int, int]]) -> Outcome:
    """Let the same frames be scanned and decoded; return what the scanner's decoder made of them."""
    scanned, decoded = Outcome(kind, decimals), Outcome(kind, decimals)
    scanned.decoder.expect(list(decimals))
    for frames in reads:
        scanned.take(frames)
        # A space in front changes nothing but that the frame is not plain.
        decoded.take([b" " + frame for frame in frames])
        assert scanned.reads[-1] == decoded.reads[-1]
    assert decoded.decoder.not_plain == sum(len(frames) for frames in reads)
    assert {symbol: scanned.decimals[symbol] for symbol in decimals} == {
        symbol: decoded.decimals[symbol] for symbol in decimals
    }
    return scanned


PRICES = [
    b'"1.5"',
    b'"0"',
    b'"0.000"',
    b'"1.2300000000000"',
    b'""',
    b'"."',
    b'"1."',
    b'".5"',
    b'"00.5"',
    b'"NaN"',
    b'"-1"',
]
PRICES += [
    b'"1e2"',
    b'"9223372036854775807"',
    b'"1000000000000000000"',
    b'"1.23456"',
    b'"0.12345678901"',
    b"1.5",
    b"null",
]
PRICES += [
    b'"' + b"9" * 28 + b'"',
    b'"' + b"0" * 28 + b'"',
    b'"' + b"0" * 29 + b'"',
    b'"\\u0031"',
    b'"\xff"',
    b'"1\n"',
    b'"\x7f"',
]
INTEGERS = [b"0", b"5", b"05", b"00", b"-1", b"-0", b"1.0", b"1e3", b'"5"', b"true", b"", b"100000000000000"]
INTEGERS += [
    b"100000000000001",
    b"100000000000000000",
    b"1000000000000000000",
    b"4611686018427387904",
    b"4611686018427387905",
]
INTEGERS += [b"9223372036854775808", b"18446744073709551616", b"1" * 40, b"5 ", b"5x"]
NAMES = [
    json.dumps(symbol, ensure_ascii=ascii).encode()
    for symbol in (*SYMBOLS, "NOSUCH", "BTCUSD")
    for ascii in (False, True)
]
NAMES += [b'"BTCUSDT\xff"', b'"\xff"', b'"BTC\\u0055SDT"', b"1", b'"BTCUSDT', b"true"]
BOOLEANS = [b"true", b"false", b"tru", b"falsey", b"True", b"1", b"null", b'"true"', b"truefalse"]
VOIDS = [
    b'"MARKET"',
    b'"NA"',
    b'"MARKET "',
    b'"MARKE"',
    b'""',
    b"1",
    b'"\xc3\x9f"',
    b'"\xc3"',
    b'"M\\u0041RKET"',
    b"null",
]
MARKETS = [b"1", b"2", b"0", b"01", b'"1"', b"-1", b"1.0", b"99999999999999999999"]
ANYTHING = [
    *PRICES,
    *INTEGERS,
    *BOOLEANS,
    b"[]",
    b'{"s":1}',
    b'{"p":"\xff"}',
    b"[1,2",
    b'"\x00"',
    b'"a\\"b"',
    b'"\xff"',
    b'"}}"',
]
ODD = {b"s": NAMES, b"p": PRICES, b"q": PRICES, b"f": INTEGERS, b"l": INTEGERS, b"T": INTEGERS, b"E": INTEGERS}
ODD |= {b"a": INTEGERS, b"t": INTEGERS, b"m": BOOLEANS, b"st": MARKETS, b"X": VOIDS}
ODD |= dict.fromkeys(
    [b"e", b"M", b"nq", b"", b"\xc3\x9f", b"\xff", b"S", b"longer", b"as", b"\x00s", b"\\u0073", b's"'], ANYTHING
)
GARBAGE = [
    b"",
    b"\n",
    b"{}",
    b"[]",
    b"7",
    b"\xff\xfe",
    b"[" * 5_000,
    b'{"result":null,"id":3}',
    b'{"error":{"code":4,"msg":""}}',
]
GARBAGE += [
    b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
    b'{"stream":"x","data":{}}',
]
GARBAGE += [b'{"stream":"!miniTicker@arr","data":[{"s":"ETHUSDT","E":1770123456789,"c":"1"}]}', b'{"stream":"x"}']


def arbitrary(dice: random.Random, kind: str) -> bytes:
    """Make a frame of a trade with something wrong about it, mostly one thing, or with nothing."""
    if dice.random() < 0.03:
        return dice.choice(GARBAGE)
    content = [(b"e", b'"%b"' % kind.encode()), (b"E", b"%d" % (START + dice.randrange(9)))]
    content += [(b"s", dice.choice(NAMES[:3])), (b"a" if kind == "aggTrade" else b"t", b"%d" % dice.randrange(99))]
    content += [(b"p", b'"%d.%d"' % (dice.randrange(999), dice.randrange(99))), (b"q", b'"%d.25"' % dice.randrange(99))]
    content += [(b"T", b"%d" % START), (b"m", dice.choice(BOOLEANS[:2]))]
    content += (
        [(b"f", b"5"), (b"l", b"%d" % dice.randrange(5, 9))] if kind == "aggTrade" else [(b"X", dice.choice(VOIDS[:2]))]
    )
    content += [(b"st", b"1")] * dice.randrange(2)
    for _ in range(dice.choice([0, 0, 0, 1, 1, 1, 2])):
        key = dice.choice([*ODD])
        change = (key, dice.choice(ODD[key]))
        indices = [at for at, (other, _) in enumerate(content) if other == key]
        match dice.randrange(4):
            case 0:
                content.insert(dice.randrange(len(content) + 1), change)
            case 1 if indices:
                del content[indices[0]]
            case _ if indices:
                content[indices[0]] = change
            case _:
                content.append(change)
    if dice.random() < 0.3:
        dice.shuffle(content)
    stream = b'"x@aggTrade"' if dice.random() < 0.9 else dice.choice([*ANYTHING, '"币"'.encode()])
    frame = b'{"stream":%b,"data":{%b}}' % (stream, b",".join(b'"%b":%b' % pair for pair in content))
    at = dice.randrange(len(frame))
    match dice.randrange(40):
        case 0:
            return frame[:at]
        case 1:
            return frame[:at] + dice.randbytes(1) + frame[at + 1 :]
        case 2:
            return frame[:at] + dice.choice([b" ", b'"', b",", b"}", b"{", b"\n", b"\\"]) + frame[at:]
        case 3:
            return frame + dice.choice([b" ", b"}", b"\n", b",", frame])
    return frame


@pytest.mark.parametrize("kind", KINDS_OF_STREAM)
def test_what_is_scanned_is_what_would_be_decoded(kind: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    frames = scanned = 0
    for _ in range(400):
        reads = [[arbitrary(dice, kind) for _ in range(dice.choice([1, 1, 2, 9]))] for _ in range(8)]
        outcome = agree(kind, reads, dict.fromkeys(SYMBOLS, (2, 3)))
        frames += sum(map(len, reads))
        scanned += sum(map(len, reads)) - outcome.decoder.not_plain
    # Both ways were gone, or nothing was compared.
    assert 0.25 * frames < scanned < 0.75 * frames


@pytest.mark.parametrize("name", STREAMS)
def test_a_recording_is_scanned_to_the_last_frame(name: str) -> None:
    frames = [line for line in unpacked(recording(name)).splitlines() if b"@kline" not in line]
    data = [json.loads(line)["data"] for line in frames]
    needs: dict[str, tuple[int, int]] = {}
    for row in data:
        price, quantity = needs.get(row["s"], (0, 0))
        needs[row["s"]] = (max(price, decimals_of(row["p"])), max(quantity, decimals_of(row["q"])))
    reads = [frames[at : at + 50] for at in range(0, len(frames), 50)]
    scanned = agree(data[0]["e"], reads, needs)
    assert scanned.decoder.not_plain == 0
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
    if kind == "aggTrade":
        texts = AggWriter([instrument]).messages(rows, np.zeros(20, np.int64))
    else:
        texts = TradeTemplate(instrument).messages(rows)
    frames = [
        b'{"stream":"%b@%b","data":%b}' % (instrument.stream_base.encode(), kind.encode(), text) for text in texts
    ]
    scanned = agree(kind, [frames[:1], frames[1:]], {instrument.symbol: (2, 0)})
    assert scanned.decoder.not_plain == 0
    assert not scanned.refused
    assert len(scanned.reads[1][0]) == 20


@pytest.mark.parametrize("kind", KINDS_OF_STREAM)
def test_the_table_is_packed_again_only_when_it_changes(kind: str) -> None:
    decimals = Decimals({f"S{index}": (2, 3) for index in range(1_000)})
    instruments = Instruments(decimals)
    assert instruments.indexes(f"S{index}" for index in range(1_000)) == list(range(1_000))
    packed = instruments.packed
    decimals.grow("OTHER", 1, 1)
    decimals.grow("S5", 1, 1)
    instruments.refresh()
    assert instruments.packed == packed
    decimals.grow("S5", 4, 1)
    instruments.refresh()
    assert instruments.packed != packed
    assert instruments.decimals[5].tolist() == [4, 3]
    assert instruments.indexes(["S7", "S0"]) == [7, 0]


def test_what_is_expected_is_scanned_from_the_first_trade_on() -> None:
    frame = b'{"stream":"","data":{"s":"%b","a":1,"p":"1.5","q":"2","f":1,"l":1,"T":7,"E":7,"m":true}}'
    outcome = Outcome("aggTrade", {"A": (1, 0), "B": (1, 0)})
    outcome.decoder.expect(["A"])
    outcome.take([frame % b"A"])
    assert outcome.decoder.not_plain == 0
    outcome.take([frame % b"B"])
    assert outcome.decoder.not_plain == 1
    outcome.take([frame % b"A", frame % b"B"])
    assert outcome.decoder.not_plain == 1
    assert [len(rows) for rows, *_ in outcome.reads] == [2, 2, 3]


def test_decimals_that_grow_elsewhere_are_those_of_the_next_read() -> None:
    frame = b'{"stream":"","data":{"s":"A","a":%d,"p":"1.5","q":"2","f":1,"l":1,"T":7,"E":7,"m":true}}'
    outcome = Outcome("aggTrade", {"A": (1, 0)})
    outcome.take([frame % 1])
    outcome.take([frame % 2])
    outcome.decimals.grow("A", 3, 1)
    outcome.take([frame % 3])
    assert [rows[0][3:5] for rows, *_ in outcome.reads] == [(15, 2), (15, 2), (1500, 20)]
    assert outcome.decoder.not_plain == 1


def klines_agree(body: bytes) -> bool:
    """Let an answer be scanned and decoded, and say whether it was plain."""
    columns = plain_klines(body)
    if columns is not None:
        for scanned, decoded in zip(columns, read_klines(body), strict=True):
            assert scanned.dtype == decoded.dtype
            assert scanned.tolist() == decoded.tolist()
    return columns is not None


def test_klines_are_scanned_as_they_are_decoded_or_left() -> None:
    dice = random.Random(20)
    rows = np.zeros(3, KLINE_ROW)
    for name in KLINE_ROW.names or ():
        rows[name] = [0 if name.startswith("more_") else dice.randrange(10**12) for _ in rows]
    page = kline_page(rows, rows["open_time"] + 60_000, 4, 3)
    for body in (b"[]", page, kline_page(rows[:1], rows["open_time"][:1] + 1, 0, 0)):
        assert klines_agree(body)
    # Each field of each row, and each piece between them, gives way to something odd.
    pieces = re.findall(rb'"[^"]*"|[0-9]+|[^"0-9]+', page)
    assert b"".join(pieces) == page
    plain = 0
    for index, piece in enumerate(pieces):
        for odd in [*ANYTHING, b"", b" ", b",", b"[", b"]", b"],[", piece * 2]:
            plain += klines_agree(b"".join([*pieces[:index], odd, *pieces[index + 1 :]]))
    assert 300 < plain < 600
    for _ in range(3_000):
        at = dice.randrange(len(page))
        klines_agree(page[:at] + bytes([dice.choice(b'0123456789",.[] \n\xff-e')]) + page[at + 1 :])
        klines_agree(page[:at])


@pytest.mark.parametrize(("name", "count"), [("usdm-BTCUSDT-1m.csv", 4), ("usdm-ALGOUSDT-1m-2024-02.csv.gz", 41_760)])
def test_what_the_exchange_has_of_klines_is_plain(name: str, count: int) -> None:
    _, *lines = unpacked(recording(name)).decode().split()
    rows = [[int(text) if index in (0, 6, 8) else text for index, text in enumerate(line.split(","))] for line in lines]
    assert len(rows) == count
    for start in range(0, len(rows), 1_500):
        assert klines_agree(json.dumps(rows[start : start + 1_500], separators=(",", ":")).encode())
