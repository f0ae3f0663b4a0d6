"""Text to int64: never rounded, never guessed."""

from array import array
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.decimals import DECIMALS_MAX, RefusedNumber, parse_number, parse_numbers, trade_rows
from shared.decimals import INT64_MAX
from shared.kline import QUOTE_MAX

QUIET = settings(deadline=None, database=None, print_blob=True)
"""The first example compiles; nothing is left in the folder."""
PLAIN = st.from_regex(r"[0-9]{1,8}(\.[0-9]{1,10})?", fullmatch=True)
ANYTHING = st.one_of(
    PLAIN,
    st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            ".",
            "-",
            "NaN",
            "Infinity",
            "1_000",
            " 1",
            "1 ",
            "٣",
            "1\n2",
            "1.",
            ".5",
            "0x10",
            "+1",
            "1e5",
            "1" + "0" * 27,
            "0" * 28,
            "0" * 29,
        ]
    ),
)


@QUIET
@given(PLAIN)
def test_a_plain_number_is_its_decimal(text: str) -> None:
    mantissa, decimals = parse_number(text)
    assert Decimal(mantissa).scaleb(-decimals) == Decimal(text)
    assert decimals == max(0, -int(Decimal(text).normalize().as_tuple().exponent)) if mantissa else decimals == 0


@QUIET
@given(st.lists(ANYTHING, max_size=12))
def test_a_column_is_read_as_its_numbers_one_by_one(texts: list[str]) -> None:
    mantissas, decimals, highs = parse_numbers(texts)
    whole = [mantissa + high * 10**18 for mantissa, high in zip(mantissas.tolist(), highs.tolist(), strict=True)]
    for text, mantissa, count in zip(texts, whole, decimals.tolist(), strict=True):
        try:
            assert (mantissa, count) == parse_number(text, QUOTE_MAX)
            assert Decimal(mantissa).scaleb(-count) == Decimal(text)
        except RefusedNumber:
            assert (mantissa, count) == (0, -1)


@QUIET
@given(st.lists(st.tuples(ANYTHING, ANYTHING), max_size=12), st.integers(0, 4), st.integers(0, 4))
def test_rows_hold_exactly_what_the_texts_say_or_are_refused(
    pairs: list[tuple[str, str]], price_decimals: int, quantity_decimals: int
) -> None:
    decimals = np.array([[price_decimals, quantity_decimals]], np.int64)
    fields = array("q", [value for index in range(len(pairs)) for value in (0, index, 1000 + index, 1, index % 2)])
    rows, refused = trade_rows([price for price, _ in pairs], [quantity for _, quantity in pairs], fields, decimals)
    grown_price, grown_quantity = decimals[0].tolist()
    assert price_decimals <= grown_price <= max(price_decimals, DECIMALS_MAX)
    assert quantity_decimals <= grown_quantity <= max(quantity_decimals, DECIMALS_MAX)
    assert {row["id"] for row in rows} | {index for index, _ in refused} == set(range(len(pairs)))
    assert len(rows) + len(refused) == len(pairs)
    for row in rows:
        price, quantity = pairs[row["id"]]
        assert Decimal(int(row["price"])).scaleb(-grown_price) == Decimal(price) > 0
        assert Decimal(int(row["quantity"])).scaleb(-grown_quantity) == Decimal(quantity) >= 0
        assert int(row["price"]) * int(row["quantity"]) <= INT64_MAX
        assert (row["time"], row["trade_count"], row["buyer_is_maker"]) == (1000 + row["id"], 1, row["id"] % 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("abc", "not a number"),
        ("1_000", "not a number"),
        ("NaN", "not a number"),
        ("", "not a number"),
        ("9" * 29, "not a number"),
        ("-0.5", "negative"),
        ("9223372036854775808", "too large"),
        ("0.12345678901", "too many decimals"),
    ],
)
def test_what_is_no_exact_number_is_refused_with_its_kind(text: str, kind: str) -> None:
    with pytest.raises(RefusedNumber) as caught:
        parse_number(text)
    assert caught.value.kind == kind


def test_a_number_of_64_bits_is_exact_to_the_last_digit() -> None:
    assert parse_number("9223372036854775807") == (INT64_MAX, 0)
    assert parse_number("922337203685477.5807") == (INT64_MAX, 4)
    # Beyond 51 bits a float would have rounded.
    assert parse_numbers(["36028797018963.97", "36028797018963.98"])[0].tolist() == [3602879701896397, 3602879701896398]


def test_zeros_at_the_end_are_no_decimals() -> None:
    assert parse_number("100.0000000000000") == (100, 0)
    assert parse_number("0.00") == (0, 0)
    assert parse_number("1e-7") == (1, 7)


def test_a_void_row_has_no_price_and_needs_none() -> None:
    decimals = np.array([[2, 3]], np.int64)
    rows, refused = trade_rows(["nonsense"], ["-1"], array("q", [0, 7, 1000, 0, 1]), decimals)
    assert refused == []
    assert rows.tolist() == [(0, 7, 1000, 0, 0, 0, 1)]
    # Off-tick prices of void rows do not grow anything.
    trade_rows(["1.123456"], ["0"], array("q", [0, 7, 1000, 0, 1]), decimals)
    assert decimals.tolist() == [[2, 3]]


def test_a_product_that_no_int64_holds_is_refused() -> None:
    decimals = np.array([[2, 3]], np.int64)
    rows, refused = trade_rows(["99999999.99"], ["99999999.999"], array("q", [0, 7, 1000, 1, 1]), decimals)
    assert len(rows) == 0
    assert refused == [(0, "too large")]
