"""Recorded aggregates through the border and the engine, beside the exchange's own kline events of the same moments.

The recording begins inside a minute, so our klines lack what was traded before; the difference between two events of a
minute does not.
"""

import json
from collections import defaultdict
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest

from harness.processes import recording, unpacked
from services.engine.book import settle
from services.engine.engine import KlineEngine
from services.ingest.decimals import Decimals
from services.ingest.decode import FrameDecoder
from services.ingest.websocket import frames_of
from shared.config import EngineConfig
from shared.interval import MINUTE_MS
from shared.wire import AddSymbol, FeedState, Restored, decode_event, encode

SUMS = {
    "v": "volume",
    "n": "trade_count",
    "q": "quote_volume",
    "V": "taker_buy_volume",
    "Q": "taker_buy_quote_volume",
}


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("usdm-2symbols-aggTrade-and-kline-stream.jsonl", 6),
        ("usdm-4symbols-aggTrade-and-kline-stream-20210722T2225.jsonl.gz", 294),
    ],
)
def test_between_two_kline_events_our_sums_grow_as_the_exchanges_do(name: str, pairs: int) -> None:
    frames = unpacked(recording(name)).splitlines()
    contents: list[dict[str, Any]] = [json.loads(frame)["data"] for frame in frames]
    trades = [content for content in contents if content["e"] == "aggTrade"]
    events = [content["k"] for content in contents if content["e"] == "kline"]
    decimals = Decimals({trade["s"]: (0, 0) for trade in trades})
    # What is held after each aggregate, by the last trade in it.
    held: dict[tuple[str, int], dict[str, Decimal]] = {}
    engine, decoder = started(trades[0]["T"]), FrameDecoder("aggTrade", decimals, refuse)
    for frame, content in zip(frames, contents, strict=True):
        if content["e"] != "aggTrade":
            continue
        symbol = content["s"]
        if symbol not in engine.table.index:
            engine.apply(AddSymbol(symbol, 0, 0, "", [], 0, content["T"]), 0)
        batch = decoder.decode(frames_of([frame])).trades
        assert batch is not None
        engine.apply(decode_event(encode(batch)), 0)
        held[symbol, content["l"]] = sums(engine, symbol, content["T"])

    by_minute: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if (event["s"], event["L"]) in held:
            by_minute[event["s"], event["t"]].append(event)
    compared = 0
    for (symbol, _), of_minute in by_minute.items():
        for earlier, later in combinations(of_minute, 2):
            if earlier["L"] == later["L"]:
                continue
            before, after = held[symbol, earlier["L"]], held[symbol, later["L"]]
            for wire_name, field in SUMS.items():
                assert after[field] - before[field] == Decimal(later[wire_name]) - Decimal(earlier[wire_name]), (
                    later,
                    field,
                )
            compared += 1
    assert compared == pairs


def sums(engine: KlineEngine, symbol: str, time: int) -> dict[str, Decimal]:
    """Return the sums of a symbol's minute in the exchange's units."""
    settle(engine.book, False)
    state = engine.book.symbols[engine.table.index[symbol]]
    rows = engine.book.rows[engine.table.index[symbol], 0]
    (row,) = rows[rows["open_time"] == time // MINUTE_MS * MINUTE_MS]
    price, quantity = int(state["price_decimals"]), int(state["quantity_decimals"])
    units = {"volume": quantity, "quote_volume": price + quantity, "trade_count": 0}
    units |= {"taker_buy_volume": quantity, "taker_buy_quote_volume": price + quantity}
    return {name: Decimal(int(row[name])).scaleb(-unit) for name, unit in units.items()}


def started(time: int) -> KlineEngine:
    engine = KlineEngine(EngineConfig(symbols_max=4), session=1)
    engine.apply(FeedState(1, True, time, time + 60_000, 0), 0)
    engine.apply(Restored(1, [], b"", True, 0), 0)
    return engine


def refuse(kind: str, content: bytes) -> None:
    raise AssertionError(f"{kind}: {content!r}")
