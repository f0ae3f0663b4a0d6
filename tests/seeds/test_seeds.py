"""A few seeds of the simulation; `make sim` plays thousands."""

from pathlib import Path

import pytest

from shared.config import ConfigError, load
from tests.seeds.simulation import run
from tests.seeds.starts import ROWS_MAX, ROWS_MIN, wrong_starts

FAILED_ONCE = {
    31: "a symbol that was reseeded took rows for whole that were closed and not proven",
    23: "the open of a long kline came from the exchange's own minutes after ours",
    39: "the first trades were asked for once, and the answer was lost",
    546: "ids restarted with 0, and the minute in which they did was final by the new ones alone",
    1074: "a symbol that was announced late was restored with rows older than the rest",
    300128: "a symbol was silent for longer than memory, and its klines never became final",
    300315: "void ids that followed on missing ones counted in a kline before their own",
    400262: "the answer to a gap was taken for the answer that nothing is newer",
    600005: "a trade with a time long past was audited in the minutes before its own",
    600608: "an id that turned out to be older than the seam left its klines unexplained for ever",
    602257: "an old trade out of ingest's memory hid those after it, which a connection lost",
    741346: "ids restarted with 0 in the minute after the one in which the symbol began, and the first one was final",
    741896: "klines that had been asked for answered for a range that had grown since",
    703886: "klines of a symbol that the store refused left memory, and the older ones in the store became final",
    705102: "a trade with a time long past was taken for one from before the seam, because it came first",
    702255: "klines that waited for a symbol that the store refused were lost, and flat ones became final",
    2006994: "a void id that followed on a trade older than memory was in no kline",
    300423: "the last batch was never taken, because only a symbol's mark had changed",
    300934: "the exchange's own klines were refused where restored ones were that lacked something",
}


@pytest.mark.parametrize("seed", FAILED_ONCE, ids=str)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert not run(seed).wrong, FAILED_ONCE[seed]


@pytest.mark.parametrize("begin", range(100_000, 100_060, 15))
def test_whatever_fails_the_store_has_what_was_traded(begin: int) -> None:
    for seed in range(begin, begin + 15):
        assert not run(seed).wrong, f"make sim SEED={seed}"


@pytest.mark.parametrize("rows", range(ROWS_MIN, ROWS_MAX + 1, 5))
def test_a_first_start_is_right_with_every_number_of_klines_that_is_allowed(rows: int) -> None:
    for seed in range(rows, rows + 5):
        assert not wrong_starts(seed, min(seed, ROWS_MAX))


def test_a_first_start_with_fewer_klines_would_be_found_wrong() -> None:
    assert any(wrong_starts(seed, ROWS_MIN - 1) for seed in range(30))


@pytest.mark.parametrize("rows", [-1, 0, 10, ROWS_MIN - 1, ROWS_MAX + 1])
def test_other_numbers_of_klines_are_refused_in_words(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "klagg.toml"
    for allowed in (ROWS_MIN, ROWS_MAX):
        path.write_text(f"[exchange]\nbackfill_rows = {allowed}\n", encoding="utf-8")
        assert load({"KLAGG_CONFIG": str(path)}).exchange.backfill_rows == allowed
    path.write_text(f"[exchange]\nbackfill_rows = {rows}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"backfill_rows = {rows} is outside {ROWS_MIN} .. {ROWS_MAX}"):
        load({"KLAGG_CONFIG": str(path)})
