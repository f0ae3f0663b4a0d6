"""Frames of one TCP read into one batch, and what is refused of them."""

import json
import random
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from harness.processes import recording, unpacked
from services.ingest.binance.messages import Reply
from services.ingest.decimals import Decimals
from services.ingest.decode import Decoded, FrameDecoder
from services.ingest.websocket import frames_of
from shared.wire import Trades, instruments_of, trade_rows
from tests.ingest.played import START, Fill, agg_frame, ticker_frame, trade_frame

STREAMS = [
    "usdm-BTCUSDT-trade-stream.jsonl",
    "usdm-2symbols-aggTrade-and-kline-stream.jsonl",
    "spot-8symbols-aggTrade-stream-20210405T1833.jsonl.gz",
    "spot-BTCUSDT-trade-stream-20230405T0000.jsonl.gz",
    "usdm-4symbols-aggTrade-and-kline-stream-20210722T2225.jsonl.gz",
    "usdm-5symbols-aggTrade-stream-20210405T1836.jsonl.gz",
    "usdm-BTCUSDT-trade-stream-20230404T2358.jsonl.gz",
]


class Decoder(FrameDecoder):
    """A decoder that remembers what it refused."""

    def __init__(self, kind: str = "aggTrade", *symbols: str) -> None:
        self.refused: Counter[str] = Counter()
        self.decimals = Decimals(dict.fromkeys(symbols or ("BTCUSDT", "ETHUSDT"), (2, 3)))
        super().__init__(kind, self.decimals, lambda why, _: self.refused.update([why]))

    def take(self, *frames: str) -> Decoded:
        return self.decode(frames_of([frame.encode() for frame in frames]))


def ids(trades: Trades | None) -> list[int]:
    return [] if trades is None else trade_rows(trades.rows)["id"].tolist()


@pytest.mark.parametrize("name", STREAMS)
def test_a_recording_decodes_without_a_refusal_and_to_the_last_digit(name: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    generator = random.Random(seed)
    frames = [line for line in unpacked(recording(name)).splitlines() if b"@kline" not in line]
    data = [json.loads(line)["data"] for line in frames]
    kind = data[0]["e"]
    decoder = Decoder(kind, *{row["s"] for row in data})
    at = 0
    while at < len(frames):
        size = generator.choice([1, 2, 10, 200])
        decoded = decoder.decode(frames_of(frames[at : at + size]))
        assert decoded.trades is not None
        rows = trade_rows(decoded.trades.rows)
        assert len(rows) == len(data[at : at + size])
        for row, said in zip(rows, data[at : at + size], strict=True):
            check(decoded.trades, row, said)
        assert decoded.event_time == decoded.trades.event_time == max(said["E"] for said in data[at : at + size])
        at += size
    assert not decoder.refused


def check(trades: Trades, row: Any, said: dict[str, Any]) -> None:
    instrument = instruments_of(trades)[row["symbol"]]
    assert instrument.symbol == said["s"]
    void = said.get("X", "MARKET") != "MARKET"
    price, quantity = ("0", "0") if void else (said["p"], said["q"])
    assert Decimal(int(row["price"])).scaleb(-instrument.price_decimals) == Decimal(price)
    assert Decimal(int(row["quantity"])).scaleb(-instrument.quantity_decimals) == Decimal(quantity)
    if said["e"] == "aggTrade":
        expected = (said["a"], said["T"], said["l"] - said["f"] + 1, said["m"])
    else:
        expected = (said["t"], said["T"], 0 if void else 1, said["m"])
    assert (row["id"], row["time"], row["trade_count"], row["buyer_is_maker"]) == expected


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        ('{"stream":"btcusdt@aggTrade","data":{"e":"aggTr', "not JSON"),
        ("", "not JSON"),
        ("[]", "unexpected frame"),
        ("7", "unexpected frame"),
        ('{"stream":"btcusdt@kline_1m","data":{"e":"kline"}}', "unexpected frame"),
        ('{"stream":"btcusdt@aggTrade","data":{"s":"BTCUSDT","a":1}}', "unexpected frame"),
        (agg_frame("NOSUCH", Fill(1, START)), "unknown symbol"),
        (agg_frame("BTCUSDT", Fill(1, START, "one")), "price not a number"),
        (agg_frame("BTCUSDT", Fill(1, START, "-1.5")), "price negative"),
        (agg_frame("BTCUSDT", Fill(1, START, "0")), "price zero"),
        (agg_frame("BTCUSDT", Fill(1, START, "1", "-2")), "quantity negative"),
        (agg_frame("BTCUSDT", Fill(1, START, "1", "")), "quantity not a number"),
        (agg_frame("BTCUSDT", Fill(1, START, "1.00000000001")), "price too many decimals"),
        (agg_frame("BTCUSDT", Fill(1, START, "1e18")), "too large"),
        (agg_frame("BTCUSDT", Fill(1, START), a=-1), "unexpected frame"),
        (agg_frame("BTCUSDT", Fill(1, START), a=2**63), "unexpected frame"),
        (agg_frame("BTCUSDT", Fill(1, START), a="1"), "unexpected frame"),
        (agg_frame("BTCUSDT", Fill(1, START), p=1.5), "unexpected frame"),
        (agg_frame("BTCUSDT", Fill(1, START), f=12, l=11), "ids"),
        (agg_frame("BTCUSDT", Fill(1, START), f=12, l=3), "ids"),
        (agg_frame("BTCUSDT", Fill(1, START), T=START * 1000), "unexpected frame"),
    ],
)
def test_a_bad_frame_is_refused_by_kind_and_the_rest_of_its_read_is_kept(frame: str, kind: str) -> None:
    decoder = Decoder()
    decoded = decoder.take(agg_frame("BTCUSDT", Fill(41, START)), frame, agg_frame("ETHUSDT", Fill(42, START)))
    assert ids(decoded.trades) == [41, 42]
    assert decoder.refused == {kind: 1}


def test_two_broken_frames_do_not_heal_each_other() -> None:
    decoder = Decoder()
    one, two = agg_frame("BTCUSDT", Fill(1, START)), agg_frame("BTCUSDT", Fill(2, START))
    decoded = decoder.take(one[:-2], "}}", two)
    assert ids(decoded.trades) == [2]
    assert decoder.refused["not JSON"] == 2


def test_rows_of_the_other_market_are_left_out_and_are_no_error() -> None:
    decoder = Decoder()
    decoded = decoder.take(
        agg_frame("BTCUSDT", Fill(1, START), st=2),
        agg_frame("BTCUSDT", Fill(2, START)),
        ticker_frame("BTCUSD_PERP", st=2),
        ticker_frame("BTCUSDT", "NEWUSDT", event_time=START + 7),
    )
    assert ids(decoded.trades) == [2]
    assert list(decoded.tickers) == ["BTCUSDT", "NEWUSDT"]
    assert (decoded.ticker_time, decoded.event_time) == (START + 7, START + 7)
    assert decoder.other_market == 1
    assert not decoder.refused


def test_replies_and_notices_are_told_apart_from_data() -> None:
    decoder = Decoder()
    decoded = decoder.take(
        '{"result":null,"id":3}',
        agg_frame("BTCUSDT", Fill(1, START)),
        '{"error":{"code":4,"msg":"Too many subscriptions"}}',
        '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
    )
    assert ids(decoded.trades) == [1]
    assert decoded.replies[0] == Reply(3)
    assert decoded.replies[1].message_id is None
    assert "Too many subscriptions" in decoded.replies[1].error
    assert decoded.shutdown
    assert not decoder.refused


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe",
        b'"\xff"',
        b'{"stream":"x","data":"\xff"}',
        b'{"stream":"x","data":{"s":"\xff"}}',
        b"[" * 100_000,
        b"",
    ],
)
def test_whatever_comes_costs_itself_alone(garbage: bytes) -> None:
    decoder = Decoder()
    good = [agg_frame("BTCUSDT", Fill(trade_id, START)).encode() for trade_id in (1, 2)]
    decoded = decoder.decode(frames_of([good[0], garbage, good[1]]))
    assert ids(decoded.trades) == [1, 2]
    assert decoder.refused.total() == 1


def test_only_market_trades_have_a_price_and_the_others_are_void() -> None:
    decoder = Decoder("trade")
    decoded = decoder.take(
        trade_frame("BTCUSDT", Fill(1, START, "100.5", "2")),
        trade_frame("BTCUSDT", Fill(2, START, "0", "0"), X="NA"),
        trade_frame("BTCUSDT", Fill(3, START, "7.123456", "5"), X="INSURANCE_FUND"),
        trade_frame("BTCUSDT", Fill(4, START, "100.5", "2", buyer_is_maker=True), X="ADL"),
    )
    assert decoded.trades is not None
    assert [row[1:] for row in trade_rows(decoded.trades.rows).tolist()] == [
        (1, START, 10050, 2000, 1, 0),
        (2, START, 0, 0, 0, 0),
        (3, START, 0, 0, 0, 0),
        (4, START, 0, 0, 0, 1),
    ]
    assert decoder.decimals["BTCUSDT"] == (2, 3)


def test_decimals_grow_with_a_frame_that_needs_more_and_never_shrink() -> None:
    decoder = Decoder()
    first = decoder.take(agg_frame("BTCUSDT", Fill(1, START, "1.5")), agg_frame("BTCUSDT", Fill(2, START, "1.23456")))
    assert first.trades is not None
    assert instruments_of(first.trades)[0].price_decimals == 5
    assert trade_rows(first.trades.rows)["price"].tolist() == [150000, 123456]
    later = decoder.take(agg_frame("BTCUSDT", Fill(3, START, "1.5")))
    assert later.trades is not None
    assert trade_rows(later.trades.rows)["price"].tolist() == [150000]
