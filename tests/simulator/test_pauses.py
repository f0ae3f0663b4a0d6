"""Pauses of a recording: jumped over, as long as recorded, or the end until it is asked to go on after one of years."""

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from harness.processes import wait_for
from tests.simulator.served import collect, served

NOON = 1_790_164_800_000
DAY_MS = 86_400_000
STREAMS = "/stream?streams=ausdt@trade/busdt@trade"


def paused(folder: Path, days: int = 20) -> list[str]:
    """Write a recording of two symbols: a trade of each, and so many days later another."""
    lines = []
    for trade_id, time in ((1, NOON), (2, NOON + days * DAY_MS)):
        for index, symbol in enumerate(("AUSDT", "BUSDT")):
            data = {"e": "trade", "E": time + 900 * index, "T": time + 900 * index, "s": symbol, "t": trade_id}
            data |= {"p": "1.5", "q": "2", "X": "MARKET", "m": True}
            lines.append(json.dumps({"stream": f"{symbol.lower()}@trade", "data": data}))
    path = folder / "paused.jsonl"
    path.write_text("\n".join(lines))
    return [str(path)]


def trades_of(messages: list[Any]) -> list[tuple[str, int]]:
    return [(message["data"]["s"], message["data"]["t"]) for message in messages]


def test_a_long_pause_is_jumped_over_and_nothing_else_is(tmp_path: Path) -> None:
    with (
        served(tmp_path, replay=paused(tmp_path), speed=1.0, pause_max_s=60.0) as simulator,
        simulator.socket(STREAMS) as socket,
    ):
        messages = trades_of(collect(socket, 30, enough=4))
        assert messages == [("AUSDT", 1), ("BUSDT", 1), ("AUSDT", 2), ("BUSDT", 2)]
        now = simulator.status()["time"]
        assert NOON + 20 * DAY_MS + 900 <= now < NOON + 20 * DAY_MS + 60_000
        assert "nothing happens for 28800 min" in simulator.room.log


def test_where_no_longest_pause_is_set_the_recording_stands_still_as_it_did(tmp_path: Path) -> None:
    with served(tmp_path, replay=paused(tmp_path), speed=1.0) as simulator, simulator.socket(STREAMS) as socket:
        assert trades_of(collect(socket, 30, enough=2)) == [("AUSDT", 1), ("BUSDT", 1)]
        wait_for("time to go on", lambda: simulator.status()["time"] > NOON + 2_000)
        assert simulator.status()["time"] < NOON + DAY_MS
        assert simulator.status()["trades"] == 2


def test_after_a_pause_of_years_the_recording_goes_on_when_asked_and_subscribed_to_again(tmp_path: Path) -> None:
    with served(tmp_path, replay=paused(tmp_path, 2_000), speed=100.0, pause_max_s=60.0) as simulator:
        with simulator.socket(STREAMS) as socket:
            assert trades_of(collect(socket, 30, enough=2)) == [("AUSDT", 1), ("BUSDT", 1)]
            wait_for("the end of the first stretch", lambda: simulator.status()["ended"])
            assert (simulator.status()["stretch"], simulator.status()["stretches"]) == (0, 2)
            assert simulator.post("/simulator/next")["time"] == NOON + 2_000 * DAY_MS - 1
        status = simulator.status()
        assert (status["stretch"], status["ended"], status["trades"]) == (1, False, 0)
        assert status["first_days"] == {"AUSDT": "2026-09-23", "BUSDT": "2026-09-23"}
        with simulator.socket(STREAMS) as socket:
            assert trades_of(collect(socket, 30, enough=2)) == [("AUSDT", 2), ("BUSDT", 2)]
        wait_for("the end", lambda: simulator.status()["ended"])
        with pytest.raises(urllib.error.HTTPError, match="400"):
            simulator.post("/simulator/next")
