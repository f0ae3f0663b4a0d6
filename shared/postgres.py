"""Where the database is, and how one speaks with it: a URL of one's own, or the socket of the server that comes along.

Decides names, places and the settings of a session; who starts the server and who makes the tables is not known here.
A database of one's own may have any settings, for its roles, for itself or in the environment (PG*): a session that
klagg opens sets all that its SQL rests on.
"""

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from shared.config import Config
from shared.private import private_folder

NAME = "klagg"
"""The embedded server's database and its owner, who comes by the socket alone."""
READER = "reader"
"""Who comes to the embedded server by TCP: reads everything and writes nothing."""
PORT = 5432
"""Of the socket's name, where no TCP port is configured."""
FOLDER_MAX = 85
"""The kernel takes 107 bytes for a socket's path, of which the server needs some."""


OPTIONS: dict[str, Any] = {"client_encoding": "UTF8", "connect_timeout": 5}
"""Of every connection: words about a failed one are UTF-8 as well."""
SETTINGS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "standard_conforming_strings": "on",
    # Nobody ends a session that waits, or a statement that takes long: what does so is ours to judge.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A session whose other end is gone without a word ends after 25 s, and with it the claim that it holds.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
"""Those of them that the server has."""
SCHEMA = "public"
"""Where the tables are, unless the URL's own `options` name a search path."""


def session_settings(url: str, read_only: bool) -> str:
    """Return the statement that a session begins with."""
    settings = SETTINGS | {"default_transaction_read_only": "on" if read_only else "off"}
    if "search_path" not in str(conninfo_to_dict(url).get("options") or ""):
        settings["search_path"] = SCHEMA
    rows = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    return (
        f"SELECT set_config(wanted.name, wanted.value, false) FROM (VALUES {rows}) AS wanted (name, value)"
        " JOIN pg_settings ON pg_settings.name = wanted.name"
    )


def words_of(error: Exception) -> str:
    """Return what is wrong with the database, in a line."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error)).split()) or type(error).__name__


def database_url(config: Config) -> str:
    """Return the URL of the database, as libpq reads it."""
    if config.database.url:
        return config.database.url
    return embedded_url(config, NAME)


def embedded_url(config: Config, database: str) -> str:
    """Return the URL of a database of the embedded server."""
    return f"postgresql://{NAME}@/{database}?host={quote(str(socket_folder(config)), safe='')}&port={port(config)}"


def tcp_url(config: Config) -> str:
    """Return the URL by which other programs read the embedded server, without the password."""
    return f"postgresql://{READER}@127.0.0.1:{port(config)}/{NAME}"


def password_file(config: Config) -> Path:
    """Return where the reader's password is."""
    return config.data_path / "postgres.password"


def port(config: Config) -> int:
    return config.database.port or PORT


def socket_folder(config: Config) -> Path:
    """Return the folder of the embedded server's Unix socket. Raises NotPrivate.

    Whoever else has that folder could be the server that we are about to talk to, so clients look as well.
    """
    folder = config.run_path / "postgres"
    if len(os.fsencode(folder)) > FOLDER_MAX:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        return private_folder(digest)
    return folder
