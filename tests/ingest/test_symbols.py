"""What is announced, in which order, and when a name is worth a look."""

import pytest

from services.ingest.binance.messages import Listing
from services.ingest.symbols import REFRESH_MAX_MS, REFRESH_MS, Symbols


def listings(*names: str, halted: tuple[str, ...] = ()) -> list[Listing]:
    return [Listing(name, name not in halted, 2, 3) for name in names]


def announced(symbols: Symbols) -> list[str]:
    names = []
    while (name := symbols.take()) is not None:
        assert symbols.announced(name)
        names.append(name)
    return names


def test_nothing_is_announced_before_the_engine_said_what_it_knows() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "B"))
    assert symbols.take() is None
    assert symbols.engine_knows(["B"]) == []
    assert announced(symbols) == ["A"]
    assert symbols.take() is None


def test_the_largest_volume_comes_first() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "B", "C", "D", halted=("D",)))
    symbols.set_volumes({"A": 1.0, "B": 30.0, "C": 20.0, "D": 99.0})
    symbols.engine_knows([])
    assert announced(symbols) == ["B", "C", "A"]
    assert symbols.progress == (3, 3)


def test_a_listing_at_run_time_goes_before_the_others() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "B", "C"))
    symbols.engine_knows([])
    assert symbols.take() == "A"
    changes = symbols.refresh(listings("A", "B", "C", "N"))
    assert changes == (["N"], [])
    assert announced(symbols) == ["N", "B", "C"]


def test_a_symbol_that_stops_trading_is_removed_if_the_engine_was_sent_it() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "B", "C", "D"))
    symbols.engine_knows(["A"])
    assert symbols.take() == "B"
    assert symbols.announced("B")
    assert symbols.take() == "C"
    assert symbols.refresh(listings("A", "B", "C", "D", halted=("A", "B", "C", "D"))).removed == ["A", "B"]
    # What was under way need not be sent any more, and nothing is left.
    assert not symbols.announced("C")
    assert symbols.take() is None
    assert symbols.progress == (0, 0)
    # Trading again, it is announced again.
    symbols.refresh(listings("A", "B", "C", "D"))
    assert sorted(announced(symbols)) == ["A", "B", "C", "D"]


def test_an_empty_list_changes_nothing() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A"))
    symbols.engine_knows(["A"])
    assert symbols.refresh([]) == ([], [])
    assert "A" in symbols.names


def test_an_engine_that_lost_everything_is_sent_everything_again() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "B"))
    symbols.engine_knows([])
    assert announced(symbols) == ["A", "B"]
    assert symbols.engine_subscribed("A")
    symbols.engine_knows(["B"])
    assert announced(symbols) == ["A"]


def test_what_the_engine_knows_and_should_not_is_handed_back() -> None:
    symbols = Symbols(["A", "B", "C"], 2)
    symbols.refresh(listings("A", "B", "C", "X", "Y", halted=("C",)))
    symbols.set_volumes({"A": 1.0, "B": 2.0})
    assert symbols.engine_knows(["A", "B", "C", "X", "GONE"]) == ["C", "X", "GONE"]
    assert symbols.known == {"A", "B"}
    assert not symbols.engine_subscribed("X")


def test_no_more_than_the_maximum_is_wanted() -> None:
    symbols = Symbols([], 2)
    symbols.refresh(listings("A", "B", "C", "D"))
    symbols.engine_knows(["C"])
    assert announced(symbols) == ["A"]
    assert symbols.left_out == 2
    # A slot that is free is taken.
    symbols.refresh(listings("A", "B", "D"))
    assert announced(symbols) == ["B"]


def test_a_history_that_failed_comes_again_after_the_others() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "B", "C"))
    symbols.engine_knows([])
    assert symbols.take() == "A"
    symbols.failed("A")
    assert symbols.progress == (0, 3)
    assert announced(symbols) == ["B", "C", "A"]


def test_an_unknown_name_in_the_ticker_is_looked_up_ever_less_often() -> None:
    symbols = Symbols([], 100)
    symbols.refresh(listings("A", "OLD", halted=("OLD",)))
    assert not symbols.should_refresh(["A"], 0)
    assert symbols.should_refresh(["A", "NEW"], 0)
    assert not symbols.should_refresh(["NEW"], REFRESH_MS - 1)
    assert symbols.should_refresh(["NEW"], REFRESH_MS)
    assert not symbols.should_refresh(["NEW"], REFRESH_MS * 3 - 1)
    refreshes, now = 0, 0
    for now in range(0, 24 * 3_600_000, 1000):
        refreshes += symbols.should_refresh(["OLD"], now)
    assert refreshes <= 24 * 3_600_000 // REFRESH_MAX_MS + 10
    # Once it trades it is no longer a question.
    symbols.refresh(listings("A", "NEW"))
    assert not symbols.should_refresh(["NEW"], now + REFRESH_MAX_MS)


def test_names_outside_the_configuration_are_not_should_refresh() -> None:
    symbols = Symbols(["A"], 100)
    symbols.refresh(listings("A"))
    assert not symbols.should_refresh(["B"], 0)


def test_decimals_only_grow() -> None:
    symbols = Symbols([], 100)
    symbols.refresh([Listing("A", True, 4, 3)])
    symbols.refresh([Listing("A", True, 2, 5)])
    assert symbols.decimals["A"] == (4, 5)


def test_until_the_exchange_says_what_trades_the_engine_is_believed() -> None:
    symbols = Symbols(["A", "B", "C", "D"], 2)
    assert symbols.engine_knows(["A", "B", "C", "X"]) == ["X"]
    assert symbols.engine_subscribed("D")
    assert not symbols.engine_subscribed("Y")
    assert symbols.take() is None
    assert {name: symbols.decimals[name] for name in "ABCD"} == dict.fromkeys("ABCD", (0, 0))
    assert len(symbols.decimals) == 4
    symbols.set_volumes({"A": 1.0, "C": 3.0, "D": 2.0})
    assert symbols.refresh(listings("A", "C", "D", "E")).removed == ["A", "B"]
    assert symbols.known == {"C", "D"}
    assert symbols.take() is None


@pytest.mark.parametrize(
    "written", ["btcusdt", " BTCUSDT ", "BTC/USDT", "btc-usdt", "BTC_USDT", "btc / usdt", "BTCUSDT"]
)
def test_a_name_is_found_as_people_write_it(written: str) -> None:
    symbols = Symbols([written, "币安人生usdt"], 100)
    # Before the exchange has said anything, too.
    assert symbols.engine_knows(["BTCUSDT", "ETHUSDT"]) == ["ETHUSDT"]
    symbols.refresh(listings("BTCUSDT", "BTCUSDC", "币安人生USDT", "ETHUSDT"))
    assert symbols.unknown == {}
    assert "BTCUSDT" in symbols.names
    assert "币安人生USDT" in symbols.names
    assert symbols.trading_count == 2


def test_a_name_that_is_a_symbol_s_own_means_that_one_alone() -> None:
    symbols = Symbols(["BTCUSDT_261225", "ETH_USDT", "solusdt_261225"], 100)
    symbols.refresh(listings("BTCUSDT", "BTCUSDT_261225", "ETHUSDT", "ETH_USDT", "SOLUSDT_261225"))
    assert [name for name in ("BTCUSDT", "ETHUSDT") if name in symbols.names] == []
    assert symbols.trading_count == 3


def test_a_name_that_nobody_has_is_logged_with_the_nearest_until_it_is_listed() -> None:
    symbols = Symbols(["BTCUSDT", "btc/usd", "qqqqqqqq", "NEW-USDT", "OLDUSDT", ""], 100)
    symbols.refresh(listings("BTCUSDT", "ETHUSDT", "OLDUSDT", halted=("OLDUSDT",)))
    assert {name: symbols.unknown[name] for name in ("btc/usd", "qqqqqqqq", "")} == {
        "btc/usd": "BTCUSDT",
        "qqqqqqqq": "",
        "": "",
    }
    assert symbols.trading_count == 1
    assert "NEW-USDT" in symbols.unknown
    assert symbols.should_refresh(["NEWUSDT"], 0)
    assert not symbols.should_refresh(["OTHERUSDT"], 0)
    symbols.refresh(listings("BTCUSDT", "NEWUSDT"))
    assert "NEW-USDT" not in symbols.unknown
    assert "NEWUSDT" in symbols.names


def test_who_is_preferred_is_next_and_nobody_is_lost() -> None:
    symbols = Symbols([], 4)
    symbols.refresh(listings("A", "B", "C", "D", "E"))
    symbols.set_volumes({"A": 5.0, "B": 4.0, "C": 3.0, "D": 2.0, "E": 1.0})
    assert symbols.names == ["A", "B", "C", "D"]
    symbols.engine_knows(["B"])
    assert symbols.names == ["A", "B", "C", "D"]
    symbols.prefer(["D", "E", "NOBODY"])
    assert symbols.take() == "D"
    symbols.prefer(["D"])
    assert announced(symbols) == ["A", "C"]
    assert symbols.names == ["A", "B", "C", "D"]
