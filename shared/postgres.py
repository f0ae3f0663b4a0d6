"""Where the database is: a URL of one's own, or the socket of the server that comes with klagg.

Decides names and places only; who starts the server and who makes the tables is not known here.
"""

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from shared.config import Config
from shared.private import private_folder

NAME = "klagg"
"""The embedded server's database and its user."""
PORT = 5432
"""Of the socket's name, where no TCP port is configured."""
FOLDER_MAX = 85
"""The kernel takes 107 bytes for a socket's path, of which the server needs some."""


def database_url(config: Config) -> str:
    """Return the URL of the database, as libpq reads it."""
    if config.database.url:
        return config.database.url
    return embedded_url(config, NAME)


def embedded_url(config: Config, database: str) -> str:
    """Return the URL of a database of the embedded server."""
    return f"postgresql://{NAME}@/{database}?host={quote(str(socket_folder(config)), safe='')}&port={port(config)}"


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
