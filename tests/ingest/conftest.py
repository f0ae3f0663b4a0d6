"""What the tests of the room as a process begin with."""

from collections.abc import Iterator

import pytest

from tests.ingest.played import Exchange


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Give a played exchange with one symbol."""
    with Exchange() as exchange:
        exchange.add("BTCUSDT", volume="900")
        yield exchange
