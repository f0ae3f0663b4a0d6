"""Whether what viewers see is live, saved and complete: in figures for the page, in words for health.

Decides which age is too old, and what is said then. Knows no viewer, no socket and no clock: it is made of the engine's
last health message, of how old that is, and of why the database does not answer. An age that the engine gave has grown
by the age of its message, which is up to 0.5 s.
"""

from typing import Any

import msgspec

ENGINE_SILENT_S = 1.25
"""The engine sends health every 0.5 s."""
FEED_SILENT_S = 1.5
"""Ingest sends its state to the engine as often."""
TRADES_SILENT_S = 1.75
"""A market without a trade for so long is not live: a little less than 2 s, so that viewers know within these."""
LAG_MIN_S = 2
"""The least lag behind the exchange that is shown."""
TRADES_SILENT_LONG_S = 10.0
"""Health waits longer than the page, so that a reconnect is no reason."""
SAVE_LATE_S = 7.0
"""How much longer than its interval a batch may take."""
GAP_LONG_S = 10.0
"""Age of a gap that makes health not ok: missing trades usually come within a second; and ..."""
GAP_STALE_S = 60.0
"""... age of a gap that makes klagg not ready."""


class Status(msgspec.Struct, frozen=True):
    health: dict[str, Any]
    """The engine's last health message; empty: there was none."""
    health_age_s: float
    """How old that is."""
    age_s: float | None
    """How old the engine's last message of any kind is; None: there was none."""
    database: str
    """Why there is no database; empty if there is one."""
    save_interval_s: float

    @property
    def engine(self) -> str:
        """`live`, `silent` (its last message is too old) or `absent` (there was none)."""
        if self.age_s is None:
            return "absent"
        return "live" if self.age_s <= ENGINE_SILENT_S else "silent"

    @property
    def feed(self) -> str:
        """The exchange's feed as the engine reports it: `connected`, `disconnected`, or empty for unknown."""
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
        """Seconds since the last save if that is too long, else 0."""
        age = self.age("saved_age_s")
        return round(age) if age is not None and age > self.save_interval_s + SAVE_LATE_S else 0

    def number(self, name: str) -> int:
        value = self.health.get(name)
        return value if isinstance(value, int) else 0

    def age(self, name: str) -> float | None:
        """Return an age that the engine gave, plus the age of its message; None: it never happened."""
        value = self.health.get(name)
        return value + self.health_age_s if isinstance(value, int | float) else None

    def figures(self) -> dict[str, Any]:
        """Return the figures at the first level of health."""
        names = ("trade_age_s", "feed_age_s", "saved_age_s")
        ages = {name: None if (age := self.age(name)) is None else round(age, 3) for name in names}
        return ages | {name: self.number(name) for name in ("lag_ms", "lag_worst_ms", "missing_ids", "unexplained_ids")}

    def message(self) -> dict[str, Any]:
        """Return what viewers are sent twice a second, in ms; in between they let ages grow by themselves."""
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
        """Return the reasons why health is not ok; none if it is."""
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
        """Return the reasons why klagg is not ready; none if it is."""
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
