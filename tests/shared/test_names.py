"""The one rule for names from outside, where each of them comes in."""

import msgspec
import pytest

from services.ingest.binance.messages import read_exchange_info
from services.persist.aside import Aside
from services.simulator.replay.reading import NotUnderstood, checked_symbol
from services.viz import database
from shared.names import NAME_MAX, is_name
from shared.wire import DirtyBatch
from tests.ingest.played import listing
from tests.persist.test_aside import of

LEGAL = ["BTCUSDT", "1000PEPEUSDC", "BTCUSDT_261225", "\u6d4b\u8bd5\u6d4b\u8bd5USDT", "A B", "A..B", "X" * NAME_MAX]
REFUSED = ["", ".", "..", "../../X", "A/B", "A\\B", "A\0B", "A\nB", "A\u202eB", "X" * (NAME_MAX + 1), "X" * 5_000]


@pytest.mark.parametrize("name", LEGAL)
def test_a_name_is_taken_everywhere(name: str) -> None:
    assert is_name(name)
    assert checked_symbol(name) == database.checked_symbol(name) == name
    listings, _ = read_exchange_info(info(name), lambda *_: pytest.fail("refused"))
    assert [each.symbol for each in listings] == [name]
    assert Aside().save(of([name]), 0.0, lambda _: "tables") == ("tables", [])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_name_is_refused_everywhere_and_costs_nobody_else_anything(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(NotUnderstood):
        checked_symbol(name)
    with pytest.raises(database.BadRequest):
        database.checked_symbol(name)
    refused: list[str] = []
    listings, _ = read_exchange_info(info("AUSDT", name, "BUSDT"), lambda kind, _: refused.append(kind))
    assert [each.symbol for each in listings] == ["AUSDT", "BUSDT"]
    assert refused == ["exchangeInfo symbol"]


@pytest.mark.parametrize("name", REFUSED)
def test_the_store_is_never_asked_to_take_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    saved: list[list[str]] = []

    def save(part: DirtyBatch) -> str:
        saved.append([mark.symbol for mark in part.marks])
        return "tables"

    aside = Aside()
    for now in (0.0, 1.0, 1e6):
        assert aside.save(of(["AUSDT", name, "BUSDT"]), now, save) == ("tables", [name])
    assert saved == [["AUSDT", "BUSDT"]] * 3
    assert caplog.text.count("set aside") == 1


def info(*names: str) -> bytes:
    return msgspec.json.encode({"symbols": [listing(name) for name in names]})
