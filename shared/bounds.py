"""Bounds of the numbers and names in messages between services: beyond them a message is refused when it is decoded.

Decides what fits an int64, the calendar and a power of ten, so that no service has to check it. What is likely is not
known here: a time within these bounds may still be impossible.
"""

from typing import Annotated

from msgspec import Meta

DECIMALS_MAX = 18
"""10**18 fits an int64."""
ID_MAX = 2**62
"""An id, and the next one, fit an int64."""
TIME_MAX = 253_370_764_799_999
"""The last ms of the year 9998: a datetime ends a year later."""
MOMENT_MIN, MOMENT_MAX = -(10**10), 253_402_300_799_999
NAMES_MAX = 10_000
"""Symbols of an exchange; there are some 1,000."""

Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Decimals = Annotated[int, Meta(ge=0, le=DECIMALS_MAX)]
Id = Annotated[int, Meta(ge=-1, le=ID_MAX)]
"""-1: none."""
Time = Annotated[int, Meta(ge=-1, le=TIME_MAX)]
"""Of the exchange, ms. -1: before all of them."""
Moment = Annotated[int, Meta(ge=MOMENT_MIN, le=MOMENT_MAX)]
"""Computed from a time, ms: the open or the end of a kline that it falls into, at the most of a month."""
Names = Annotated[list[str], Meta(max_length=NAMES_MAX)]
