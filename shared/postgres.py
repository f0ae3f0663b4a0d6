"""Where the database is, and how a session with it is set up: `database.url`, or the socket of the embedded server.

Decides names, paths and the settings of a session; who starts the server and who makes the tables is not known here.
The database of `database.url` may have any settings, for its roles, for itself or in the environment (PG*): a session
that klagg opens sets everything that its SQL relies on.
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
"""The embedded server's database and its owner, who may connect by the socket only."""
READER = "reader"
"""The role that connects to the embedded server by TCP: it reads everything and writes nothing."""
PORT = 5432
"""Of the socket's name, where no TCP port is configured."""
FOLDER_MAX = 85
"""The kernel takes 107 bytes for a socket's path, of which the server needs some."""


OPTIONS: dict[str, Any] = {"client_encoding": "UTF8", "connect_timeout": 5}
"""Of every connection: the error of one that fails is in UTF-8 too."""
SETTINGS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "standard_conforming_strings": "on",
    # No session that waits is ended, and no statement that takes long: klagg has timeouts of its own.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A session whose client is gone without closing it ends after 25 s, and with it the lock that it holds.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
"""Set at the beginning of a session, as far as the server has them."""
TEXT_MAX = 300
"""Characters of an error; the text of one may be a whole statement."""
SHORT = 4
"""Characters: a shorter secret is masked only where it is a word of its own."""
MASK = "***"
UNREADABLE = "database.url is none that PostgreSQL can read"
"""Instead of libpq's own error, which quotes it."""
SHOWN = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full", "any", "read-write", "primary"}
"""Values of a URL's other settings that are not masked: they are keywords of libpq, which error texts have anyway."""
_PLAIN = re.compile(r"[\w.,:*/\[\]-]+")
"""Hosts, folders and databases that need no mask: a user and password before a host would have other characters."""
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


def error_text(error: Exception, url: str = "") -> str:
    """Return the error of a database in one line, without anything that may be a password.

    `url`: of the connection. libpq and the server quote parts of it that they do not understand, and in a mistyped URL
    that may be the password, taken for a user, a host, a port or an option.
    """
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = " ".join((primary or str(error)).split())[:TEXT_MAX] or type(error).__name__
    try:
        secrets = _secrets(url)
    except psycopg.Error:
        return UNREADABLE
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)" if len(secret) < SHORT else re.escape(secret), MASK, text)
    return _USERINFO.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1{MASK}", text))


def _secrets(url: str) -> set[str]:
    """Return the parts of a URL that may be a password, decoded and as they are written. Raises psycopg.Error."""
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
        elif value not in SHOWN:
            found.add(value)
    # With single blanks, as an error text has them, and percent-encoded, as a URL has them.
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
    """Return the URL with which other programs read from the embedded server, without the password."""
    return f"postgresql://{READER}@127.0.0.1:{port(config)}/{NAME}"


def password_file(config: Config) -> Path:
    """Return the path of the file with the reader's password."""
    return config.data_path / "postgres.password"


def port(config: Config) -> int:
    return config.database.port or PORT


def socket_folder(config: Config) -> Path:
    """Return the folder of the embedded server's Unix socket. Raises NotPrivate.

    A user who had that folder could stand in for the server, so that clients check it too.
    """
    folder = config.run_path / "postgres"
    if len(os.fsencode(folder)) > FOLDER_MAX:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        return private_folder(digest)
    return folder
