"""A generated market as the exchange's protocol sees it: who is listed, what left, what may still be asked for.

Decides look-back limits, what a ticker holds and when coins come and go. What was traded when is the generator's.
"""

from collections.abc import Container, Iterable, Iterator

import numpy as np
from msgspec.structs import replace

from services.simulator.frames import TICKER_STREAM, Chunk, TradeTemplate, ticker_row
from services.simulator.grid import DAY_MS, MINUTE_MS, end_time, open_time
from services.simulator.market.altered import Altered, Chain, Late, earlier
from services.simulator.market.coins import LISTED_RANK, Coin, Listings, standing_coins, status_of
from services.simulator.market.klinefeed import KlineFeed
from services.simulator.market.live import Flow, Released
from services.simulator.market.minutes import Generator
from services.simulator.market.moments import MASK
from services.simulator.market.tape import Tape
from services.simulator.rows import AGG_ROW, MARKET, TRADE_ROW, DayStats, Instrument, Rows
from services.simulator.venue import Leaving, TooOld
from services.simulator.writing import AggChunk, AggWriter
from shared.arrays import Booleans, Integers
from shared.compiled import compiled

QUOTE_MAX = 2**61
"""A quarter of an int64: months differ."""
LOOK_BACK_MS = 2 * DAY_MS
"""How old trades may be that REST gives out by id or time (protocol §3.4)."""
OLD_TRADES_MS = 31 * DAY_MS
"""The same for historicalTrades."""
LATE_MINUTES_MAX = 10
"""So far ahead is looked for a trade that can be late."""
STATS = ("open", "high", "low", "last", "volume", "quote_volume", "count")


class GeneratedMarket:
    def __init__(
        self,
        *,
        seed: int,
        symbols: int,
        trades_per_second: float,
        history_days: int,
        listing_interval_s: float,
        quirks: bool,
        start: int,
    ) -> None:
        began = start // DAY_MS * DAY_MS - history_days * DAY_MS if history_days else start // MINUTE_MS * MINUTE_MS
        tape = Tape(seed, quirks)
        self.now = self.started = start
        self.ended = False
        self.trades = 0
        self._generator = Generator(seed, tape, quirks, began)
        self._standing = standing_coins(seed, symbols, trades_per_second, tape)
        busiest = max(coin.daily for coin in self._standing)
        rank = min(LISTED_RANK, len(self._standing) - 1)
        self._listings = Listings(seed, listing_interval_s, max(busiest, 1) * tape.fills_mean * 2 / (rank + 2), tape)
        self._altered: dict[str, Coin] = {}
        """Coins that are not what the seed made them, or that it did not make."""
        self._others = Altered()
        """Trades that are not what the seed made them."""
        self._coins: dict[str, Coin] = {}
        self._bases: dict[str, str] = {}
        self._kline_feed = KlineFeed(self)
        self._flows = {"aggTrade": Flow(self._generator, "aggTrade")}
        self._templates: dict[str, TradeTemplate] = {}
        self._writer = AggWriter([])
        self._stats = np.zeros((0, len(STATS)), np.int64)
        self._stats_of: list[str] = []
        self._changed = np.zeros(0, bool)
        self._refreshed = 0
        self._refresh_coins()

    def _refresh_coins(self) -> None:
        """Take in who was announced, and forget who is gone."""
        coins = {coin.symbol: coin for coin in [*self._standing, *self._listings.known(self.now)]} | self._altered
        if coins == self._coins:
            return
        others = {symbol for symbol, coin in self._coins.items() if coins.get(symbol) != coin}
        for symbol in others:
            self._generator.forget(self._coins[symbol])
            del self._templates[symbol]
        for symbol in coins.keys() - self._templates.keys():
            self._templates[symbol] = TradeTemplate(coins[symbol].instrument)
        self._writer = AggWriter([coin.instrument for coin in coins.values()])
        self._coins = coins
        self._bases = {coin.instrument.stream_base: symbol for symbol, coin in coins.items()}
        for flow in self._flows.values():
            flow.set_coins(list(coins.values()), self.now)
        before = {symbol: index for index, symbol in enumerate(self._stats_of)}
        stats = np.zeros((len(coins), len(STATS)), np.int64)
        changed = np.zeros(len(coins), bool)
        for index, coin in enumerate(coins.values()):
            if coin.symbol in before and coin.symbol not in others:
                stats[index], changed[index] = self._stats[before[coin.symbol]], self._changed[before[coin.symbol]]
            else:
                stats[index] = self._day_of(coin)
        self._stats, self._stats_of, self._changed = stats, list(coins), changed

    # What may be done to it.

    def refine(self, symbol: str) -> None:
        """Write a coin's numbers with one decimal more from here on; they stay what they are.

        Raises KeyError, and ValueError if a month's would not fit an int64 any more.
        """
        coin = self._coins[symbol]
        months = self.klines(coin.instrument, "1M", self.now - 62 * DAY_MS, self.now)
        if int(months["quote_volume"].max(initial=0)) * 100 > QUOTE_MAX:
            raise ValueError(f"a month of {symbol} with more decimals does not fit an int64")
        instrument = replace(
            coin.instrument,
            price_decimals=coin.instrument.price_decimals + 1,
            quantity_decimals=coin.instrument.quantity_decimals + 1,
            tick=coin.instrument.tick * 10,
            step=coin.instrument.step * 10,
        )
        self._altered[symbol] = replace(coin, instrument=instrument, lot=coin.lot * 10)
        self._others.refine(symbol)
        self._refresh_coins()

    def list_coin(self) -> str:
        """List a coin that begins to trade at once, and return its symbol."""
        coin = self._listings.extra(self.now)
        self._altered[coin.symbol] = coin
        self._refresh_coins()
        return coin.symbol

    def delist(self, symbol: str) -> None:
        """End a coin's trading with this minute. Raises KeyError."""
        coin, end = self._coins[symbol], (self.now // MINUTE_MS + 1) * MINUTE_MS
        self._altered[symbol] = replace(coin, instrument=replace(coin.instrument, delivery=end), delisted=end)
        self._refresh_coins()

    def relist(self, symbol: str) -> None:
        """Let a coin's ids restart at 1, with its next trade. Raises KeyError."""
        coin = self._coins[symbol]
        first = self._next_id(coin)
        self._others.chains[symbol] = Chain(first, int(self._generator.tape.trade_ids(np.array([first]))[0]))
        self._altered[symbol] = replace(coin, instrument=replace(coin.instrument, onboard=self.now))
        self._refresh_coins()

    def make_late(self, symbol: str, ms: int) -> int:
        """Let one of a coin's next trades say a time that is `ms` earlier, but in the minute before, and return when it
        happens. Raises KeyError, and ValueError if there will be none soon that the klines can take.
        """
        coin, generator = self._coins[symbol], self._generator
        for ahead in range(LATE_MINUTES_MAX):
            minute = (self.now // MINUTE_MS + ahead) * MINUTE_MS
            rows = generator.aggregates(coin, minute)
            first = int(np.searchsorted(rows["id"], self._next_id(coin))) if len(rows) else 0
            before = generator.aggregates(coin, minute - MINUTE_MS)
            for index in range(max(1, first), len(rows) - 1) if len(before) else ():
                if rows["price"][index] == rows["price"][index - 1]:
                    return self._note_late(coin, rows[index], ms)
        raise ValueError(f"{symbol} trades too seldom")

    def _note_late(self, coin: Coin, row: Rows, ms: int) -> int:
        fills = int(self._generator.tape.fills[int(row["id"]) & MASK])
        price, quantity, bought = int(row["price"]), int(row["quantity"]), not row["maker"]
        amounts = (quantity, quantity * price, fills, quantity * bought, quantity * price * bought)
        first, beyond = self._generator.tape.trade_ids(np.array([row["id"], row["id"] + 1])).tolist()
        time = int(row["time"])
        late = Late(int(row["id"]), first, beyond, time, earlier(time, ms), price, amounts)
        self._others.late.setdefault(coin.symbol, []).append(late)
        return time

    def _next_id(self, coin: Coin) -> int:
        """Return the first aggregate that has not left on either stream."""
        return max(self._generator.released(coin, kind, self.now) for kind in ("aggTrade", "trade"))

    def instruments(self) -> list[Instrument]:
        self._refresh_coins()
        return [coin.instrument for coin in self._coins.values()]

    def find(self, symbol: str) -> Instrument | None:
        coin = self._coins.get(symbol)
        return coin.instrument if coin else None

    def find_stream(self, stream_base: str) -> Instrument | None:
        """Return the symbol that streams spell so."""
        return self.find(self._bases.get(stream_base, ""))

    def status(self, instrument: Instrument) -> str:
        return status_of(instrument, self.now)

    # What may be asked for.

    def first_time(self, instrument: Instrument) -> int:
        return self._generator.since(self._coins[instrument.symbol])

    def klines(self, instrument: Instrument, interval: str, start: int, until: int) -> Rows:
        # Up to the end of the last one, as far as it has come.
        end = end_time(interval, open_time(interval, until, instrument.grid_3d))
        rows = self._generator.klines(self._coins[instrument.symbol], interval, start, min(self.now, end - 1))
        return self._others.klines(instrument.symbol, interval, instrument.grid_3d, rows, self.now)

    def agg_trades(
        self, instrument: Instrument, from_id: int | None, start: int | None, end: int | None, limit: int
    ) -> Rows:
        coin, generator = self._coins[instrument.symbol], self._generator
        beyond = generator.released(coin, "aggTrade", self.now)
        begins = self._others.begins(coin.symbol, "aggTrade")
        oldest = max(begins, generator.id_at(coin, max(self.now - LOOK_BACK_MS, coin.listed)))
        if end is not None:
            beyond = min(beyond, generator.id_at(coin, end + 1)) if end >= self.now - LOOK_BACK_MS else oldest
        if from_id is not None:
            first = self._others.raw_id(coin.symbol, "aggTrade", from_id)
        elif start is not None:
            if start < self.now - LOOK_BACK_MS:
                raise TooOld
            first = generator.id_at(coin, max(start, coin.listed)) if start <= self.now else beyond
        else:
            first = max(oldest, beyond - limit)
        if first < oldest and not (coin.listed or begins):
            raise TooOld
        first = max(first, oldest)
        parts = [np.empty(0, AGG_ROW)]
        while first < min(beyond, parts[0]["id"][0] + limit if len(parts[0]) else beyond):
            rows = generator.aggregates(coin, generator.minute_of(coin, first, self.now), first, limit)
            if not len(rows):
                break
            parts = [np.concatenate([*parts, rows])]
            first = int(rows["id"][-1]) + 1
        return self._others.as_sent(coin.symbol, "aggTrade", parts[0][parts[0]["id"] < beyond][:limit])

    def single_trades(self, instrument: Instrument, from_id: int | None, limit: int) -> Rows:
        coin, generator = self._coins[instrument.symbol], self._generator
        beyond = generator.released(coin, "trade", self.now)
        begins = self._others.begins(coin.symbol, "aggTrade")
        if from_id is not None:
            from_id = self._others.raw_id(coin.symbol, "trade", from_id)
        first = generator.aggregate_of(from_id) if from_id is not None else beyond - limit
        oldest = max(begins, generator.id_at(coin, max(self.now - OLD_TRADES_MS, coin.listed)))
        if from_id is not None and first < oldest and not (coin.listed or begins):
            raise TooOld
        first = max(first, oldest)
        parts = [np.empty(0, TRADE_ROW)]
        count = 0
        while first < beyond and (from_id is None or count < limit):
            minute = generator.minute_of(coin, first, self.now)
            rows = generator.single_trades(coin, minute, first, limit)
            past = int(rows["id"][-1]) + 1 if len(rows) else 0
            if not past:
                break
            rows = rows[(rows["kind"] == MARKET) & (rows["id"] >= (from_id or 0))]
            rows = rows[rows["event_time"] <= self.now]
            parts.append(rows)
            count += len(rows)
            first = generator.aggregate_of(past)
        rows = self._others.as_sent(coin.symbol, "trade", np.concatenate(parts))
        return rows[:limit] if from_id is not None else rows[-limit:]

    def trade_span(self, instrument: Instrument, start: int, end: int) -> tuple[int, int]:
        coin, generator = self._coins[instrument.symbol], self._generator
        first, beyond = generator.id_at(coin, start), generator.id_at(coin, end)
        ids = generator.tape.trade_ids(np.array([first, beyond])).tolist()
        return ids[0], ids[1] - 1

    def trades_since(self, instrument: Instrument, kind: str, since: int) -> Iterator[Rows]:
        coin, generator = self._coins[instrument.symbol], self._generator
        since = max(since, coin.listed)
        # Late fills belong to aggregates of the minute before.
        minute = since // MINUTE_MS * MINUTE_MS - MINUTE_MS
        while minute <= self.now:
            make = generator.aggregates if kind == "aggTrade" else generator.single_trades
            rows = self._others.as_sent(coin.symbol, kind, make(coin, minute))
            rows = rows[(rows["time"] >= since) & (rows["event_time"] <= self.now)]
            if len(rows):
                yield rows
            minute += MINUTE_MS

    def last_ids(self) -> dict[str, dict[str, int]]:
        ids = {}
        for coin in self._coins.values():
            if self.status(coin.instrument) != "PENDING_TRADING":
                last = self._generator.released(coin, "aggTrade", self.now) - 1
                traded = self._generator.released(coin, "trade", self.now)
                trade = int(self._generator.tape.trade_ids(np.array([traded]))[0]) - 1
                ids[coin.symbol] = {
                    kind: self._others.wire_id(coin.symbol, kind, raw)
                    for kind, raw in (("aggTrade", last), ("trade", trade))
                }
        return ids

    # What leaves.

    def advance(self, now: int, wanted: Container[str]) -> list[Leaving]:
        self.now = now
        chunks: list[Leaving] = []
        for part in self._flows["aggTrade"].advance(now):
            self._note(part)
            chunks.append(AggChunk(self._writer, self._as_sent(part), part.owners))
        if "trade" in self._flows:
            for part in self._flows["trade"].advance(now):
                for index, start, end in part.by_coin():
                    trades = self._templates[self._stats_of[index]]
                    if trades.stream in wanted:
                        rows = self._others.as_sent(self._stats_of[index], "trade", part.rows[start:end])
                        chunks.append(Chunk(trades.stream, trades.messages(rows)))
        return chunks + self._kline_feed.advance(now)

    def _as_sent(self, part: Released) -> Rows:
        """Return aggregates that leave, as they are sent."""
        for index, start, end in part.by_coin() if self._others.chains or self._others.late else ():
            part.rows[start:end] = self._others.as_sent(self._stats_of[index], "aggTrade", part.rows[start:end])
        return part.rows

    def follow(self, wanted: Iterable[str]) -> None:
        """Take trades apart one by one only while somebody asks for it: most of the time nobody does."""
        self._kline_feed.follow(wanted)
        if not any(stream.endswith("@trade") for stream in wanted):
            self._flows.pop("trade", None)
        elif "trade" not in self._flows:
            self._flows["trade"] = Flow(self._generator, "trade")
            self._flows["trade"].set_coins(list(self._coins.values()), self.now)

    def _note(self, part: Released) -> None:
        tape = self._generator.tape
        self.trades += note(self._stats, self._changed, part.rows, part.owners, tape.fills)

    def _day_of(self, coin: Coin) -> list[int]:
        """Return a coin's last 24 hours, to a few minutes."""
        rows = self._generator.last_day(coin, self.now)
        if not len(rows):
            price = self._generator.price_at(coin, max(self.now, coin.listed))
            return [price, price, price, price, 0, 0, 0]
        sums = [int(rows[name].sum()) for name in ("volume", "quote_volume", "count")]
        return [int(rows["open"][0]), int(rows["high"].max()), int(rows["low"].min()), int(rows["close"][-1]), *sums]

    def day_stats(self) -> list[DayStats]:
        stats = self._stats.tolist()
        return [
            DayStats(coin.instrument, *stats[index])
            for index, coin in enumerate(self._coins.values())
            if self.status(coin.instrument) == "TRADING"
        ]

    def ticker(self) -> Chunk | None:
        self._refresh_coins()
        coins = list(self._coins.values())
        # The window moves on for one coin at a time; for the others it only grows meanwhile.
        self._refreshed = (self._refreshed + 1) % len(coins)
        self._stats[self._refreshed] = self._day_of(coins[self._refreshed])
        indices = np.flatnonzero(self._changed)
        self._changed[:] = False
        if not len(indices):
            # The exchange is never silent; while its time stands still here, the first symbol is sent.
            indices = np.zeros(1, np.intp)
        rows = [
            ticker_row(DayStats(coins[index].instrument, *self._stats[index].tolist()), self.now)
            for index in indices.tolist()
        ]
        return Chunk(TICKER_STREAM, [f"[{','.join(rows)}]".encode()])


@compiled
def note(stats: Integers, changed: Booleans, rows: Rows, owners: Integers, fills: Integers) -> int:
    """Take AGG_ROW[n] into the figures of their coins; return how many single trades they are."""
    total = 0
    for index in range(len(rows)):
        row, figures = rows[index], stats[owners[index]]
        count = fills[row.id & MASK]
        figures[1] = max(figures[1], row.price)
        figures[2] = min(figures[2], row.price)
        figures[3] = row.price
        figures[4] += row.quantity
        figures[5] += row.quantity * row.price
        figures[6] += count
        changed[owners[index]] = True
        total += count
    return total
