"""Which symbols there are, what the engine knows of them, and what it is still to be told.

Pure: listings, volumes, stream names and the time come in as arguments. Decides what is announced and in which order,
what is removed, and when a name in the ticker is worth another look at the list. Knows nothing of klines.

A symbol is *wanted* if it trades and the configuration does not leave it out. The engine *knows* a symbol when it
subscribed it. Every wanted symbol that it does not know is announced once, by 24 h quote volume; a symbol listed at run
time goes before all others, because it has almost no history to wait for.
"""

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from services.ingest.binance import Listing

LOOK_MS = 5_000
"""How soon a name in the ticker that does not trade makes us read the list again; doubled each time in vain."""
LOOK_MAX_MS = 300_000
DOUBTS_MAX = 2_000
"""Names remembered for that."""
SPELLED_MAX = 10_000
"""Names whose plain spelling is remembered: the ticker has hundreds, every second."""


class Changes(NamedTuple):
    """What a new list of symbols says."""

    listed: list[str]
    removed: list[str]
    """Symbols that the engine was told of, and that trade no more."""


class Progress(NamedTuple):
    announced: int
    to_announce: int


class Decimals:
    """Price and quantity decimals of every symbol there was. They only grow."""

    def __init__(self, known: Mapping[str, tuple[int, int]] = MappingProxyType({})) -> None:
        self._known = dict(known)
        self.version = 0
        """Another number after every change."""

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._known

    def __getitem__(self, symbol: str) -> tuple[int, int]:
        return self._known[symbol]

    def of(self, symbol: str) -> tuple[int, int]:
        """Return a symbol's decimals; none where it is not known."""
        return self._known.get(symbol, (0, 0))

    def grow(self, symbol: str, price_decimals: int, quantity_decimals: int) -> tuple[int, int]:
        """Let a symbol have at least these decimals; return what it has."""
        price, quantity = self.of(symbol)
        grown = (max(price, price_decimals), max(quantity, quantity_decimals))
        if self._known.get(symbol) != grown:
            self._known[symbol] = grown
            self.version += 1
        return grown


class Symbols:
    def __init__(self, only: Iterable[str], symbols_max: int) -> None:
        """Want `only` these, if there are any, and at most `symbols_max`."""
        self.decimals = Decimals()
        self.known: set[str] = set()
        self.listed = False
        """The exchange has said which symbols there are."""
        self.unknown: dict[str, str] = {}
        """Names of `only` that no symbol has, and the nearest one that there is, or nothing."""
        self._only = list(only)
        self._only_spelled = set(map(_spelled, self._only))
        self._symbols_max = symbols_max
        self._trading: set[str] = set()
        self._volumes: dict[str, float] = {}
        self._queue: list[str] = []
        """To be announced; the next one is the last."""
        self._under_way: set[str] = set()
        self._announced: set[str] = set()
        self._doubts: dict[str, tuple[int, int]] = {}
        self._listening = False

    @property
    def trading(self) -> int:
        return len(self._trading)

    def wants(self, symbol: str) -> bool:
        return symbol in self._trading

    def refresh(self, listings: list[Listing]) -> Changes:
        """Take a new list of symbols. An empty one is no news but a fault, and changes nothing."""
        if not listings:
            return Changes([], [])
        names = {listing.symbol for listing in listings}
        chosen = self._chosen(names)
        self.unknown = {name: _nearest(name, names) for name in self._only if not _meant(name, names)}
        trading = set()
        for listing in listings:
            self.decimals.grow(listing.symbol, listing.price_decimals, listing.quantity_decimals)
            if listing.trading and listing.symbol in chosen:
                trading.add(listing.symbol)
        listed = self._by_volume(trading - self._trading)
        gone = self._trading - trading
        # The engine may have been believed more than it may know.
        gone |= set(self._by_volume(self.known - gone)[self._symbols_max :])
        told = sorted(gone & (self.known | self._announced))
        self._trading = trading
        self.listed = True
        self._announced -= gone
        self.known -= gone
        self._queue = [symbol for symbol in self._queue if symbol in trading]
        for symbol in listed:
            self._doubts.pop(symbol, None)
        if self._listening:
            self._enqueue(listed, first=True)
            self._enqueue(self._untold())
        return Changes(listed, told)

    def set_volumes(self, volumes: dict[str, float]) -> None:
        self._volumes = volumes

    def engine_knows(self, symbols: Iterable[str]) -> list[str]:
        """The engine says all it knows: announce the rest. Return what it knows and should not."""
        asked = list(dict.fromkeys(symbols))
        if not self.listed:
            self._trading = set()
            self._believe(asked)
        wanted = self._by_volume(symbol for symbol in asked if symbol in self._trading)
        self.known = set(wanted[: self._symbols_max] if self.listed else wanted)
        self._listening = True
        self._queue = []
        self._announced = set()
        # What is under way goes on: its announcement is as good for this engine as for the one before.
        self._enqueue(self._untold())
        return [symbol for symbol in asked if symbol not in self.known]

    def engine_subscribed(self, symbol: str) -> bool:
        """The engine wants a symbol's trades; False if it cannot have them."""
        if not self.listed:
            self._believe([symbol])
        if symbol not in self._trading:
            return False
        self.known.add(symbol)
        return True

    def _believe(self, symbols: Iterable[str]) -> None:
        """These trade, says the engine. Their decimals are those of the trades that come."""
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
        """All that trade and that the engine knows or will be told of."""
        if not self._listening:
            return self._by_volume(self._trading)[: self._symbols_max]
        return self._by_volume(self._trading & (self.known | self._announced | self._under_way | set(self._queue)))

    def take(self) -> str | None:
        """Return the next symbol to announce, if there is one; it is under way until `announced` or `failed`."""
        while self._queue:
            symbol = self._queue.pop()
            if symbol not in self.known:
                self._under_way.add(symbol)
                return symbol
        return None

    def announced(self, symbol: str) -> bool:
        """A symbol's history is there; False if the engine need not be told any more."""
        self._under_way.discard(symbol)
        if symbol not in self._trading or symbol in self.known:
            return False
        self._announced.add(symbol)
        return True

    def failed(self, symbol: str) -> None:
        """A symbol's history could not be had: it comes again, after all others."""
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
        return len(self._untold()) - len(self._queue)

    def worth_a_look(self, names: Iterable[str], now: int) -> bool:
        """Say whether the ticker named a symbol that the list may have by now. `now`: any clock, ms."""
        look = False
        for name in set(names) - self._trading:
            if self._only and _spelled(name) not in self._only_spelled:
                continue
            at, wait = self._doubts.get(name, (now, LOOK_MS))
            if now >= at and (name in self._doubts or len(self._doubts) < DOUBTS_MAX):
                look = True
                self._doubts[name] = (now + wait, min(wait * 2, LOOK_MAX_MS))
        return look

    def _chosen(self, names: set[str]) -> set[str]:
        """Return which of the exchange's names the configuration does not leave out."""
        return set().union(*(_meant(name, names) for name in self._only)) if self._only else names

    def _untold(self) -> list[str]:
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


def _meant(name: str, names: set[str]) -> set[str]:
    """Return the symbols that somebody means who writes `name`: as it is spelled, or else as in `btc / usdt`."""
    return {name} if name in names else {known for known in names if _spelled(known) == _spelled(name)}


def _nearest(name: str, names: set[str]) -> str:
    spelled = {_spelled(known): known for known in sorted(names)}
    return next((spelled[near] for near in difflib.get_close_matches(_spelled(name), spelled, 1)), "")


@lru_cache(SPELLED_MAX)
def _spelled(name: str) -> str:
    """Return a name in capitals, without blanks and what people put between two coins."""
    return "".join(sign for sign in name.upper() if not sign.isspace() and sign not in "/-_")
