"""A kline as browsers get it, and how saved and live ones become one history.

Decides which of two versions of the same kline is the newer. Knows no socket, no database and no viewer.
"""

from collections.abc import Iterable

import msgspec

from shared.snapshot import Snapshot


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kline: prices and volumes are decimal strings, times are ms."""

    open_time: int
    close_time: int
    open: str
    high: str
    low: str
    close: str
    volume: str
    quote_volume: str
    trade_count: int
    taker_buy_volume: str
    taker_buy_quote_volume: str
    first_id: int
    last_id: int
    id_count: int
    closed: bool
    final: bool
    gap: bool
    """Missing trades may belong in it. Of a saved one without a trade that is not known; it is final or not."""
    unexplained: bool
    """It may lack ids that the exchange left out of its answers: not final while that is so."""
    audited: bool
    """It may lack such ids, but the exchange's own kline has the same trades and volumes: final by that."""
    saturated: bool
    """More was traded in it than klagg's numbers hold: volumes are true or the largest that fit. Never final."""
    source: str
    revision: int


ROW_FIELDS = tuple(field.name for field in msgspec.structs.fields(Row))


def row_of(snapshot: Snapshot) -> Row:
    """Return the kline that a snapshot carries."""
    return Row(**{name: getattr(snapshot, name) for name in ROW_FIELDS})


def is_newer(row: Row, other: Row) -> bool:
    """Say whether `row` is a later version than `other` of the same kline.

    A kline closes once, corrections raise its revision, and what is applied to it only grows. If two versions are
    equal in all that, the final one is newer.
    """
    return _age(row) > _age(other)


def merge_history(saved: Iterable[Row], live: Iterable[Row]) -> list[Row]:
    """Return one history, ascending, each kline once: of two versions the newer, of equal ones the live one.

    A live kline older than every saved one is left out if there are saved ones: klines between them may be missing.
    """
    rows = {row.open_time: row for row in saved}
    oldest = min(rows, default=0)
    for row in live:
        known = rows.get(row.open_time)
        if row.open_time >= oldest and (known is None or not is_newer(known, row)):
            rows[row.open_time] = row
    return [rows[open_time] for open_time in sorted(rows)]


def _age(row: Row) -> tuple[bool, int, int, int, bool]:
    return row.closed, row.revision, row.id_count, row.trade_count, row.final
