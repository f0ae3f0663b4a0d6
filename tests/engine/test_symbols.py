"""In which units a symbol's trades come, and in which it is kept."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kline import TRADE
from shared.wire import Instrument, Trades, pack_instruments
from tests.engine.played import MINUTE, START, PlayedEngine, Trade, batch, expected, market


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_decimals_that_grow_midway_change_no_value(seed: int, price: int, quantity: int) -> None:
    trades = market(seed, 60)
    played = PlayedEngine(START + 6 * MINUTE)
    played.add()
    played.apply(batch(trades[:30]))
    finer = [
        trade._replace(price=trade.price * 10**price, quantity=trade.quantity * 10**quantity) for trade in trades[30:40]
    ]
    played.apply(batch(finer, decimals=(2 + price, 3 + quantity)))
    played.apply(batch(trades[40:]))
    scaled = [trade._replace(price=trade.price * 10**price, quantity=trade.quantity * 10**quantity) for trade in trades]
    assert played.values() == expected(scaled)


def test_a_symbol_that_nobody_announced_is_counted_and_dropped() -> None:
    played = PlayedEngine()
    played.apply(batch([Trade(5, START + 10, 100, 7)], symbol="NOBODYUSDT"))
    assert played.engine.book.counters[0]["unknown_symbol"] == 1


def test_decimals_that_do_not_fit_are_taken_off_where_they_are_zeros() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START + 10, 10**9, 10**8)]))
    played.apply(batch([Trade(6, START + 20, 3 * 10**5, 7 * 10**4)], decimals=(7, 7)))
    row = played.values()["1m", START]
    assert (row["close"], row["volume"], row["quote_volume"]) == (3, 10**8 + 7, 10**17 + 21)
    played.apply(batch([Trade(7, START + 30, 3 * 10**5, 7 * 10**4 + 1)], decimals=(7, 7), covered=[(7, 9)]))
    assert played.engine.dropped == {"trades whose decimals do not fit": 1}
    assert played.engine.book.symbols[0]["last_id"] == 6


def test_an_answer_may_speak_of_a_symbol_in_the_decimals_it_had_and_has() -> None:
    played = PlayedEngine()
    played.add()
    rows = np.array([(0, *Trade(0, START + 1, 100, 7)), (1, *Trade(1, START + 2, 1_000, 70))], TRADE)
    both = pack_instruments([Instrument("BTCUSDT", 2, 3), Instrument("BTCUSDT", 3, 4)])
    played.apply(Trades(both, rows.tobytes()))
    row = played.values()["1m", START]
    assert (row["open"], row["close"], row["volume"]) == (1_000, 1_000, 140)
