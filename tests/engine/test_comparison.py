"""Stored minutes compared with the exchange's own."""

import numpy as np

from services.engine.audit import MATCHED, MISMATCHED
from services.engine.comparison import Comparison
from shared.kline import KLINE
from tests.engine.played import START


def test_a_stored_minute_whose_worth_the_exchange_cuts_is_no_difference() -> None:
    ours, official = np.zeros(1, KLINE), np.zeros(1, KLINE)
    for rows, quote in ((ours, 2_597_850), (official, 2_597_800)):
        rows["open_time"], rows["trade_count"], rows["volume"], rows["quote_volume"] = START, 1, 45, quote
        rows["open"] = rows["high"] = rows["low"] = rows["close"] = 57_730
    for decimals, counts in (((6, 4), {MATCHED: 1}), ((4, 4), {MISMATCHED: 1})):
        comparison = Comparison(*decimals)
        comparison.take(ours, official)
        assert comparison.counts == counts
