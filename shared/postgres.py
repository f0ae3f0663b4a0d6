"""Where the database is, and how one speaks with it: a URL of one's own, or the socket of the server that comes along.

Decides names, places and the settings of a session; who starts the server and who makes the tables is not known here.
A database of one's own may have any settings, for its roles, for itself or in the environment (PG*): a session that
klagg opens sets all that its SQL rests on.
"""

import hashlib
import os
import re
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
WORDS_MAX = 300
"""Characters of an error; the text of one may be a whole statement."""
SHORT = 4
"""Characters: a secret of fewer is masked as a word of its own, or half the letters would be."""
MASK = "***"
UNREADABLE = "database.url is none that PostgreSQL can read"
"""Instead of libpq's own words, which quote it."""
TOLD = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full", "any", "read-write", "primary"}
"""Values of a URL's other settings that are words of libpq's: error texts have them without quoting anybody."""
_PLAIN = re.compile(r"[\w.,:*/\[\]-]+")
"""Hosts, folders and databases as they are; no user and password with a host behind them."""
_PORTS = re.compile(r"\d{1,5}(,\d{1,5})*")
_PASSWORD = re.compile(r"(passw(?:or)?d\s*=\s*)(?:'[^']*'|[^\s&'\"]+)", re.IGNORECASE)
_USERINFO = re.compile(r"(://)[^\s/'\"]*@")
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


def words_of(error: Exception, url: str = "") -> str:
    """Return what is wrong with the database, in a line and without what may be a password.

    `url`: what was connected to. libpq and the server quote of it what they do not understand, and in a mistyped one
    that may be a password, whatever it has come to be: a user, a host, a port, an option.
    """
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    words = " ".join((primary or str(error)).split())[:WORDS_MAX] or type(error).__name__
    try:
        secrets = _secrets(url)
    except psycopg.Error:
        return UNREADABLE
    for secret in sorted(secrets, key=len, reverse=True):
        words = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)" if len(secret) < SHORT else re.escape(secret), MASK, words)
    return _USERINFO.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1{MASK}", words))


def _secrets(url: str) -> set[str]:
    """Return what of a URL may be a password, as it is written and as it is meant. Raises psycopg.Error."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value}
    is_own = parts.get("user") == NAME or "password" in parts
    found = set()
    for name, value in parts.items():
        if name == "user":
            found |= set() if is_own and _PLAIN.fullmatch(value) else {value}
        elif name == "port":
            found |= set() if _PORTS.fullmatch(value) else {value}
        elif name in ("host", "hostaddr", "dbname"):
            found |= set() if _PLAIN.fullmatch(value) else {value}
        elif value not in TOLD:
            found.add(value)
    # As error texts have them in one line, and as a URL has them.
    found |= {" ".join(value.split()) for value in found}
    return {secret for value in found for secret in (value, quote(value, safe="")) if secret}


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
