"""Sums of klines against Python's own integers, at the edges of what the fields hold."""

from random import Random
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kline import KLINE, QUOTE_BASE, QUOTE_MAX, SATURATED, TRADE, figure
from shared.merging import kline_of, merge, rescale

INT64 = 2**63 - 1
SUMS = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")


class Sums(NamedTuple):
    """What a kline's volumes are, however large."""

    volume: int = 0
    quote_volume: int = 0
    taker_buy_volume: int = 0
    taker_buy_quote_volume: int = 0

    def plus(self, other: "Sums") -> "Sums":
        return Sums(*(mine + added for mine, added in zip(self, other, strict=True)))

    def held(self) -> "Sums":
        """Return the most of each that a kline holds."""
        return Sums(*(min(mine, most) for mine, most in zip(self, (INT64, QUOTE_MAX) * 2, strict=True)))


quotes = st.one_of(
    st.integers(0, QUOTE_MAX),
    st.sampled_from([1, 10**18, 2 * 10**18, 2**63, 2**64, 10 * 10**18, QUOTE_MAX]).flatmap(
        lambda edge: st.integers(max(0, edge - 2), min(QUOTE_MAX, edge + 2))
    ),
    st.integers(0, 2 * 10**19),
)
volumes = st.one_of(st.integers(0, INT64), st.integers(0, 10**15), st.integers(INT64 - 2, INT64))
sums = st.builds(Sums, volumes, quotes, volumes, quotes)


def row_of(values: Sums) -> np.ndarray:
    rows = np.zeros(1, KLINE)
    rows["trade_count"] = rows["id_count"] = 1
    for name, value in values._asdict().items():
        if name in ("quote_volume", "taker_buy_quote_volume"):
            rows[f"{name}_high"], value = divmod(value, 10**18)
        rows[name] = value
    return rows


def said(row: np.void) -> tuple[Sums, bool]:
    assert 0 <= row["quote_volume"] < QUOTE_BASE
    assert 0 <= row["taker_buy_quote_volume"] < QUOTE_BASE
    return Sums(*(figure(row, name) for name in SUMS)), bool(row["flags"] & SATURATED)


@settings(max_examples=1_000, deadline=None)
@given(st.lists(sums, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_merged_sums_are_exact_in_any_order_and_what_does_not_fit_says_so(parts: list[Sums], source: Random) -> None:
    whole = Sums()
    for part in parts:
        whole = whole.plus(part)
    rows = [row_of(part) for part in parts]
    while len(rows) > 1:
        into = rows.pop(source.randrange(len(rows)))
        merge(into[0], rows[0][0])
        rows[0] = into
    assert said(rows[0][0]) == (whole.held(), whole != whole.held())


@settings(max_examples=500, deadline=None)
@given(sums, st.integers(0, 18), st.integers(0, 18))
def test_finer_decimals_are_exact_and_what_does_not_fit_says_so(values: Sums, price: int, quantity: int) -> None:
    rows = row_of(values)
    rescale(rows, 10**price, 10**quantity)
    factors = (10**quantity, 10 ** (price + quantity)) * 2
    whole = Sums(*(value * factor for value, factor in zip(values, factors, strict=True)))
    assert said(rows[0]) == (whole.held(), whole != whole.held())


@settings(max_examples=500, deadline=None)
@given(st.integers(1, INT64), st.integers(0, INT64), st.booleans())
def test_the_kline_of_a_trade_is_its_product(price: int, quantity: int, maker: bool) -> None:
    quantity = min(quantity, INT64 // price)
    trade, rows = np.zeros(1, TRADE), np.zeros(1, KLINE)
    trade["price"], trade["quantity"], trade["buyer_is_maker"], trade["trade_count"] = price, quantity, maker, 1
    kline_of(trade[0], rows[0])
    own = (0, 0) if maker else (quantity, price * quantity)
    assert said(rows[0]) == (Sums(quantity, price * quantity, *own), False)
