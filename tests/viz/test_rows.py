"""How saved and live klines become one history."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.viz.rows import Row, is_newer, merge_history, row_of
from tests.viz.played import made_up

ROWS = [row_of(snapshot) for snapshot in made_up("BTCUSDT", "1m", 30)]


def version(row: Row, more: int) -> Row:
    """Return the row as it was when `more` more trades had been applied."""
    return msgspec.structs.replace(row, id_count=row.id_count + more, trade_count=row.trade_count + more)


@given(st.integers(0, 30), st.integers(0, 30), st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_the_seam_has_no_hole_and_no_duplicate(saved_until: int, live_from: int, versions: list[int]) -> None:
    saved = ROWS[:saved_until]
    live = [version(row, more) for row, more in zip(ROWS, versions, strict=True)][min(live_from, saved_until) :]
    merged = merge_history(saved, live)
    assert [row.open_time for row in merged] == [row.open_time for row in ROWS]
    assert merged[len(ROWS) - len(live) :] == live


def test_of_two_versions_the_newer_wins_on_either_side() -> None:
    row = ROWS[3]
    newer = version(row, 1)
    assert merge_history([row], [newer]) == [newer]
    assert merge_history([newer], [row]) == [newer]


def test_a_kline_only_ages_by_closing_by_correction_and_by_trades() -> None:
    row = ROWS[-1]
    closed = msgspec.structs.replace(row, closed=True)
    corrected = msgspec.structs.replace(closed, revision=1)
    for newer, older in [(version(row, 1), row), (closed, version(row, 9)), (corrected, version(closed, 9))]:
        assert is_newer(newer, older)
        assert not is_newer(older, newer)
    assert not is_newer(row, row)


def test_live_klines_older_than_the_saved_ones_are_left_out() -> None:
    assert merge_history(ROWS[10:], ROWS[:5]) == ROWS[10:]
    assert merge_history([], ROWS[:5]) == ROWS[:5]
