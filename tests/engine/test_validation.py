"""Messages that can be decoded and make no sense: the engine goes on, and what they do not name is as if they had not
been.
"""

from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from services.engine.snapshots import Snapshots
from shared.bounds import ID_MAX
from shared.kline import KLINE
from shared.wire import (
    AppEvent,
    Persisted,
    Restored,
    StorePoint,
    StoreState,
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
    """An engine that a market and its neighbours send to, with all that its loop does around it."""

    def __init__(self, seed: int, messages: int, with_nonsense: bool) -> None:
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
        for index, trade in enumerate(trades):
            self.played.until(max(self.played.time, trade.time))
            if with_nonsense:
                self._apply_nonsense(index)
            self.played.apply(self.played.feed())
            more = {"covered": [(10_000, 10_000)]} if not index else {"event_time": trade.time}
            self.played.apply(batch([trade], GOOD, **more))
            self._turn()
        self.played.until(START + 8 * MINUTE)
        self.played.apply(self.played.feed())
        self._turn()

    def _apply_nonsense(self, index: int) -> None:
        kind = self._nonsense.random.choice(KINDS)
        message = self._nonsense.message(kind)
        try:
            self.played.apply(decode_event(message))
        except WireError:
            self.refused += 1
        except Exception as error:
            error.add_note(f"seed {self.seed}, message {index}: {kind.__name__}, {message[:200]!r}")
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


def saved_once() -> PlayedEngine:
    """Return an engine whose first batch is in the store, and whose second is on its way."""
    played = PlayedEngine()
    played.add(GOOD)
    played.apply(batch([Trade(0, START, 100, 5)], GOOD))
    first = played.save(acknowledge=False)
    assert first is not None
    played.apply(Persisted(SESSION, first.batch, "tables"), batch([Trade(1, START, 100, 5)], GOOD))
    assert played.save(acknowledge=False) is not None
    return played


@pytest.mark.parametrize("number", [-1, 3, 2**63 - 1])
def test_an_acknowledgement_of_a_batch_that_was_never_sent_acknowledges_nothing(number: int) -> None:
    played = saved_once()
    played.apply(Persisted(SESSION, number, "tables"))
    assert played.engine.dropped == {"acknowledgements of what was never sent": 1}
    assert played.engine.saving.under_way
    assert played.engine.saving.point == StorePoint("tables", SESSION, 1)


def test_an_acknowledgement_from_other_tables_is_not_believed_and_the_batch_is_sent_again() -> None:
    played = saved_once()
    played.apply(Persisted(SESSION, 2, "others"))
    assert played.engine.dropped == {"acknowledgements of nothing": 1}
    again = played.save(acknowledge=False)
    assert again is not None
    # If that is so all the same, the store knows from this that it is another.
    assert again.after == StorePoint("tables", SESSION, 1)
    assert [mark.last_id for mark in again.marks] == [1]
    played.apply(Persisted(SESSION, 3, "tables"))
    assert played.engine.saving.point == StorePoint("tables", SESSION, 3)


@pytest.mark.parametrize(
    "state",
    [
        StoreState(5, StorePoint("tables", SESSION, 3), START),
        StoreState(5, StorePoint("tables", SESSION, ID_MAX), START),
        StoreState(5, StorePoint("tables", SESSION, -1), START),
        StoreState(5, StorePoint("tables", -SESSION, 1), START),
        StoreState(5, StorePoint("others", 1, 1), -1),
        StoreState(5, StorePoint("others", 1, 1), START, [(GOOD, "1m", START, START - 1)]),
    ],
)
def test_a_store_that_cannot_be_changes_nothing(state: StoreState) -> None:
    played = saved_once()
    played.apply(state)
    assert list(played.engine.dropped.values()) == [1]
    assert played.engine.store_changes == 0
    assert played.engine.saving.under_way
    assert not played.engine.repair.lacking()
    # One that can be is believed.
    played.apply(replace(state, point=StorePoint("others", 1, 1), exchange_time=START, unfinished=[]))
    assert played.engine.store_changes == 1


def test_a_lie_about_the_batch_under_way_is_found_by_the_next() -> None:
    # Nothing distinguishes it from the truth. But the store says what it has before it takes another batch.
    played = saved_once()
    played.apply(Persisted(SESSION, 2, "tables"))
    played.apply(batch([Trade(2, START, 100, 5)], GOOD))
    third = played.save(acknowledge=False)
    assert third is not None
    stored = StorePoint("tables", SESSION, 1)
    assert not stored.continues(third.after, SESSION)
    played.apply(StoreState(5, stored, START))
    again = played.save()
    assert again is not None
    assert again.after == stored
    assert {row["volume"] for row in played.stored.values()} == {15}
