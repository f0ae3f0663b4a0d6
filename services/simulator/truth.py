"""The oracle: what a builder of klines that was fed with a symbol's stream must hold, computed in the plainest way.

One trade at a time, in exact decimals, minute by minute; longer klines from the minutes. Nothing here is shared with
what it judges. Before `since` a builder has only the exchange's own klines, so those are taken as they are; from
`since` on nothing counts but what left on the stream.
"""

from decimal import Decimal, localcontext
from typing import Any

from services.simulator.grid import HOUR_MS, INTERVALS, LENGTHS, MINUTE_MS, MONTH_MAX_MS, end_time, open_time
from services.simulator.rows import MARKET, SUMS, Instrument, number_of
from services.simulator.venue import Market

ROWS_MAX = 1_500
ROWS_DEFAULT = 150


class Kline:
    """A kline in the making; without trades it has a price only if there was one before it."""

    def __init__(self) -> None:
        self.open = self.high = self.low = self.close = Decimal(0)
        self.volume = self.quote_volume = self.taker_buy_volume = self.taker_buy_quote_volume = Decimal(0)
        self.count = 0
        self.first_id: int | None = None
        self.last_id: int | None = None
        self.id_count = 0

    def cover(self, first_id: int, last_id: int, count: int = 1) -> None:
        """Take ids in, whether or not anything was traded under them."""
        self.id_count += count
        if self.first_id is None:
            self.first_id = first_id
        self.last_id = last_id

    def trade(self, price: Decimal, quantity: Decimal, count: int, taker_bought: bool) -> None:
        if not self.count:
            self.open = self.high = self.low = price
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.volume += quantity
        self.quote_volume += price * quantity
        self.count += count
        if taker_bought:
            self.taker_buy_volume += quantity
            self.taker_buy_quote_volume += price * quantity

    def append(self, later: "Kline") -> None:
        """Take in the kline that follows."""
        if later.first_id is not None and later.last_id is not None:
            self.cover(later.first_id, later.last_id, later.id_count)
        if later.count:
            if not self.count:
                self.open, self.high, self.low = later.open, later.high, later.low
            self.high, self.low, self.close = max(self.high, later.high), min(self.low, later.low), later.close
            for name in SUMS:
                setattr(self, name, getattr(self, name) + getattr(later, name))

    def carry(self, close: Decimal) -> None:
        """Take over the price before, for want of an own one."""
        self.open = self.high = self.low = self.close = close

    def fields(self, instrument: Instrument, interval: str, opened: int) -> dict[str, Any]:
        price, quantity = instrument.price_decimals, instrument.quantity_decimals
        quote = price + quantity
        return {
            "open_time": opened,
            "open": f"{self.open:.{price}f}",
            "high": f"{self.high:.{price}f}",
            "low": f"{self.low:.{price}f}",
            "close": f"{self.close:.{price}f}",
            "volume": f"{self.volume:.{quantity}f}",
            "close_time": end_time(interval, opened) - 1,
            "quote_volume": f"{self.quote_volume:.{quote}f}",
            "count": self.count,
            "taker_buy_volume": f"{self.taker_buy_volume:.{quantity}f}",
            "taker_buy_quote_volume": f"{self.taker_buy_quote_volume:.{quote}f}",
            "ignore": "0",
            "first_id": self.first_id,
            "last_id": self.last_id,
            "id_count": self.id_count,
        }


def truth(market: Market, instrument: Instrument, kind: str, since: int, rows: int) -> dict[str, Any]:
    """Return {"symbol", "stream", "time", "since", ..., "klines": {interval: [row, ...]}}, the newest `rows` of each.

    `kind`: aggTrade or trade. `since`: a whole minute; before it, the exchange's own klines count.
    """
    with localcontext() as context:
        context.prec = 60
        minutes, fall_ms = _stream_minutes(market, instrument, kind, since)
        klines = {interval: _interval(market, instrument, interval, since, rows, minutes) for interval in INTERVALS}
    return {
        "symbol": instrument.symbol,
        "stream": kind,
        "time": market.now,
        "since": since,
        "fall_ms": fall_ms,
        "price_decimals": instrument.price_decimals,
        "quantity_decimals": instrument.quantity_decimals,
        "klines": klines,
    }


def _stream_minutes(market: Market, instrument: Instrument, kind: str, since: int) -> tuple[dict[int, Kline], int]:
    """Return (minute to kline, of those from `since` on that the stream had anything of; how far times fell)."""
    price_step = Decimal(1).scaleb(-instrument.price_decimals)
    quantity_step = Decimal(1).scaleb(-instrument.quantity_decimals)
    minutes: dict[int, Kline] = {}
    latest = fall_ms = 0
    for part in market.trades_since(instrument, kind, since):
        names = part.dtype.names
        for values in part.tolist():
            row = dict(zip(names, values, strict=True))
            fall_ms, latest = max(fall_ms, latest - row["time"]), max(latest, row["time"])
            kline = minutes.setdefault(row["time"] // MINUTE_MS * MINUTE_MS, Kline())
            kline.cover(row["id"], row["id"])
            if kind == "trade" and row["kind"] != MARKET:
                continue
            count = 1 if kind == "trade" else row["last"] - row["first"] + 1
            kline.trade(row["price"] * price_step, row["quantity"] * quantity_step, count, not row["maker"])
    return minutes, fall_ms


def _interval(
    market: Market, instrument: Instrument, interval: str, since: int, rows: int, minutes: dict[int, Kline]
) -> list[dict[str, Any]]:
    length = LENGTHS[interval] or MONTH_MAX_MS
    begin = open_time(interval, max(0, market.now - length * (rows - 1)), instrument.grid_3d)
    known: dict[int, Kline] = {}
    if begin < since:
        # Whole ones as they are, and of the one that `since` falls into what lies before it.
        split = open_time(interval, since, instrument.grid_3d)
        known = _official(market, instrument, interval, begin, split)
        hour = max(split, since // HOUR_MS * HOUR_MS) if length >= HOUR_MS else split
        parts = _official(market, instrument, "1h", split, hour) if hour > split else {}
        parts |= _official(market, instrument, "1m", hour, since)
        for opened in sorted(parts):
            known.setdefault(split, Kline()).append(parts[opened])
            if not known[split].count:
                known[split].carry(parts[opened].close)
    for minute in sorted(minutes):
        if minute >= begin:
            known.setdefault(open_time(interval, minute, instrument.grid_3d), Kline()).append(minutes[minute])
    close = Decimal(0) if begin < since else _close_before(market, instrument, since, begin, minutes)
    return _without_holes(market, instrument, interval, known, begin, close)


def _close_before(market: Market, instrument: Instrument, since: int, begin: int, minutes: dict[int, Kline]) -> Decimal:
    earlier = [minute for minute in minutes if minute < begin and minutes[minute].count]
    if earlier:
        return minutes[max(earlier)].close
    official = _official(market, instrument, "1m", since - MINUTE_MS, since)
    return official[since - MINUTE_MS].close if official else Decimal(0)


def _official(market: Market, instrument: Instrument, interval: str, start: int, end: int) -> dict[int, Kline]:
    """Return the exchange's own klines that open in [start, end)."""
    klines: dict[int, Kline] = {}
    if start >= end:
        return klines
    rows = market.klines(instrument, interval, start, end - 1)
    price, quantity = -instrument.price_decimals, -instrument.quantity_decimals
    scales = {"volume": quantity, "quote_volume": price + quantity, "count": 0}
    scales |= {"taker_buy_volume": quantity, "taker_buy_quote_volume": price + quantity}
    for row in rows[(rows["open_time"] >= start) & (rows["open_time"] < end)]:
        kline = klines[int(row["open_time"])] = Kline()
        for name in ("open", "high", "low", "close"):
            setattr(kline, name, Decimal(int(row[name])).scaleb(price))
        for name in SUMS:
            number = number_of(row, name)
            setattr(kline, name, Decimal(number).scaleb(scales[name]) if name != "count" else number)
    return klines


def _without_holes(
    market: Market, instrument: Instrument, interval: str, known: dict[int, Kline], begin: int, close: Decimal
) -> list[dict[str, Any]]:
    """Write klines out, with a flat one for every interval without trades after the first price there is."""
    rows = []
    opened = begin if close or not known else min(known)
    until = min(market.now, instrument.delivery - 1)
    while opened <= until:
        kline = known.get(opened) or Kline()
        if not kline.count:
            kline.carry(kline.close or close)
        close = kline.close
        if close:
            rows.append(kline.fields(instrument, interval, opened))
        opened = end_time(interval, opened)
    return rows
