"""A recording as a market: longer than memory, in any order of lines, and asked about what has left so far."""

import random
import tracemalloc
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from services.simulator.replay import recording as recording_module
from services.simulator.replay import replayed as replay_module
from services.simulator.replay import spool as spool_module
from services.simulator.replay.recording import Recording
from services.simulator.replay.replayed import ReplayedMarket
from services.simulator.replay.spool import BLOCK, Spool, merged
from services.simulator.rows import KLINE_ROW, Rows

NOON = 1_790_164_800_000
MINUTE_MS = 60_000
SEED = 20_261_127


class Trade(NamedTuple):
    id: int
    time: int
    price: int
    quantity: int
    maker: bool

    def line(self) -> str:
        price = f"{self.price // 100}.{self.price % 100:02d}"
        return (
            f"{self.id},{price},{self.quantity},{self.id * 2},{self.id * 2 + 1},{self.time},{str(self.maker).lower()}"
        )


def trades(count: int) -> list[Trade]:
    """Return trades whose times rise with their ids, but for some that fall, and minutes without any."""
    dice = random.Random(SEED)
    time, made = NOON, []
    for trade_id in range(1, count + 1):
        time += dice.choice([0, 3, 40, 700, 4_000]) + (200_000 if trade_id % 1_000 == 0 else 0)
        fallen = time - 90_000 if trade_id % 777 == 0 else time
        made.append(
            Trade(trade_id, fallen, 10_000 + dice.randrange(-500, 500), dice.randrange(1, 50), dice.random() < 0.5)
        )
    return made


def written(folder: Path, lines: list[str], name: str = "ETHUSDT-aggTrades-2026-09-23.csv") -> str:
    path = folder / name
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a recording of some thousands of lines be put away, and sent, in as many parts as one of millions."""
    monkeypatch.setattr(recording_module, "GATHERED_MAX", 1_000)
    monkeypatch.setattr(replay_module, "EVENTS_MAX", 1_000)
    monkeypatch.setattr(spool_module, "MERGED_MAX", 4_000)


@pytest.mark.usefixtures("small_runs")
def test_the_memory_that_a_recording_takes_does_not_grow_with_it(tmp_path: Path) -> None:
    def play(path: str, count: int) -> None:
        market = ReplayedMarket([path])
        while not market.ended:
            market.advance(market.end_time, {"ethusdt@aggTrade"})
        assert market.trades == count

    def of(count: int) -> str:
        return written(tmp_path, [trade.line() for trade in trades(count)])

    play(of(100), 100)  # What is loaded once does not count.
    peaks = []
    for count in (4_500, 13_500):
        path = of(count)
        tracemalloc.start()
        play(path, count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0], peaks


@pytest.mark.usefixtures("small_runs")
def test_lines_in_any_order_make_the_same_recording(tmp_path: Path) -> None:
    lines = [trade.line() for trade in trades(9_000)]
    sorted_one = Recording([written(tmp_path, lines)])
    random.Random(SEED).shuffle(lines)
    shuffled = Recording([written(tmp_path, lines)])
    assert (sorted_one.streams[0].rows(0, 9_000) == shuffled.streams[0].rows(0, 9_000)).all()
    assert sorted_one.stretches == shuffled.stretches


@pytest.mark.usefixtures("small_runs")
def test_of_what_stands_in_two_files_the_first_one_counts_wherever_the_lines_are(tmp_path: Path) -> None:
    known = trades(5_000)
    again = [trade._replace(quantity=trade.quantity + (trade.id == 4_321)) for trade in known]
    first = written(tmp_path, [trade.line() for trade in known], "ETHUSDT-aggTrades-1.csv")
    lines = [trade.line() for trade in again]
    random.Random(SEED).shuffle(lines)
    recording = Recording([first, written(tmp_path, lines, "ETHUSDT-aggTrades-2.csv")])
    rows = recording.streams[0].rows(0, 10_000)
    assert rows["quantity"].tolist() == [trade.quantity for trade in known]
    assert recording.report.repeated == 4_999
    (report,) = recording.report.contradicting
    assert (report.id, report.file, report.line) == (
        4_321,
        "ETHUSDT-aggTrades-2.csv",
        lines.index(again[4_320].line()) + 1,
    )


@pytest.mark.usefixtures("small_runs")
def test_fills_under_a_lower_id_are_found_however_far_away_that_is(tmp_path: Path) -> None:
    known = trades(6_000)
    lines = [trade.line() for trade in known]
    cells = known[2].line().split(",")
    lines.insert(10, ",".join(["6001", *cells[1:]]))
    recording = Recording([written(tmp_path, lines)])
    assert recording.streams[0].rows(0, 7_000)["id"].tolist() == list(range(1, 6_001))
    (left_out,) = recording.report.left_out
    assert (left_out.line, left_out.reason) == (11, "fills 6 to 7 stand under a lower id already")


def plain_minutes(known: list[Trade]) -> dict[int, list[int]]:
    """Return minute to the fields of KLINE_ROW after its open time, one trade after the other."""
    minutes: dict[int, list[int]] = {}
    for trade in known:
        p, q, bought = trade.price, trade.quantity, 0 if trade.maker else 1
        opened, high, low, _, *sums = minutes.setdefault(trade.time // MINUTE_MS * MINUTE_MS, [p, p, p, p, *[0] * 7])
        more = [q, q * p, 2, q * bought, q * p * bought, 0, 0]
        minutes[trade.time // MINUTE_MS * MINUTE_MS] = [
            opened, max(high, p), min(low, p), p, *(a + b for a, b in zip(sums, more, strict=True))
        ]  # fmt: skip
    return minutes


def fields(rows: Rows) -> dict[int, list[int]]:
    return {row[0]: list(row[1:]) for row in rows.tolist()}


@pytest.fixture(params=[0.3, 1.0])
def halfway(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ReplayedMarket, list[Trade]]:
    """A market of which some has left, and what that is."""
    known = trades(3 * BLOCK + 100)
    market = ReplayedMarket([written(tmp_path, [trade.line() for trade in known])])
    now = known[int(len(known) * request.param) - 1].time + 5
    while market.now < now:
        market.advance(now, set())
    return market, known[: market.trades]


def test_klines_are_the_sum_of_what_has_left(halfway: tuple[ReplayedMarket, list[Trade]]) -> None:
    market, known = halfway
    assert len(known) > BLOCK / 2
    (instrument,) = market.instruments()
    minutes = plain_minutes(known)
    found = fields(market.klines(instrument, "1m", NOON - MINUTE_MS, market.now))
    assert {time: row for time, row in found.items() if row[6]} == minutes
    opens = sorted(found)
    assert opens == list(range(NOON, opens[-1] + 1, MINUTE_MS))
    for before, time in pairwise(opens):
        if not found[time][6]:
            assert found[time] == [found[before][3]] * 4 + [0] * 7, "nobody traded: the close before"
    # A part of it is a part of it, with the close before where it begins.
    begin = opens[len(opens) // 3]
    part = fields(market.klines(instrument, "1m", begin, begin + 10 * MINUTE_MS))
    assert part == {time: found[time] for time in opens if begin <= time <= begin + 10 * MINUTE_MS}
    hour = fields(market.klines(instrument, "1h", begin, begin))
    of_hour = [found[time] for time in opens if time // 3_600_000 == begin // 3_600_000]
    assert [row[4] for row in hour.values()] == [sum(row[4] for row in of_hour)]
    assert market.first_time(instrument) == NOON


def test_pages_of_trades_by_id_by_time_and_the_newest(halfway: tuple[ReplayedMarket, list[Trade]]) -> None:
    market, known = halfway
    (instrument,) = market.instruments()

    def page(from_id: int | None, start: int | None, end: int | None, limit: int) -> list[int]:
        ids: list[int] = market.agg_trades(instrument, from_id, start, end, limit)["id"].tolist()
        return ids

    last, middle = known[-1].id, known[len(known) // 2].time
    assert page(None, None, None, 700) == list(range(last - 699, last + 1))
    assert page(BLOCK - 5, None, None, 1_000) == list(range(BLOCK - 5, min(last, BLOCK + 994) + 1))[:1_000]
    assert page(last - 3, None, None, 1_000) == list(range(last - 3, last + 1))
    assert page(last + 1, None, None, 10) == []
    assert page(None, middle, None, 20) == [trade.id for trade in known if trade.time >= middle][:20]
    assert page(None, None, middle, 20) == [trade.id for trade in known if trade.time <= middle][-20:]
    assert market.last_ids() == {"ETHUSDT": {"aggTrade": last}}
    (stats,) = market.day_stats()
    assert (stats.open, stats.last) == (known[0].price, known[-1].price)
    assert (stats.high, stats.low) == (max(t.price for t in known), min(t.price for t in known))
    assert stats.quote_volume == sum(trade.price * trade.quantity for trade in known)
    assert stats.trades == 2 * len(known)


def test_an_event_that_says_no_time_left_right_after_the_one_before_it(tmp_path: Path) -> None:
    frames = [
        '{"stream":"!miniTicker@arr","data":[]}',
        f'{{"e":"trade","E":{NOON},"T":{NOON},"s":"ETHUSDT","t":1,"p":"1.5","q":"2","X":"MARKET","m":true}}',
        '{"stream":"!miniTicker@arr","data":[]}',
    ]
    recording = Recording([written(tmp_path, frames, "frames.jsonl")])
    assert [times.tolist() for times, _ in recording.events()] == [[NOON, NOON]]


def test_parts_that_ascend_are_merged_in_blocks_and_of_equals_the_first_part_comes_first() -> None:
    dice = np.random.default_rng(SEED)
    spool, parts, values = Spool(np.int64), [], []
    for count in (0, 3 * BLOCK, 17, BLOCK, 2 * BLOCK + 1):
        part = np.sort(dice.integers(0, 5_000, count))
        begin = len(spool)
        spool.append(part)
        parts.append(spool.since(begin))
        values.append(part)
    blocks = list(merged(parts))
    assert len(blocks) > 3
    everything = np.concatenate([block for block, _ in blocks])
    owners = np.concatenate([owners for _, owners in blocks])
    assert everything.tolist() == sorted(np.concatenate(values).tolist())
    for index, part in enumerate(values):
        assert everything[owners == index].tolist() == part.tolist()
    for value in range(5_000):
        of_it = owners[everything == value]
        assert len(of_it) == 0 or of_it[0] == of_it.min()


def test_an_empty_answer_is_of_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    market = ReplayedMarket([written(tmp_path, [trade.line() for trade in trades(3)])])
    (instrument,) = market.instruments()
    assert market.klines(instrument, "1m", NOON, NOON).dtype == KLINE_ROW
    assert not len(market.klines(instrument, "1h", NOON, NOON))
    assert not len(market.single_trades(instrument, None, 5))


def test_between_two_events_nothing_leaves_and_time_goes_on(tmp_path: Path) -> None:
    first, second = (trade._replace(time=NOON + 10_000 * trade.id) for trade in trades(2))
    market = ReplayedMarket([written(tmp_path, [first.line(), second.line()])])
    assert market.pause == 1, "before the first event"
    stream = {"ethusdt@aggTrade"}
    assert len(market.advance(first.time + 5, stream)) == 1
    assert market.advance(first.time + 2_000, stream) == []
    assert (market.now, market.trades, market.ended) == (first.time + 2_000, 1, False)
    assert market.pause == 8_005
    assert len(market.advance(second.time + 5, stream)) == 1
    assert (market.trades, market.pause, market.ended) == (2, 0, False)
    assert market.advance(market.end_time, stream) == []
    assert market.ended


def test_of_the_stretch_before_nothing_is_known(tmp_path: Path) -> None:
    later = 2_000 * 86_400_000
    known = trades(40)
    known = [trade._replace(time=trade.time + (later if trade.id > 20 else 0)) for trade in known]
    only_before = [f"{n},5,1,{n},{n},{NOON + n},true" for n in range(1, 4)]
    market = ReplayedMarket(
        [
            written(tmp_path, [trade.line() for trade in known]),
            written(tmp_path, only_before, "OLDUSDT-aggTrades-2026-09-23.csv"),
        ]
    )
    while not market.ended:
        market.advance(market.end_time, set())
    assert [instrument.symbol for instrument in market.instruments()] == ["ETHUSDT", "OLDUSDT"]
    assert market.stretches == 2
    market.begin(1)
    (instrument,) = market.instruments()
    assert market.find("OLDUSDT") is None
    assert market.last_ids() == {"ETHUSDT": {"aggTrade": -1}}
    assert (market.ended, market.trades, market.now) == (False, 0, known[20].time + 4)
    assert not len(market.agg_trades(instrument, 1, None, None, 1_000))
    assert not len(market.klines(instrument, "1m", NOON, market.now))
    while not market.ended:
        market.advance(market.end_time, set())
    assert market.agg_trades(instrument, 1, None, None, 1_000)["id"].tolist() == list(range(21, 41))
    assert market.last_ids() == {"ETHUSDT": {"aggTrade": 40}}
    rows = fields(market.klines(instrument, "1m", NOON, market.now))
    assert {time: row for time, row in rows.items() if row[6]} == plain_minutes(known[20:])
    assert min(rows) == known[20].time // MINUTE_MS * MINUTE_MS


@pytest.mark.parametrize(("first_days", "days_before"), [({}, 0), ({"ETHUSDT": date(2026, 9, 22)}, 2)])
def test_3d_klines_count_from_the_first_day_that_is_said_or_recorded(
    tmp_path: Path, first_days: dict[str, date], days_before: int
) -> None:
    day_ms = 86_400_000
    known = [trade._replace(time=NOON + trade.id * day_ms // 2) for trade in trades(20)]
    market = ReplayedMarket([written(tmp_path, [trade.line() for trade in known])], first_days)
    while not market.ended:
        market.advance(market.end_time, set())
    (instrument,) = market.instruments()
    first = known[0].time // day_ms * day_ms - days_before * day_ms
    opens = market.klines(instrument, "3d", 0, market.now)["open_time"].tolist()
    assert opens == list(range(first, market.now, 3 * day_ms))
