"""The configuration: defaults that are documented, and a clear word for everything that is wrong."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.processes import ROOT
from shared.config import Config, ConfigError, load

DOCUMENT = (ROOT / "klagg.toml").read_text(encoding="utf-8")
SETTING = re.compile(r"^#(?=\w+ = )", re.MULTILINE)
"""A default stands after a # without a space; prose has one."""


def defaults() -> dict[str, Any]:
    values = msgspec.to_builtins(Config())
    del values["base_dir"]
    return dict(values)


def load_text(folder: Path, text: str, **environ: str) -> Config:
    path = folder / "klagg.toml"
    path.write_text(text, encoding="utf-8")
    return load({"KLAGG_CONFIG": str(path)} | environ)


def test_the_document_names_every_setting_with_its_default() -> None:
    assert tomllib.loads(SETTING.sub("", DOCUMENT)) == defaults()


def test_the_document_as_it_stands_changes_nothing() -> None:
    assert {name: value for name, value in tomllib.loads(DOCUMENT).items() if value} == {}


def test_an_empty_file_is_a_valid_one(tmp_path: Path) -> None:
    config = load_text(tmp_path, "")
    assert msgspec.structs.replace(config, base_dir=".") == Config()


def test_relative_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert load_text(tmp_path, 'data_dir = "elsewhere"').data_path == (tmp_path / "elsewhere").resolve()


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[exchange]\nname = "simulator"\n[viz]\nport = 1234\n',
        KLAGG_EXCHANGE="binance-usdm",
        KLAGG_STREAM="trade",
        KLAGG_DATABASE_URL="postgresql://u:p%40ss@host/db",
        KLAGG_VIZ_PORT="8081",
        KLAGG_DATA_DIR="there",
        KLAGG_EXCHANGE_SYMBOLS="BTCUSDT,币安人生USDT",
        KLAGG_SIMULATOR_QUIRKS="false",
        KLAGG_SIMULATOR_SPEED="60",
    )
    assert (config.exchange.name, config.exchange.stream, config.viz.port) == ("binance-usdm", "trade", 8081)
    assert config.database.url == "postgresql://u:p%40ss@host/db"
    assert config.data_path == (tmp_path / "there").resolve()
    assert config.exchange.symbols == ["BTCUSDT", "币安人生USDT"]
    assert (config.simulator.quirks, config.simulator.speed) == (False, 60.0)


WRONG_FILES = [
    ("not toml at all", "line 1"),
    ('[exchange]\nname = "binance"', "exchange.name"),
    ('[exchange]\nstream = "trades"', "exchange.stream"),
    ('[exchange]\nsymbols = "BTCUSDT"', "exchange.symbols"),
    ("[exchange]\nsymbols = [1]", "exchange.symbols"),
    ("[exchange]\nsymbols_max = 0", "exchange.symbols_max = 0"),
    ("[exchange]\nsymbols_max = 1021", "exchange.symbols_max = 1021"),
    ("[exchange]\nbackfill_rows = 100", "exchange.backfill_rows = 100"),
    ("[exchange]\nbackfill_rows = 58", "exchange.backfill_rows = 58 is outside 59 .. 99"),
    ("[exchange]\nbackfill_rows = 0", "exchange.backfill_rows = 0 is outside 59 .. 99"),
    ("[exchange]\nweight_share = 0", "exchange.weight_share"),
    ("[exchange]\nweight_share = nan", "exchange.weight_share"),
    ("[exchange]\nclock_speed = 0.5", "exchange.clock_speed"),
    ("[exchange]\nsilence_ms = 1", "exchange.silence_ms"),
    ("[exchange]\nsymbols_refresh_ms = 1", "exchange.symbols_refresh_ms"),
    ("[engine]\nwindow = 99", "engine.window = 99"),
    ('[engine]\nwindow = "128"', "engine.window"),
    ("[engine]\nwindow = 128.5", "engine.window"),
    ("[engine]\nsymbols_max = true", "engine.symbols_max"),
    ("[engine]\nsymbols_max = 0", "engine.symbols_max = 0"),
    ("[engine]\nsave_rows = 0", "engine.save_rows = 0"),
    ("[engine]\nsave_interval_ms = -1", "engine.save_interval_ms = -1"),
    ("[engine]\nwindows = 128", "windows"),
    ("[engines]\nwindow = 128", "engines"),
    ("engine = 3", "engine"),
    ("[database]\nport = 70000", "database.port = 70000"),
    ("[viz]\nport = 0", "viz.port = 0"),
    ("[viz]\nport = 65536", "viz.port = 65536"),
    ("[simulator]\nsymbols = 0", "simulator.symbols = 0"),
    ("[simulator]\nspeed = 0", "simulator.speed"),
    ("[simulator]\nspeed = inf", "simulator.speed"),
    ("[simulator]\ntrades_per_second = -1", "simulator.trades_per_second"),
    ("[simulator]\nstart_time = -1", "simulator.start_time = -1"),
    ("[simulator]\nlisting_interval_s = nan", "simulator.listing_interval_s"),
    ("[simulator]\nweight_limit = 0", "simulator.weight_limit = 0"),
    ('base_dir = "/"', "base_dir"),
]


@pytest.mark.parametrize(("text", "key"), WRONG_FILES)
def test_a_wrong_file_is_refused_with_its_name_and_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_text(tmp_path, text)
    assert str(tmp_path / "klagg.toml") in str(refusal.value)
    assert key in str(refusal.value).replace("$.", "")


@pytest.mark.parametrize("endpoint", ["tcp://*:5556", "tcp://0.0.0.0:5556", "tcp://[::]:5556", "tcp://10.0.0.5:5556"])
def test_snapshots_for_other_machines_are_refused_unless_they_are_meant(tmp_path: Path, endpoint: str) -> None:
    text = f'[engine]\nsnapshots = "{endpoint}"\n'
    with pytest.raises(ConfigError, match=r"engine\.snapshots_public = true says that this is meant"):
        load_text(tmp_path, text)
    assert load_text(tmp_path, text, KLAGG_ENGINE_SNAPSHOTS_PUBLIC="true").engine.snapshots == endpoint


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5556", "tcp://127.9.9.9:1", "tcp://[::1]:5556", "ipc:///tmp/x"])
def test_snapshots_for_this_machine_need_no_word(tmp_path: Path, endpoint: str) -> None:
    assert load_text(tmp_path, f'[engine]\nsnapshots = "{endpoint}"\n').engine.snapshots == endpoint


@pytest.mark.parametrize(
    "endpoint", ["", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://::1:5556", "udp://127.0.0.1:1", "ipc://"]
)
def test_an_endpoint_that_nothing_could_listen_on_is_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.snapshots"):
        load_text(tmp_path, f'[engine]\nsnapshots = "{endpoint}"\n')


def test_a_word_that_is_none_of_a_few_is_answered_with_all_of_them(tmp_path: Path) -> None:
    names = "it is one of simulator, binance-usdm, binance-spot"
    with pytest.raises(ConfigError, match=names):
        load_text(tmp_path, '[exchange]\nname = "kraken"')
    with pytest.raises(ConfigError, match=names):
        load_text(tmp_path, "", KLAGG_EXCHANGE="kraken")
    with pytest.raises(ConfigError, match="it is one of debug, info, warning, error"):
        load_text(tmp_path, "", KLAGG_LOG_LEVEL="loud")
    assert load_text(tmp_path, "", KLAGG_LOG_LEVEL="debug").log_level == "debug"


WRONG_ENVIRONMENTS = [
    ("KLAGG_VIZ_PROT", "1"),
    ("KLAGG_VIZ", "1"),
    ("KLAGG_", "1"),
    ("KLAGG_BASE_DIR", "/"),
    ("KLAGG_VIZ_PORT", "eighty"),
    ("KLAGG_VIZ_PORT", ""),
    ("KLAGG_SIMULATOR_QUIRKS", "perhaps"),
    ("KLAGG_SIMULATOR_SPEED", "fast"),
    ("KLAGG_EXCHANGE", "kraken"),
    ("KLAGG_STREAM", "trades"),
    ("KLAGG_VIZ_PORT", "0"),
    ("KLAGG_EXCHANGE_WEIGHT_SHARE", "nan"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_ENVIRONMENTS)
def test_a_wrong_variable_is_refused_by_its_name(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)):
        load_text(tmp_path, "", **{name: value})


def test_a_number_of_the_environment_is_refused_with_its_bounds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"KLAGG_VIZ_PORT='70000': it is outside 1 \.\. 65535"):
        load_text(tmp_path, "", KLAGG_VIZ_PORT="70000")


def test_every_number_has_bounds_on_its_field() -> None:
    fields = {
        f"{section.name}.{field.name}": field.type
        for section in msgspec.structs.fields(Config)
        if isinstance(section.default, msgspec.Struct)
        for field in msgspec.structs.fields(type(section.default))
    }
    assert len(fields) > 40
    # The clock has two speeds, and any number is a seed.
    assert {name for name, kind in fields.items() if kind in (int, float)} == {"exchange.clock_speed", "simulator.seed"}


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load({"KLAGG_CONFIG": str(tmp_path / "none.toml")})


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        load({"KLAGG_CONFIG": str(tmp_path)})


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "klagg.toml"
    path.write_bytes('data_dir = "dät\xe4"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load({"KLAGG_CONFIG": str(path)})


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "services").glob("*/__main__.py")))
def test_a_room_with_a_wrong_configuration_says_so_and_ends_with_2(tmp_path: Path, room: str) -> None:
    path = tmp_path / "klagg.toml"
    path.write_text("[engine]\nwindow = 3\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{room}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "KLAGG_CONFIG": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "configuration" in ended.stderr
    assert "engine.window = 3 is outside 100 .. 10000" in ended.stderr
    assert "Traceback" not in ended.stderr
