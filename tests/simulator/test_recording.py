"""Recordings in all their forms: each gives the same trades, and what is none is said to be none."""

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from services.simulator.recording import Recording, RecordingError
from services.simulator.rows import Rows

HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
LINES = (
    "7,100.10,2.000,10,12,1790164800000,true\n"
    "8,100.2,0.125,13,13,1790164800020,false\n"
    "9,99.90,1,14,20,1790164861000,true\n"
)
CONTENT = {
    "id": [7, 8, 9],
    "first": [10, 13, 14],
    "last": [12, 13, 20],
    "time": [1_790_164_800_000, 1_790_164_800_020, 1_790_164_861_000],
    "price": [10010, 10020, 9990],
    "quantity": [2000, 125, 1000],
    "maker": [True, False, True],
}


def rows(path: Path) -> Rows:
    recording = Recording([str(path)])
    assert list(recording.instruments) == ["ETHUSDT"]
    assert recording.instruments["ETHUSDT"].price_decimals == 2
    assert recording.instruments["ETHUSDT"].quantity_decimals == 3
    return recording.streams[0].rows


def same(found: Rows) -> None:
    for name, values in CONTENT.items():
        assert found[name].tolist() == values, name


@pytest.mark.parametrize("header", [HEADER, ""])
@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("packed", ["csv", "csv.gz", "zip"])
def test_archives_with_and_without_header_in_ms_and_us_packed_or_not(
    tmp_path: Path, header: str, unit: str, packed: str
) -> None:
    text = header + (LINES if unit == "ms" else LINES.replace(",true", "000,true").replace(",false", "000,false"))
    if unit == "us":
        assert ",1790164800000000," in text
    path = tmp_path / f"ETHUSDT-aggTrades-2026-09-23.{packed}"
    if packed == "csv":
        path.write_text(text)
    elif packed == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ETHUSDT-aggTrades-2026-09-23.csv", text)
    same(rows(path))


@pytest.mark.parametrize("packed", [False, True])
def test_frames_as_received_and_what_is_none_is_left_out(tmp_path: Path, packed: bool) -> None:
    frames = []
    for line in LINES.splitlines():
        a, p, q, f, last, at, maker = line.split(",")
        data = {"e": "aggTrade", "E": int(at) + 5, "s": "ETHUSDT", "a": int(a), "p": p, "q": q, "f": int(f)}
        data |= {"l": int(last), "T": int(at), "m": maker == "true"}
        frames.append(json.dumps({"stream": "ethusdt@aggTrade", "data": data}))
    frames[1:1] = ["", "{broken", '{"result":null,"id":1}']
    text = "\n".join(frames)
    path = tmp_path / ("frames.jsonl.gz" if packed else "frames.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    same(rows(path))
    assert Recording([str(path)]).refused == 2
    assert np.all(np.diff(Recording([str(path)]).times) >= 0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("trades.txt", b"x", "neither .jsonl nor .csv"),
        ("ETHUSDT-aggTrades.csv", HEADER.encode(), "nothing in"),
        ("prices.csv", LINES.encode(), "an archive is called"),
        ("ETHUSDT-aggTrades.zip", b"no zip at all", "cannot read"),
        ("frames.jsonl.gz", b"no gzip at all", "cannot read"),
        ("frames.jsonl", b'{"stream":"!miniTicker@arr","data":[]}\n', "no trades in"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_in_words(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=words):
        Recording([str(path)])


def test_a_file_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"cannot read .*absent\.jsonl"):
        Recording([str(tmp_path / "absent.jsonl")])
