"""Pauses of a recording: jumped over if they are longer than `pause_max_s`, as long as recorded if that is 0."""

import json
from pathlib import Path
from typing import Any

from harness.processes import wait_for
from tests.simulator.served import collect, served

NOON = 1_790_164_800_000
DAY_MS = 86_400_000
STREAMS = "/stream?streams=ausdt@trade/busdt@trade"


def paused(folder: Path) -> list[str]:
    """Write a recording of two symbols: a trade of each, and 20 days later another."""
    lines = []
    for number, time in ((1, NOON), (2, NOON + 20 * DAY_MS)):
        for place, symbol in enumerate(("AUSDT", "BUSDT")):
            data = {"e": "trade", "E": time + 900 * place, "T": time + 900 * place, "s": symbol, "t": number}
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
