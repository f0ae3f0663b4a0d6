"""A kline as people and browsers get it, and how saved ones and live ones become one history.

Decides which of two versions of the same kline is the newer. Knows no socket, no database and no viewer.
"""

from collections.abc import Iterable

import msgspec

from shared.wire import Snapshot


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
    """Ids that belong in it, or may, were left out by whoever was asked: not final while that is so."""
    audited: bool
    """Such ids, and the exchange's own kline has the same trades and volumes: final by that."""
    saturated: bool
    """More was traded in it than klagg's numbers hold: volumes are the true ones or the most that fits. Never final."""
    source: str
    revision: int


ROW_FIELDS = tuple(field.name for field in msgspec.structs.fields(Row))


def row_of(snapshot: Snapshot) -> Row:
    """Return the kline that a snapshot carries."""
    return Row(**{name: getattr(snapshot, name) for name in ROW_FIELDS})


def is_newer(row: Row, other: Row) -> bool:
    """Say whether `row` is a later version than `other` of the same kline.

    A kline closes once, corrections raise its revision, what is applied to it only grows, and final is the last word.
    """
    return _age(row) > _age(other)


def merge_history(saved: Iterable[Row], live: Iterable[Row]) -> list[Row]:
    """Return one history, ascending, each kline once: of two versions the newer, of equal ones the live one.

    A live kline older than every saved one is left out when there are saved ones: between the two there may be a hole.
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
