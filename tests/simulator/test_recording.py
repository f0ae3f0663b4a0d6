"""Recordings in all their forms: each gives the same trades, and what is none is said to be none."""

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from harness.processes import RECORDINGS
from services.simulator.replay.recording import Recording, RecordingError
from services.simulator.replay.stream import Stream
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


def everything(stream: Stream) -> Rows:
    return stream.rows(0, len(stream))


def times_of(recording: Recording) -> list[int]:
    return [time for times, _ in recording.events() for time in times.tolist()]


def rows(path: Path) -> Rows:
    recording = Recording([str(path)])
    assert list(recording.instruments) == ["ETHUSDT"]
    assert recording.instruments["ETHUSDT"].price_decimals == 2
    assert recording.instruments["ETHUSDT"].quantity_decimals == 3
    return everything(recording.streams[0])


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
    (left_out,) = Recording([str(path)]).report.left_out
    assert (left_out.line, left_out.beginning) == (3, "{broken"), "an answer of the exchange is none of its events"
    assert np.all(np.diff(times_of(Recording([str(path)]))) >= 0)


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


CASES = RECORDINGS.parent / "cases"
ROW = "7,100.10,2.000,10,12,1790164800000,true"


def read(folder: Path, content: str | bytes, name: str = "ETHUSDT-aggTrades-2026-09-23.csv") -> Recording:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Recording([str(path)])


def archive(*rows: str) -> str:
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("8,NaN,1,13,13,1790164800020,false", "price 'NaN' cannot be"),
        ("8,,1,13,13,1790164800020,false", "price '' is no number"),
        ("8,-1.5,1,13,13,1790164800020,false", "price '-1.5' cannot be"),
        ("8,0.00,1,13,13,1790164800020,false", "price 0 cannot be"),
        ("8,1e400,1,13,13,1790164800020,false", "too many digits"),
        ("8,1" + "0" * 30 + ",1,13,13,1790164800020,false", "too many digits"),
        ("8,1.0,-2,13,13,1790164800020,false", "quantity '-2' cannot be"),
        ("8,1.0,inf,13,13,1790164800020,false", "quantity 'inf' cannot be"),
        ("8,1.0,2,13,13,0,false", "time 0 cannot be"),
        ("8,1.0,2,13,13,1e12,false", "time '1e12' is no whole number"),
        ("9223372036854775807,1.0,2,13,13,1790164800020,false", "id 9223372036854775807 cannot be"),
        ("-8,1.0,2,13,13,1790164800020,false", "id '-8' is no whole number"),
        ("8,1.0,2,14,13,1790164800020,false", "fills 14 to 13 cannot be"),
        ("8,1.0,2,13,13,1790164800020,no", "maker 'no' is neither true nor false"),
        ("8,1.0,2,13,13,1790164800020,", "maker '' is neither true nor false"),
        ("8,1.0,2,13,13,1790164800020", "6 columns, and not 7 or 8"),
        ("8,1", "2 columns, and not 7 or 8"),
        ("price,8,1.0,2,13,1790164800020,true", "id 'price' is no whole number"),
    ],
)
def test_a_row_that_cannot_be_is_left_out_and_reported_and_the_others_are_read(
    tmp_path: Path, row: str, reason: str
) -> None:
    recording = read(tmp_path, archive(HEADER.strip(), ROW, row, "9,99.90,1,14,20,1790164861000,False"))
    assert everything(recording.streams[0])["id"].tolist() == [7, 9]
    (left_out,) = recording.report.left_out
    assert (left_out.file, left_out.line) == ("ETHUSDT-aggTrades-2026-09-23.csv", 3)
    assert left_out.beginning == row[:60]
    assert reason in left_out.reason
    assert recording.report.left_out_count == 1


def test_numbers_with_exponents_are_read_exactly(tmp_path: Path) -> None:
    recording = read(
        tmp_path, archive("1,1.037e-05,1e+06,1,1,1698796800000,0", "2,0.00001038,5000.25,2,2,1698796801000,1")
    )
    assert recording.instruments["ETHUSDT"].price_decimals == 8
    rows = everything(recording.streams[0])
    assert rows["price"].tolist() == [1037, 1038]
    assert rows["quantity"].tolist() == [100_000_000, 500_025]
    assert rows["maker"].tolist() == [False, True]


def test_numbers_padded_with_zeros_and_exact_ones_go_together(tmp_path: Path) -> None:
    recording = read(tmp_path, archive("1,2.50000000,1,1,1,1698796800000,0", "2,2.255,1,2,2,1698796801000,1"))
    assert recording.instruments["ETHUSDT"].price_decimals == 3
    assert everything(recording.streams[0])["price"].tolist() == [2500, 2255]


def test_a_byte_order_mark_costs_no_trade(tmp_path: Path) -> None:
    recording = read(tmp_path, b"\xef\xbb\xbf" + LINES.encode())
    same(everything(recording.streams[0]))
    assert not recording.report.left_out


def test_a_file_cut_in_the_middle_of_a_line_is_reported(tmp_path: Path) -> None:
    recording = read(tmp_path, LINES + "10,1")
    same(everything(recording.streams[0]))
    assert [(line.line, line.beginning) for line in recording.report.left_out] == [(4, "10,1")]


def test_all_files_of_a_zip_are_read_but_what_macos_puts_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "two-days.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("__MACOSX/._ETHUSDT-aggTrades-2026-09-23.csv", b"\0\5\x16\7")
        packed.writestr("b/ETHUSDT-aggTrades-2026-09-24.csv", LINES.split("\n")[2])
        packed.writestr("a/ETHUSDT-aggTrades-2026-09-23.csv", "\n".join(LINES.split("\n")[:2]))
    same(everything(Recording([str(path)]).streams[0]))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("__MACOSX/._ETHUSDT-aggTrades-2026-09-23.csv", b"\0\5\x16\7")
    with pytest.raises(RecordingError, match="__MACOSX"):
        Recording([str(path)])


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("BTCUSD_PERP-aggTrades-2023-11-01.csv", "BTCUSD_PERP"),
        ("btcusdt_230630-aggTrades-2023-06.csv", "BTCUSDT_230630"),
        ("spot-BTCUSDT-aggTrades-2026-01-01.csv", "BTCUSDT"),
        ("1000SHIBUSDT-aggTrades-2023-06-01.csv", "1000SHIBUSDT"),
        ("币安人生USDT-aggTrades-2026-01-01.csv", "币安人生USDT"),
    ],
)
def test_an_archives_name_is_its_symbol_in_whole(tmp_path: Path, name: str, symbol: str) -> None:
    assert list(read(tmp_path, LINES, name).instruments) == [symbol]


@pytest.mark.parametrize("header", ["id,price,qty,quote_qty,time,is_buyer_maker\n", ""])
@pytest.mark.parametrize("more", ["", ",True"])
def test_archives_of_single_trades_are_read(tmp_path: Path, header: str, more: str) -> None:
    content = f"{header}5,100.10,2.5,250.25,1790164800000,true{more}\n6,100.2,1,100.2,1790164800001000,false{more}\n"
    recording = read(tmp_path, content, "ETHUSDT-trades-2026-09-23.csv")
    (stream,) = recording.streams
    assert (stream.name, stream.kind, stream.as_received) == ("ethusdt@trade", "trade", False)
    assert everything(stream)[["id", "time", "price", "quantity", "kind", "maker"]].tolist() == [
        (5, 1_790_164_800_000, 10010, 25, 0, True),
        (6, 1_790_164_800_001, 10020, 10, 0, False),
    ]


def frame(trade_id: int, time: int, price: str = "100.1", symbol: str = "ETHUSDT") -> str:
    data = {"e": "aggTrade", "E": time + 3, "s": symbol, "a": trade_id, "p": price, "q": "0.5", "f": trade_id}
    return json.dumps(data | {"l": trade_id, "T": time, "m": True})


def test_raw_frames_and_frames_after_a_timestamp_are_read(tmp_path: Path) -> None:
    at = 1_790_164_800_000
    wrapped = [
        f'{{"stream":"ethusdt@aggTrade","data":{frame(2, at + 10)}}}',
        f'2026-09-23T12:00:00.0200000Z {{"stream":"ethusdt@aggTrade","data":{frame(3, at + 20)}}}',
    ]
    recording = read(tmp_path, "\n".join([frame(1, at), *wrapped]), "frames.jsonl")
    assert [stream.name for stream in recording.streams] == ["ethusdt@aggTrade"]
    assert everything(recording.streams[0])["id"].tolist() == [1, 2, 3]
    assert recording.streams[0].as_received
    assert json.loads(recording.streams[0].messages(0, 1)[0])["a"] == 1


@pytest.mark.parametrize("symbol", ["../../X", "A/B", "A\\B", "A\0B", "", "X" * 65, "..", "A\nB"])
def test_a_symbol_that_is_no_name_is_left_out(tmp_path: Path, symbol: str) -> None:
    recording = read(
        tmp_path, f"{frame(1, 1_790_164_800_000)}\n{frame(1, 1_790_164_800_000, symbol=symbol)}", "f.jsonl"
    )
    assert list(recording.instruments) == ["ETHUSDT"]
    assert "is no symbol" in recording.report.left_out[0].reason


def test_nothing_in_a_file_names_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nothing in .*csv; .* line 2: price 'x' is no number"):
        read(tmp_path, HEADER + "7,x,2.000,10,12,1790164800000,true\n")


def test_trades_are_in_the_order_of_their_ids_whatever_that_of_files_and_lines(tmp_path: Path) -> None:
    rows = [f"{n},100.{n},1,{n},{n},{1_790_164_800_000 + n * 7},true" for n in range(1, 90)]
    early, late = tmp_path / "ETHUSDT-aggTrades-early.csv", tmp_path / "ETHUSDT-aggTrades-late.csv"
    early.write_text("\n".join(rows[:40][::-1]))
    late.write_text("\n".join(rows[40:]))
    one = Recording([str(late), str(early)])
    other = read(tmp_path, "\n".join(rows))
    assert (everything(one.streams[0]) == everything(other.streams[0])).all()
    assert times_of(one) == times_of(other)


def test_a_trade_leaves_no_earlier_than_the_one_before_it_whatever_its_time(tmp_path: Path) -> None:
    at = 1_790_164_800_000
    rows = [
        f"{n},100,1,{n},{n},{time},true" for n, time in ((1, at), (2, at + 90_000), (3, at + 30_000), (4, at + 95_000))
    ]
    recording = read(tmp_path, "\n".join(rows))
    assert everything(recording.streams[0])["time"].tolist() == [at, at + 90_000, at + 30_000, at + 95_000]
    assert times_of(recording) == [at + 5, at + 90_005, at + 90_005, at + 95_005]


def test_the_same_id_again_is_counted_and_with_another_trade_reported(tmp_path: Path) -> None:
    rows = ["7,100,1,7,7,1790164800000,true", "8,101,1,8,8,1790164800010,true"]
    overlap = tmp_path / "ETHUSDT-aggTrades-2026-09-24.csv"
    overlap.write_text("\n".join([rows[1], "7,102,1,7,7,1790164800000,true"]))
    first = tmp_path / "ETHUSDT-aggTrades-2026-09-23.csv"
    first.write_text("\n".join(rows))
    recording = Recording([str(first), str(overlap)])
    assert everything(recording.streams[0])["price"].tolist() == [100, 101]
    assert recording.report.repeated == 1
    assert [tuple(again) for again in recording.report.contradicting] == [("ETHUSDT", 7, overlap.name, 2)]


def test_a_trade_much_older_than_one_with_a_lower_id_is_reported(tmp_path: Path) -> None:
    at, minute = 1_790_164_800_000, 60_000
    times = (at, at + 300 * minute, at + 201 * minute, at + 199 * minute, at + 301 * minute, at + 2 * minute)
    rows = [f"{n},100,1,{n},{n},{time},true" for n, time in enumerate(times, 1)]
    report = read(tmp_path, "\n".join(rows)).report
    assert [(fallen.id, fallen.line) for fallen in report.fallen] == [(4, 4), (6, 6)]
    assert [fallen.time for fallen in report.fallen] == [times[3], times[5]]
    assert report.fallen_count == 2


def test_what_is_too_large_beside_the_other_numbers_is_left_out_and_reported(tmp_path: Path) -> None:
    rows = ["7,100.12345678,1.00000001,7,7,1790164800000,true", "8,1e12,1,8,8,1790164800010,true"]
    rows += ["9,900000.5,90000.5,9,9,1790164800020,true", "10,100,1,10,10,1790164800030,true"]
    recording = read(tmp_path, "\n".join(rows))
    assert everything(recording.streams[0])["id"].tolist() == [7, 10]
    reason = "its numbers, or their product, do not fit 64 bits"
    assert [(line.line, line.reason) for line in recording.report.left_out] == [(2, reason), (3, reason)]


def test_a_frame_that_nobody_would_take_as_it_is_leaves_as_the_exchange_writes_it(tmp_path: Path) -> None:
    at = 1_790_164_800_000
    data = {"e": "trade", "E": at + 3, "T": at, "s": "ETHUSDT", "t": 1, "p": "1.5", "q": "2", "m": True}
    for plain, changed in ((True, {}), (False, {"T": at * 1000}), (False, {"E": 0}), (False, {"p": " 1.5"})):
        recording = read(tmp_path, json.dumps(data | changed), "frames.jsonl")
        assert recording.streams[0].as_received is plain, changed
        assert everything(recording.streams[0])[["id", "time", "price"]].tolist() == [(1, at, 15)]


DAY_MS = 86_400_000


@pytest.mark.parametrize(("days", "stretches"), [(31, 1), (32, 2), (2_000, 2)])
def test_after_a_pause_longer_than_any_kline_another_stretch_begins(tmp_path: Path, days: int, stretches: int) -> None:
    at = 1_554_000_000_000
    times = (at, at + 5, at + 5 + days * DAY_MS, at + 6 + days * DAY_MS)
    rows = [f"{n},100,1,{n},{n},{time},true" for n, time in enumerate(times, 1)]
    recording = read(tmp_path, "\n".join(rows))
    (one, *more) = recording.stretches
    assert (len(more) + 1, one.begins) == (stretches, [0])
    assert (more or [one])[-1].ends == [4]
    if more:
        assert (one.span, one.ends, more[0].begins) == ((at + 5, at + 10), [2], [2])
        events = [
            [time for block, _ in recording.events(stretch) for time in block.tolist()] for stretch in (one, *more)
        ]
        assert events == [[time + 5 for time in times[:2]], [time + 5 for time in times[2:]]]


@pytest.mark.skipif(not CASES.exists(), reason="no cases beside the checkout")
@pytest.mark.parametrize(
    ("case", "ids", "left_out"),
    [
        ("c09", [1, 2, 3], []),
        ("c09b", [1, 2, 3], []),
        ("c12", list(range(1, 101)), []),
        ("c14b", list(range(1, 11)), []),
        ("c15", list(range(1, 504)), [505]),
        ("c17", list(range(1, 9)), []),
        ("c30", list(range(1, 9)), []),
        ("c31", list(range(1, 9)), []),
    ],
)
def test_what_people_report_of_files_is_read_or_reported(case: str, ids: list[int], left_out: list[int]) -> None:
    recording = Recording([str(path) for path in sorted((CASES / case).iterdir())])
    (stream,) = recording.streams
    assert everything(stream)["id"].tolist() == ids
    assert [line.line for line in recording.report.left_out] == left_out


def test_fills_that_stand_under_a_lower_id_count_once_and_are_reported(tmp_path: Path) -> None:
    rows = ["7,100,1,5,6,1790164800000,true", "8,101,1,7,7,1790164860000,true", "9,100,1,5,6,1790164800000,true"]
    recording = read(tmp_path, "\n".join([*rows, "10,100,1,8,8,1790164860001,true"]))
    assert everything(recording.streams[0])["id"].tolist() == [7, 8, 10]
    (left_out,) = recording.report.left_out
    assert (left_out.line, left_out.reason) == (3, "fills 5 to 6 stand under a lower id already")


@pytest.mark.skipif(not CASES.exists(), reason="no cases beside the checkout")
def test_two_sequences_in_one_file_are_one_in_the_order_of_ids() -> None:
    (path,) = (CASES / "c02").iterdir()
    ids = everything(Recording([str(path)]).streams[0])["id"].tolist()
    assert ids == sorted(ids)
    assert len(ids) == 80
