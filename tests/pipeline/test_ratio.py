"""The engine does not become slow unnoticed: its speed as a ratio to polars', on the same trades in the same run."""

import pytest

from harness.rates import batches_of, columns_of, fold_polars, lengths_of, rate_of, rate_of_klagg

pytestmark = pytest.mark.pipeline

SYMBOLS = 200
AT_LEAST = 2.0
"""Batches of 1,000 and all intervals; it is some 6 (`make bench-peers`)."""


def test_the_engine_is_a_multiple_of_polars() -> None:
    batches = batches_of(SYMBOLS, 1_000)
    columns = [columns_of(batch) for batch in batches[:50]]
    assert (
        rate_of_klagg(SYMBOLS, batches, True).median / rate_of(fold_polars, columns, lengths_of(15)).median > AT_LEAST
    )
