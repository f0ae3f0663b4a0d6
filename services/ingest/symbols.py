"""Which symbols there are, which of them the engine knows, and which are still to be announced to it.

Pure: listings, volumes, stream names and the time come in as arguments. Decides what is announced and in which order,
what is removed, and when a name in the ticker is a reason to read the list again. Knows nothing of klines.

A symbol is *wanted* if it trades and the configuration does not leave it out. The engine *knows* a symbol when it
subscribed it. Every wanted symbol that it does not know is announced once, by 24 h quote volume; a symbol listed at run
time goes before all others, because it has almost no history to fetch.
"""

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from services.ingest.binance.messages import Listing
from services.ingest.decimals import Decimals

REFRESH_MS = 5_000
"""How soon the list is read again for a name that the ticker has and the list has not; doubled each time in vain."""
REFRESH_MAX_MS = 300_000
UNLISTED_MAX = 2_000
"""Names remembered for that."""
NORMALIZED_MAX = 10_000
"""Names whose normalized form is cached: the ticker has hundreds, every second."""


class Changes(NamedTuple):
    """What a new list of symbols has changed."""

    listed: list[str]
    removed: list[str]
    """Symbols that the engine knows or was announced, and that trade no more."""


class Progress(NamedTuple):
    announced: int
    to_announce: int


class Symbols:
    def __init__(self, only: Iterable[str], symbols_max: int) -> None:
        """Want `only` these, if there are any, and at most `symbols_max`."""
        self.decimals = Decimals()
        self.known: set[str] = set()
        self.listed = False
        """The exchange has said which symbols there are."""
        self.unknown: dict[str, str] = {}
        """Names of `only` that no symbol has, with the most similar name there is, or an empty one."""
        self._only = list(only)
        self._only_normalized = set(map(_normalized, self._only))
        self._symbols_max = symbols_max
        self._trading: set[str] = set()
        self._volumes: dict[str, float] = {}
        self._queue: list[str] = []
        """To be announced, the next one at the end."""
        self._under_way: set[str] = set()
        self._announced: set[str] = set()
        self._unlisted: dict[str, tuple[int, int]] = {}
        """Names that the ticker has and the list has not: when to read it again, and how long to wait after that."""
        self._engine_known = False
        """The engine has said which symbols it knows."""

    @property
    def trading_count(self) -> int:
        return len(self._trading)

    def refresh(self, listings: list[Listing]) -> Changes:
        """Take a new list of symbols. An empty one is a fault of the exchange, and changes nothing."""
        if not listings:
            return Changes([], [])
        names = {listing.symbol for listing in listings}
        chosen = self._chosen(names)
        self.unknown = {name: _nearest(name, names) for name in self._only if not _matching(name, names)}
        trading = set()
        for listing in listings:
            self.decimals.grow(listing.symbol, listing.price_decimals, listing.quantity_decimals)
            if listing.trading and listing.symbol in chosen:
                trading.add(listing.symbol)
        listed = self._by_volume(trading - self._trading)
        gone = self._trading - trading
        # Before the first list, whatever the engine named was taken to trade: that may be more than the maximum.
        gone |= set(self._by_volume(self.known - gone)[self._symbols_max :])
        removed = sorted(gone & (self.known | self._announced))
        self._trading = trading
        self.listed = True
        self._announced -= gone
        self.known -= gone
        self._queue = [symbol for symbol in self._queue if symbol in trading]
        for symbol in listed:
            self._unlisted.pop(symbol, None)
        if self._engine_known:
            self._enqueue(listed, first=True)
            self._enqueue(self._unannounced())
        return Changes(listed, removed)

    def set_volumes(self, volumes: dict[str, float]) -> None:
        self._volumes = volumes

    def engine_knows(self, symbols: Iterable[str]) -> list[str]:
        """Take all symbols that the engine knows, and announce the rest. Return those that it should not know."""
        given = list(dict.fromkeys(symbols))
        if not self.listed:
            self._trading = set()
            self._assume_trading(given)
        wanted = self._by_volume(symbol for symbol in given if symbol in self._trading)
        self.known = set(wanted[: self._symbols_max] if self.listed else wanted)
        self._engine_known = True
        self._queue = []
        self._announced = set()
        # What is being fetched goes on: this engine can use the announcement as well as the one before.
        self._enqueue(self._unannounced())
        return [symbol for symbol in given if symbol not in self.known]

    def engine_subscribed(self, symbol: str) -> bool:
        """Note that the engine subscribes a symbol; False if it does not trade."""
        if not self.listed:
            self._assume_trading([symbol])
        if symbol not in self._trading:
            return False
        self.known.add(symbol)
        return True

    def _assume_trading(self, symbols: Iterable[str]) -> None:
        """Take the engine's word that these trade. Their decimals become those of the trades that come."""
        for symbol in self._chosen(set(symbols)):
            self._trading.add(symbol)
            self.decimals.grow(symbol, 0, 0)

    def engine_unsubscribed(self, symbol: str) -> None:
        self.known.discard(symbol)

    def prefer(self, symbols: Iterable[str]) -> None:
        """Announce these before all others that are still to be announced."""
        wanted = set(symbols)
        self._queue.sort(key=lambda symbol: symbol in wanted)

    @property
    def names(self) -> list[str]:
        """All that trade and that the engine knows or that will be announced to it."""
        if not self._engine_known:
            return self._by_volume(self._trading)[: self._symbols_max]
        return self._by_volume(self._trading & (self.known | self._announced | self._under_way | set(self._queue)))

    def take(self) -> str | None:
        """Return the next symbol to announce, if there is one; `announced` or `failed` is to be called after that."""
        while self._queue:
            symbol = self._queue.pop()
            if symbol not in self.known:
                self._under_way.add(symbol)
                return symbol
        return None

    def announced(self, symbol: str) -> bool:
        """Note that a symbol's history was fetched; False if it is not to be announced any more."""
        self._under_way.discard(symbol)
        if symbol not in self._trading or symbol in self.known:
            return False
        self._announced.add(symbol)
        return True

    def failed(self, symbol: str) -> None:
        """Note that a symbol's history could not be fetched: its turn comes again after all others."""
        self._under_way.discard(symbol)
        if symbol in self._trading:
            self._queue.insert(0, symbol)

    @property
    def progress(self) -> Progress:
        announced = len(self._announced)
        return Progress(announced, announced + len(self._under_way - self.known) + len(self._queue))

    @property
    def left_out(self) -> int:
        """How many symbols trade and are beyond `symbols_max`."""
        return len(self._unannounced()) - len(self._queue)

    def should_refresh(self, names: Iterable[str], now: int) -> bool:
        """Say whether the ticker has a name for which the list should be read again. `now`: any clock, ms."""
        refresh = False
        for name in set(names) - self._trading:
            if self._only and _normalized(name) not in self._only_normalized:
                continue
            at, wait = self._unlisted.get(name, (now, REFRESH_MS))
            if now >= at and (name in self._unlisted or len(self._unlisted) < UNLISTED_MAX):
                refresh = True
                self._unlisted[name] = (now + wait, min(wait * 2, REFRESH_MAX_MS))
        return refresh

    def _chosen(self, names: set[str]) -> set[str]:
        """Return which of the exchange's names the configuration selects."""
        return set().union(*(_matching(name, names) for name in self._only)) if self._only else names

    def _unannounced(self) -> list[str]:
        return self._by_volume(self._trading - self.known - self._announced - self._under_way)

    def _enqueue(self, symbols: list[str], first: bool = False) -> None:
        queued = set(self._queue)
        symbols = [symbol for symbol in symbols if symbol not in queued]
        taken = len(self.known | self._announced | self._under_way) + len(self._queue)
        symbols = symbols[: max(0, self._symbols_max - taken)]
        symbols.reverse()
        self._queue = self._queue + symbols if first else symbols + self._queue

    def _by_volume(self, symbols: Iterable[str]) -> list[str]:
        return sorted(symbols, key=lambda symbol: (-self._volumes.get(symbol, 0.0), symbol))


def _matching(name: str, names: set[str]) -> set[str]:
    """Return the symbol with exactly this name, or else those that `btc / usdt` may stand for."""
    return {name} if name in names else {known for known in names if _normalized(known) == _normalized(name)}


def _nearest(name: str, names: set[str]) -> str:
    normalized = {_normalized(known): known for known in sorted(names)}
    return next((normalized[near] for near in difflib.get_close_matches(_normalized(name), normalized, 1)), "")


@lru_cache(NORMALIZED_MAX)
def _normalized(name: str) -> str:
    """Return a name in capitals, without blanks and the separators that people put between two coins."""
    return "".join(sign for sign in name.upper() if not sign.isspace() and sign not in "/-_")
