"""No password in any word about the database, however its URL is mistyped."""

import asyncio
import logging
from pathlib import Path

import psycopg
import pytest

from harness.processes import free_port
from services import cli
from services.persist.tables import look
from services.viz.database import DatabaseUnavailable, HistoryRequest, Reader
from shared.config import ConfigError, load
from shared.postgres import MASK, OPTIONS, error_text

SECRET = "s3cr3t-Zebra"
PORT = free_port()
AT = f"127.0.0.1:{PORT}"
TYPOS = [
    f"postgresql://klagg:{SECRET}@{AT}/klagg",
    f"postgresql://klagg:{SECRET}@ {AT}/klagg",
    f"postgresql://klagg:{SECRET}#@{AT}/klagg",
    f"postgresql://klagg:{SECRET}%@{AT}/klagg",
    f"postgresql://klagg:{SECRET}/1@{AT}/klagg",
    f"postgresql://klagg:a@{SECRET}@{AT}/klagg",
    f"postgresql://klagg@{SECRET}@{AT}/klagg",
    f"postgresql://klagg:{SECRET}/{AT}/klagg",
    f"postgresql://klagg:{SECRET}",
    f"postgresql:/klagg:{SECRET}@{AT}/klagg",
    f"postgresql//klagg:{SECRET}@{AT}/klagg",
    f"postgres:klagg:{SECRET}@{AT}/klagg",
    f"postgresq://klagg:{SECRET}@{AT}/klagg",
    f"klagg:{SECRET}@{AT}/klagg",
    f"postgresql://[klagg:{SECRET}@{AT}/klagg",
    f"postgresql://klagg.{SECRET}@{AT}/klagg",
    f"postgresql://{SECRET}@{AT}/klagg",
    f"postgresql://klagg@127.0.0.1:{SECRET}/klagg",
    f"postgresql://klagg@{AT}/klagg?pasword={SECRET}",
    f"postgresql://klagg@{AT}/klagg?password:{SECRET}",
    f"postgresql://klagg@{AT}/klagg?sslmode={SECRET}",
    f"postgresql://klagg@{AT}/klagg?connect_timeout={SECRET}",
    f"postgresql://klagg@{AT}/klagg?options={SECRET}",
    f"postgresql://klagg@{AT}/klagg?sslrootcert={SECRET}&sslmode=verify-full",
    f"host=127.0.0.1 port={PORT} user=klagg pasword={SECRET}",
    f"host=127.0.0.1 port={PORT} user=klagg password=a {SECRET}=b",
    f"host=127.0.0.1 port={PORT} user=klagg password {SECRET}",
    f"host=127.0.0.1 port={PORT} user=klagg password='{SECRET}",
    f"host=klagg:{SECRET}@127.0.0.1 port={PORT}",
    f"host=127.0.0.1 port={SECRET} user=klagg",
    f"user=klagg:{SECRET} host=127.0.0.1 port={PORT}",
    f"host=127.0.0.1,{SECRET}@x port={PORT} user=klagg",
]


@pytest.mark.parametrize("url", TYPOS, ids=map(str, range(len(TYPOS))))
def test_a_mistyped_url_is_shown_without_its_password(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "klagg.toml"
    path.write_text('data_dir = "data"\n')
    environment = {"KLAGG_CONFIG": str(path), "KLAGG_DATABASE_URL": url}
    said = []
    try:
        config = load(environment)
    except ConfigError as error:
        said.append(str(error))
    else:
        assert cli._verify(config, cli._parser().parse_args(["verify"])) == 2
        said.append("verified")
    # What refuses it first is not all that there is: each of them by itself keeps it to itself.
    said += [look(url, "simulator")[0], error_text(failure(url), url)]
    said.append(asyncio.run(history(url)))
    out = capsys.readouterr()
    text = "\n".join([*said, out.out, out.err, caplog.text])
    assert all(said)
    assert SECRET not in text
    assert "Zebra" not in text


def failure(url: str) -> Exception:
    with pytest.raises(psycopg.Error) as caught:
        psycopg.connect(url, **OPTIONS)
    return caught.value


async def history(url: str) -> str:
    reader = Reader(lambda: url)
    try:
        with pytest.raises(DatabaseUnavailable) as caught:
            await reader.history(HistoryRequest("BTCUSDT", "1m", 10))
        return f"{caught.value} {reader.error}"
    finally:
        await reader.close()


def test_what_the_server_quotes_is_masked_as_well() -> None:
    error = psycopg.OperationalError(
        f'FATAL: no role "klagg.{SECRET}" for postgresql://x:{SECRET}@h/d, password={SECRET} z'
    )
    assert SECRET not in error_text(error)[error_text(error).index("for") :]
    assert SECRET not in error_text(error, f"postgresql://klagg.{SECRET}@h/d")
    quoted = psycopg.OperationalError("for user a%20b: a b")
    assert error_text(quoted, "postgresql://klagg:a%20b@h/d") == f"for user {MASK}: {MASK}"


def test_what_is_no_secret_is_shown() -> None:
    error = psycopg.OperationalError('connection to server at "db.example", port 5432 failed: role "klagg" is missing')
    for url in (
        "",
        "postgresql://klagg:e@db.example:5432/klagg",
        "postgresql://klagg@db.example/klagg?sslmode=require",
    ):
        assert error_text(error, url) == str(error)
