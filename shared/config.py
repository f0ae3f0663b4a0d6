"""The configuration: `klagg.toml`, with the environment on top.

Every value has a default, so an empty file is a valid one. `KLAGG_CONFIG` names another file; `KLAGG_<SECTION>_<KEY>`
overrides one value (`KLAGG_VIZ_PORT=9000`); `KLAGG_EXCHANGE` and `KLAGG_STREAM` are short for the exchange's name and
stream. Relative paths count from the configuration file's folder.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from shared.addresses import is_loopback, listener

_HOST = r"(\[[0-9A-Fa-f:.%]+\]|[\w.%-]*)(:\d*)?"
_DATABASE_URL = re.compile(
    r"postgres(ql)?://(([\w.~!$*+-]|%[0-9A-Fa-f]{2})*(:([^@/%\s]|%[0-9A-Fa-f]{2})*)?@)?"
    rf"{_HOST}(,{_HOST})*(/[^/?#@\s]*)?(\?[^#@\s]*)?"
)
"""Stricter than libpq, which takes parts of a mistyped password for hosts and ports, and writes them to the log."""
_WORD = r"\w+\s*=\s*('([^'\\]|\\.)*'|[^'\s]\S*)"
_DATABASE_WORDS = re.compile(rf"\s*{_WORD}(\s+{_WORD})*\s*")
_OUTSIDE = re.compile(r"Expected `\w+` [<>]= ")
"""How msgspec begins to say that a number is not within a field's bounds."""


class ConfigError(ValueError):
    """A configuration that cannot be run, with the key and the reason in words."""


class _Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    pass


class ExchangeConfig(_Section, frozen=True, kw_only=True):
    name: Literal["simulator", "binance-usdm", "binance-spot"] = "simulator"
    stream: Literal["aggTrade", "trade"] = "aggTrade"
    symbols: list[str] = []
    """Only these; empty: all that trade."""
    symbols_max: Annotated[int, Meta(ge=1, le=1020)] = 1000
    """Streams on one connection, 1,024 at the exchange, less those of klagg's own."""
    api_key: str = ""
    """Only for history of the `trade` stream (historicalTrades)."""
    backfill_rows: Annotated[int, Meta(ge=59, le=99)] = 99
    """Closed klines an interval to begin with; up to 99 cost weight 1 a request. An hour that is open at a start is
    merged of its minutes, so that fewer than 59 would make it, and every longer kline, wrong."""
    weight_share: Annotated[float, Meta(ge=0.05, le=1.0)] = 0.9
    """How much of the exchange's REST weight limit klagg may use; the rest is left to others on the same address."""
    first_days: dict[str, date] = {}
    """Days on which symbols were traded first, as the exchange counts their 3d klines, where it has none of them."""
    clock_speed: float = 1.0
    """1: the exchange's time runs. 0: it stands still between events, for replays."""
    silence_ms: Annotated[int, Meta(ge=500, le=600_000)] = 15_000
    """A connection on which nothing arrives for this long is taken for dead."""
    connection_max_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 84_600_000
    """A connection that is older is replaced without a gap: the exchange ends it after 24 hours."""
    symbols_refresh_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 300_000
    """How often exchangeInfo is read again for listings and delistings that the ticker did not show."""


class EngineConfig(_Section, frozen=True, kw_only=True):
    symbols_max: Annotated[int, Meta(ge=1, le=20_000)] = 1000
    window: Annotated[int, Meta(ge=100, le=10_000)] = 128
    """Klines held in memory a symbol and interval; at least 100, so that the parents can be rebuilt from children."""
    publish_interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    save_interval_ms: Annotated[int, Meta(ge=10, le=600_000)] = 5_000
    save_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    gap_retry_ms: Annotated[int, Meta(ge=100, le=3_600_000)] = 15_000
    """A gap that is still open after this long is asked for again."""
    silence_ask_ms: Annotated[int, Meta(ge=100, le=3_600_000)] = 30_000
    """A symbol without a trade for so long since the feed came up is asked about: its last may have been missed."""
    resume_max_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 3_600_000
    """After a longer absence a symbol's klines come from the exchange's own, not trade by trade."""
    snapshots: str = "tcp://127.0.0.1:5556"
    """Where the XPUB socket of the klines listens."""
    snapshots_public: bool = False
    """Other machines may reach it: it asks nobody for a password, and whoever reaches it reads all there is."""


class AuditConfig(_Section, frozen=True, kw_only=True):
    every_minutes: Annotated[int, Meta(ge=0, le=95)] = 60
    """How often each symbol's minutes are compared with the exchange's own klines, up to 95; 0: never."""
    policy: Literal["report", "adopt"] = "report"
    """What becomes of a symbol whose minute does not match: it is reported, or the exchange's klines are taken."""


class DatabaseConfig(_Section, frozen=True, kw_only=True):
    url: str = ""
    """Empty: the PostgreSQL that comes with klagg."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """TCP port of the embedded server on 127.0.0.1, for psql and other tools; 0: its Unix socket only."""


class VizConfig(_Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8080
    allowed_hosts: list[str] = []
    """Names by which browsers may ask for the page, besides addresses and this machine's own name."""


class SimulatorConfig(_Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] = 9080
    seed: int = 1
    symbols: Annotated[int, Meta(ge=1, le=2_000)] = 300
    trades_per_second: Annotated[float, Meta(ge=0.0, le=1_000_000.0)] = 500.0
    """Individual trades of the whole market, on average."""
    history_days: Annotated[int, Meta(ge=0, le=2_000)] = 60
    speed: Annotated[float, Meta(ge=0.001, le=10_000.0)] = 1.0
    """How fast the simulated exchange's time runs."""
    replay: list[str] = []
    """Recordings to play instead of a generated market."""
    pause_max_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    """A recording's pauses longer than this, by the exchange's time, are jumped over; 0: none is."""
    start_time: Annotated[int, Meta(ge=0, le=4_102_444_800_000)] = 0
    """The exchange's time at start, ms; 0: the machine's."""
    listing_interval_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 600.0
    """A new symbol is listed about this often; 0: never."""
    quirks: bool = True
    """Aggregates that straddle minutes, burnt ids inside them: what makes aggTrade klines differ from official ones."""
    weight_limit: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 2400


class Config(_Section, frozen=True, kw_only=True):
    data_dir: str = "data"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    exchange: ExchangeConfig = ExchangeConfig()
    engine: EngineConfig = EngineConfig()
    audit: AuditConfig = AuditConfig()
    database: DatabaseConfig = DatabaseConfig()
    viz: VizConfig = VizConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    base_dir: str = "."
    """The configuration file's folder; set by `load`."""

    @property
    def data_path(self) -> Path:
        return Path(self.base_dir, self.data_dir).resolve()

    @property
    def run_path(self) -> Path:
        """Sockets, locks: nothing that outlives a run."""
        return self.data_path / "run"

    @property
    def postgres_path(self) -> Path:
        return self.data_path / "postgres"


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration. Raises ConfigError with the file, the key and the reason."""
    environ = os.environ if environ is None else environ
    path = Path(environ.get("KLAGG_CONFIG") or Path(__file__).resolve().parents[1] / "klagg.toml")
    values = _read(path, required="KLAGG_CONFIG" in environ)
    if "base_dir" in values:
        raise ConfigError(f"{path}: base_dir is not a setting")
    _override(values, environ)
    values["base_dir"] = str(path.resolve().parent)
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error, Config, values)}") from error
    _check(path, config)
    return config


def _read(path: Path, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if required:
            raise ConfigError(f"{path}: no such file") from error
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


_SHORT = {
    "KLAGG_EXCHANGE": ("exchange", "name"),
    "KLAGG_STREAM": ("exchange", "stream"),
}
_ABOVE_SECTIONS = ("data_dir", "log_level")


def _override(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    sections = {field.name: field.type for field in msgspec.structs.fields(Config) if _is_section(field.type)}
    for name, text in environ.items():
        if not name.startswith("KLAGG_") or name == "KLAGG_CONFIG":
            continue
        above = name.removeprefix("KLAGG_").lower()
        if above in _ABOVE_SECTIONS:
            values[above] = _parse(name, text, get_type_hints(Config)[above])
            continue
        section, key = _SHORT.get(name) or ([*above.split("_", 1), ""])[:2]
        fields = (
            {field.name: field.type for field in msgspec.structs.fields(sections[section])}
            if section in sections
            else {}
        )
        if key not in fields:
            raise ConfigError(f"{name}: there is no such setting")
        section_values = values.setdefault(section, {})
        if not isinstance(section_values, dict):
            raise ConfigError(f"{section}: expected a table")
        section_values[key] = _parse(name, text, fields[key])


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Section)


def _parse(name: str, text: str, kind: Any) -> Any:
    if kind == list[str]:
        return [part for part in text.split(",") if part]
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}={text!r}: {_explained(error, kind, text)}") from error


def _explained(error: msgspec.ValidationError, kind: Any, value: Any) -> str:
    """Return what was wrong with a value of this kind, with what msgspec leaves out: the value, or what it may be."""
    text = str(error)
    is_outside, is_no_choice = bool(_OUTSIDE.match(text)), text.startswith("Invalid enum value")
    if not is_outside and not is_no_choice:
        return text
    _, _, key_path = text.partition(" - at `$.")
    key_path = key_path.rstrip("`")
    for key in key_path.split(".") if key_path else ():
        kind, value = get_type_hints(kind, include_extras=True)[key], value[key]
    if is_no_choice:
        return f"{text}: it is one of {', '.join(get_args(kind))}"
    (bounds,) = kind.__metadata__
    return f"{f'{key_path} = {value}' if key_path else 'it'} is outside {bounds.ge} .. {bounds.le}"


def _check(path: Path, config: Config) -> None:
    url = config.database.url
    if url and not (_DATABASE_URL if "://" in url else _DATABASE_WORDS).fullmatch(url):
        # Without a word of it: any of them may be the password.
        raise ConfigError(
            f"{path}: database.url (or KLAGG_DATABASE_URL) is no URL of a PostgreSQL, as in"
            " postgresql://user:password@host:5432/database; in a password, write %25 for %, %40 for @, %2F for /"
        )
    if config.exchange.clock_speed not in (0.0, 1.0):
        raise ConfigError(f"{path}: exchange.clock_speed = {config.exchange.clock_speed} is neither 0 nor 1")
    try:
        host, _ = listener(config.engine.snapshots)
    except ValueError as error:
        raise ConfigError(f"{path}: engine.snapshots = {config.engine.snapshots!r}: {error}") from error
    if host and not is_loopback(host) and not config.engine.snapshots_public:
        raise ConfigError(
            f"{path}: engine.snapshots = {config.engine.snapshots!r} can be reached from other machines, and whoever"
            " reaches it reads everything without a password: engine.snapshots_public = true says that this is meant"
        )
