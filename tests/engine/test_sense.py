"""Messages that can be decoded and make no sense: the engine goes on, and what they do not name is as if they had not
been.
"""

from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from services.engine.snapshots import Snapshots
from shared.kline import KLINE
from shared.wire import (
    AppEvent,
    Restored,
    WireError,
    decode_event,
    decode_store_request,
    encode,
)
from tests.engine.played import MINUTE, SESSION, START, PlayedEngine, Trade, batch, history, market
from tests.nonsense import Nonsense

GOOD, NAMED = "ETHUSDT", "BTCUSDT"
KINDS = AppEvent.__args__


class Lived:
    """An engine that a market and its neighbours speak to, with all that its loop does around it."""

    def __init__(self, seed: int, messages: int, is_plagued: bool) -> None:
        self.played = PlayedEngine(symbols_max=64)
        self.refused = 0
        self.seed = seed
        self._nonsense = Nonsense(seed, lambda: self.played.time, [NAMED], [1, 2])
        self._snapshots = Snapshots(self.played.engine, 77, 0)
        for topic in (b"kline.", b"tickers", b"engine.health"):
            self._snapshots.subscription(b"\x01" + topic)
        past = market(seed, 200, START - 30 * MINUTE, 30 * MINUTE)
        for symbol in (NAMED, GOOD):
            self.played.add(symbol, history(past, START), START)
        trades = market(seed + 1, messages, first_id=10_000)
        for number, trade in enumerate(trades):
            self.played.until(max(self.played.time, trade.time))
            if is_plagued:
                self._plague(number)
            self.played.apply(self.played.feed())
            more = {"covered": [(10_000, 10_000)]} if not number else {"event_time": trade.time}
            self.played.apply(batch([trade], GOOD, **more))
            self._turn()
        self.played.until(START + 8 * MINUTE)
        self.played.apply(self.played.feed())
        self._turn()

    def _plague(self, number: int) -> None:
        kind = self._nonsense.random.choice(KINDS)
        message = self._nonsense.message(kind)
        try:
            self.played.apply(decode_event(message))
        except WireError:
            self.refused += 1
        except Exception as error:
            error.add_note(f"seed {self.seed}, message {number}: {kind.__name__}, {message[:200]!r}")
            raise

    def _turn(self) -> None:
        """Do what the loop does in a turn: whatever the engine says can be said."""
        engine, now_ns = self.played.engine, self.played.now_ns
        said: list[Any] = [*self._snapshots.due(now_ns), *self._snapshots.owed(now_ns)]
        said += [encode(command) for command in engine.take_commands()]
        saved = self.played.save() if engine.saving.due(now_ns) else None
        if saved is not None:
            assert decode_store_request(encode(saved)) == saved
        encode(self.played.health())
        engine.wait_ms(now_ns)

    def rows(self) -> dict[tuple[str, int], Any]:
        """Return what klines hold. How often they changed after they closed differs: a time that is wrong by less than
        a minute is believed until the next one.
        """
        names = [name for name in KLINE.names or () if name != "revision"]
        return {key: {name: int(row[name]) for name in names} for key, row in self.played.rows(GOOD).items()}


def differences(seed: int, messages: int) -> tuple[list[object], Lived]:
    """Return where what the engine holds of a symbol that nobody misnamed is not what it should be."""
    plain, plagued = Lived(seed, messages, False), Lived(seed, messages, True)
    plagued_rows = plagued.rows()
    rows = [(key, row, plagued_rows.get(key)) for key, row in plain.rows().items()]
    wrong: list[object] = [entry for entry in rows if entry[1] != entry[2]]
    # A store that says that it was set back is believed: what it may lack is asked of the exchange.
    marks = [replace(lived.played.marks[GOOD], lacking=[]) for lived in (plain, plagued)]
    if marks[0] != marks[1]:
        wrong.append(marks)
    if plagued.played.engine.minute_end != plain.played.engine.minute_end:
        wrong.append((plain.played.engine.minute_end, plagued.played.engine.minute_end))
    return wrong, plagued


@pytest.mark.parametrize("seed", [1, 2])
def test_nonsense_costs_nobody_else_anything(seed: int) -> None:
    wrong, plagued = differences(seed, 1_000)
    assert not wrong, f"seed {seed}: {wrong[:3]}"
    assert plagued.refused > 20
    assert len(plagued.played.engine.dropped) > 5, plagued.played.engine.dropped


def test_whatever_the_store_answers_at_first_the_engine_begins() -> None:
    nonsense = Nonsense(3, lambda: START, [NAMED], [SESSION])
    taken = 0
    for _ in range(150):
        played, message = PlayedEngine(restored=[]), nonsense.message(Restored)
        with suppress(WireError):
            played.apply(decode_event(message))
        played.apply(Restored(SESSION, [], b"", True, START))
        played.until(START)
        assert played.engine.started, message
        played.add(GOOD, until=START)
        played.apply(batch([Trade(7, START, 100, 5)], GOOD, covered=[(7, 7)]))
        assert [row["volume"] for row in played.values(GOOD).values()] == [5] * 15, message
        taken += bool(played.engine.symbols[:-1])
    assert taken
