"""The state of things: is what viewers see live, saved and whole? In figures for the page, in words for health.

Decides what is too old, and what is said then. Knows no viewer, no socket and no clock: it is made of what the engine
said last, of how long ago that was, and of why the database does not answer. An engine's word is some 0.5 s old, so
that what it gives as an age has grown meanwhile.
"""

from typing import Any

import msgspec

ENGINE_SILENT_S = 1.25
"""The engine speaks every 0.5 s."""
FEED_SILENT_S = 1.5
"""So does ingest, to the engine."""
TRADES_SILENT_S = 1.75
"""A market without a trade for so long is not called live: 2 s, rounded, and viewers know it before those are over."""
LAG_MIN_S = 2
"""An engine that is less behind the exchange is not called so."""
TRADES_SILENT_LONG_S = 10.0
"""Health waits longer than the page: a reconnection is over by then."""
SAVE_LATE_S = 7.0
"""How much longer than its interval a batch may take."""
GAP_LONG_S = 10.0
"""Missing trades are fetched in a second, usually. So old is a gap that nobody fills; and ..."""
GAP_STALE_S = 60.0
"""... so old it is one that must keep others from relying on what is here."""


class State(msgspec.Struct, frozen=True):
    health: dict[str, Any]
    """What the engine said last; empty: it never did."""
    health_age_s: float
    """How long ago that was."""
    age_s: float | None
    """How long ago the engine said anything at all; None: it never did."""
    database: str
    """Why there is no database; empty if there is one."""
    save_interval_s: float

    @property
    def engine(self) -> str:
        """`live`, `silent` (it has spoken, but not lately) or `absent` (it never has)."""
        if self.age_s is None:
            return "absent"
        return "live" if self.age_s <= ENGINE_SILENT_S else "silent"

    @property
    def feed(self) -> str:
        """What the engine says of the exchange's feed: `connected`, `disconnected`, or empty for unknown."""
        connected = self.health.get("connected")
        if not isinstance(connected, bool):
            return ""
        return "connected" if connected else "disconnected"

    @property
    def lag(self) -> int:
        """How many seconds the engine is behind the exchange, 0 for less than `LAG_MIN_S`."""
        seconds = self.number("lag_ms") // 1_000
        return seconds if seconds >= LAG_MIN_S else 0

    @property
    def history(self) -> list[int] | None:
        """How many symbols' history was fetched, of how many, and the minutes left; None when all is done."""
        done, of, left_ms = (self.health.get(name) for name in ("announced", "to_announce", "announce_ms"))
        if not isinstance(done, int) or not isinstance(of, int) or not isinstance(left_ms, int) or done >= of:
            return None
        return [done, of, -(-left_ms // 60_000)]

    @property
    def proof(self) -> list[int] | None:
        """How many trades are missing and how many unexplained; and, of the minutes that were compared with the
        exchange's own klines, how many are equal, differ as aggregates do, and do not match. None: not known.
        """
        missing, audit = self.health.get("missing_ids"), self.health.get("audit")
        if not isinstance(missing, int) or not isinstance(audit, dict):
            return None
        equal, burnt, straddled, wrong = (audit.get(n, 0) for n in ("matched", "burnt", "straddled", "mismatched"))
        return [missing, self.number("unexplained_ids"), equal, burnt + straddled, wrong]

    @property
    def save_late_s(self) -> int:
        """For how long nothing was saved although it is due; 0 if all is well."""
        age = self.age("saved_age_s")
        return round(age) if age is not None and age > self.save_interval_s + SAVE_LATE_S else 0

    def number(self, name: str) -> int:
        value = self.health.get(name)
        return value if isinstance(value, int) else 0

    def age(self, name: str) -> float | None:
        """Return an age that the engine gave, and what has come to it since; None: it never happened."""
        value = self.health.get(name)
        return value + self.health_age_s if isinstance(value, int | float) else None

    def figures(self) -> dict[str, Any]:
        """Return what health says at its first level."""
        names = ("trade_age_s", "feed_age_s", "saved_age_s")
        ages = {name: None if (age := self.age(name)) is None else round(age, 3) for name in names}
        return ages | {name: self.number(name) for name in ("lag_ms", "lag_worst_ms", "missing_ids", "unexplained_ids")}

    def status(self) -> dict[str, Any]:
        """Return what viewers are told twice a second, in ms; between two of these they count on by themselves."""
        time = self.number("exchange_time")
        silences = self.health.get("silences")
        return {
            "engine": self.engine,
            "engine_age": _ms(self.age_s),
            "started": bool(self.health.get("started")),
            "feed": self.feed,
            "feed_age": _ms(self.age("feed_age_s")),
            "trade_age": _ms(self.age("trade_age_s")),
            "trade_time": self.number("trade_time"),
            "time": time + round(self.health_age_s * 1_000) if time else 0,
            "limits": [round(s * 1_000) for s in (ENGINE_SILENT_S, FEED_SILENT_S, TRADES_SILENT_S)],
            "lag": self.lag,
            "database": self.database,
            "unsaved": self.save_late_s,
            "history": self.history,
            "proof": self.proof,
            "silences": silences if isinstance(silences, list) else [],
        }

    def reasons(self, gap_max_s: float = GAP_LONG_S) -> list[str]:
        """Say what keeps this from being well; nothing if all is."""
        reasons = []
        if self.database:
            reasons.append(f"the database does not answer: {self.database}")
        match self.engine:
            case "absent":
                return [*reasons, "the engine was not heard of yet"]
            case "silent":
                return [*reasons, f"the engine has said nothing for {self.age_s or 0:.0f} s"]
        if not self.health.get("started"):
            return [*reasons, "the engine waits for the store and for the exchange's time"]
        reasons += self._feed_reasons()
        if self.save_late_s:
            reasons.append(f"nothing was saved for {self.save_late_s} s: {self.number('rows_unsaved')} klines wait")
        refused = self.health.get("symbols_not_saved")
        if isinstance(refused, list) and refused:
            reasons.append(f"the database refuses {', '.join(map(str, refused))}")
        gap_age = self.age("gap_age_s") or 0.0
        if self.number("missing_ids") and gap_age > gap_max_s:
            reasons.append(f"{self.number('missing_ids')} trades are missing, some for {gap_age:.0f} s")
        if self.lag:
            reasons.append(f"the engine is {self.lag} s behind the exchange")
        return reasons

    def unready(self) -> list[str]:
        """Say what keeps others from relying on this."""
        reasons = self.reasons(GAP_STALE_S)
        waiting = self.health.get("waiting")
        if self.engine == "live" and not self.health.get("listed"):
            reasons.append("not announced: which symbols trade is not known yet")
        elif waiting:
            reasons.append(f"not announced: {len(waiting)} symbols wait for their history")
        return reasons

    def _feed_reasons(self) -> list[str]:
        feed_age, trade_age = self.age("feed_age_s"), self.age("trade_age_s")
        if feed_age is None or feed_age > TRADES_SILENT_LONG_S:
            return [f"ingest has said nothing for {feed_age:.0f} s" if feed_age else "ingest was not heard of yet"]
        if self.feed != "connected":
            return ["there is no connection to the exchange"]
        if trade_age is None:
            return ["no trade has come yet"]
        return [f"no trades for {trade_age:.0f} s"] if trade_age > TRADES_SILENT_LONG_S else []


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000)
