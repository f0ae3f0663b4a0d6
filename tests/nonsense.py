"""Messages that can be decoded and make no sense, made from the messages' own types and a seed: new fields too.

Decides what is in them. Knows no room: a test says which messages there are, and whom they must not name.
"""

import argparse
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from msgspec import inspect

from shared.interval import INTERVAL_NAMES
from shared.kline import KLINE, PLACED_KLINE, TRADE
from shared.wire import Instrument, encode, pack_instruments

FORMS = {
    ("Trades", "rows"): TRADE,
    ("IntervalKlines", "rows"): KLINE,
    ("Klines", "rows"): KLINE,
    ("Restored", "rows"): PLACED_KLINE,
    ("DirtyBatch", "rows"): PLACED_KLINE,
}
"""What a message's bytes are; of others nothing is known."""
EXTREMES = [0, 1, -1, 2, 7, 18, 19, 59, 99, 10**6, 10**9, 10**12, 2**31 - 1, 2**31, -(2**31), 2**53, 2**62 - 1, 2**62]
EXTREMES += [2**62 + 1, 2**63 - 1, -(2**63), 253_402_300_799_999, 253_402_300_800_000]
BEYOND = [2**63, 2**64 - 1]
"""Of an int64; msgpack can hold them."""
NAMES = ["", "NOBODY", "A\0B", "x" * 5_000, "../..", "a/b", "\n", "é", "%s", "open", "btcusdt@aggTrade", "@aggTrade"]


class Nonsense:
    def __init__(self, seed: int, now: Callable[[], int], names: list[str], sessions: list[int]) -> None:
        """`now`: a time that makes sense; `names`, `sessions`: some that are known to the receiver of the messages."""
        self.random = random.Random(seed)
        self._now = now
        self._names = names + NAMES
        self._sessions = sessions

    def message(self, kind: type[msgspec.Struct]) -> bytes:
        """Return a message of a kind, encoded."""
        return encode(self._value(inspect.type_info(kind), ("", "")))

    def _value(self, kind: inspect.Type, target: tuple[str, str]) -> Any:
        match kind:
            case inspect.StructType(cls=cls, fields=fields):
                values = {
                    field.name: self._value(field.type, (cls.__name__, field.name))
                    for field in fields
                    if field.required or self.random.random() < 0.7
                }
                return cls(**values)
            case inspect.IntType(ge=least, le=most):
                drawn = self._number(target[1])
                if least is None or most is None or self.random.random() < 0.02:
                    return drawn
                return min(max(drawn, least), most)
            case inspect.StrType():
                return self._text()
            case inspect.BoolType():
                return self.random.random() < 0.5
            case inspect.BytesType():
                return self._bytes(target)
            case inspect.ListType(item_type=item, min_length=least):
                return [
                    self._value(item, target) for _ in range(max(least or 0, self.random.choice([0, 1, 1, 2, 3, 20])))
                ]
            case inspect.UnionType(types=kinds):
                return self._value(self.random.choice(kinds), target)
            case inspect.TupleType(item_types=items):
                return tuple(self._value(item, target) for item in items)
            case inspect.DictType(key_type=key, value_type=value):
                return {self._value(key, target): self._value(value, target) for _ in range(self.random.randint(0, 3))}
        raise AssertionError(f"what may {kind} be?")

    def _number(self, name: str) -> int:
        if self._sessions and name == "session" and self.random.random() < 0.5:
            return self.random.choice(self._sessions)
        some = self.random.random()
        if some < 0.4:
            return self.random.choice(
                [self._now() + self.random.choice([0, -1, 1, -60_000, 60_000, 10**9, -(10**9)]), 5]
            )
        if some < 0.6:
            return self.random.randint(0, 100)
        if some < 0.62:
            return self.random.choice(BEYOND)
        return self.random.choice(EXTREMES)

    def _text(self) -> str:
        return self.random.choice(self._names if self.random.random() < 0.7 else INTERVAL_NAMES)

    def _bytes(self, target: tuple[str, str]) -> bytes:
        if self.random.random() < 0.05:
            return self.random.randbytes(self.random.randint(0, 300))
        if target == ("Trades", "instruments"):
            count = self.random.randint(0, 3)
            return pack_instruments([self._value(inspect.type_info(Instrument), target) for _ in range(count)])
        form = FORMS.get(target) or self.random.choice(list(FORMS.values()))
        rows = np.zeros(self.random.choice([0, 1, 1, 2, 3, 50]), form)
        self._fill(rows)
        return rows.tobytes()

    def _fill(self, rows: Any) -> None:
        for name in rows.dtype.names:
            if rows.dtype[name].names:
                self._fill(rows[name])
                continue
            limits = np.iinfo(rows.dtype[name])
            for index in range(len(rows)):
                rows[name][index] = min(max(self._number(name), limits.min), limits.max)


def main() -> None:
    """Send the engine as much of it as is asked for."""
    from tests.engine.test_validation import differences

    parser = argparse.ArgumentParser(prog="python -m tests.nonsense", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--messages", type=int, default=5_000, help="a run")
    asked = parser.parse_args()
    for seed in range(asked.seed, asked.seed + asked.runs):
        print(f"seed {seed}: ", end="", flush=True)
        wrong, plagued = differences(seed, asked.messages)
        print(f"{len(wrong)} differences, {plagued.refused} not decoded, not taken: {plagued.played.engine.dropped}")
        if wrong:
            raise SystemExit(f"the first: {wrong[0]}")


if __name__ == "__main__":
    main()
