"""The embedded PostgreSQL as a process: start the server, watch it, start it again, end it.

If this process is killed, the kernel ends the server, as it was asked to, and the next process waits until it is gone.
If the server is killed, it is started again at once; PostgreSQL recovers by itself.
"""

import logging
import select
import signal
import subprocess
import time
from pathlib import Path

import psycopg
from psycopg import sql

from services.postgres.server import (
    Installation,
    PreExec,
    installation,
    make_cluster,
    other_server,
    password_of,
    pre_exec_for,
    start,
    write_access,
)
from shared.config import Config
from shared.postgres import NAME, READER, database_url, embedded_url, password_file, socket_folder, tcp_url
from shared.process import StopSignal, Unavailable
from shared.sockets import lock_service

STOP_STEPS = ((signal.SIGTERM, 3.0), (signal.SIGINT, 3.0), (signal.SIGQUIT, 2.0))
"""Wait for clients, disconnect them, quit at once; and how long each may take, s."""
READY_MAX_S = 60.0
"""Recovery after a power cut replays 1 GB of log at most."""
OTHER_GONE_MAX_S = 10.0
POLL_S = 0.05
RESTART_S, RESTART_MAX_S = 0.1, 5.0
STABLE_S = 10.0
"""After a server that ran for so long, the back-off begins again."""

log = logging.getLogger(__name__)


def main(config: Config) -> int:
    if config.database.url:
        log.info("not needed: the database is another one (database.url)")
        return 0
    stop = StopSignal()
    lock = lock_service(config.run_path, "postgres")
    try:
        return _serve(config, stop)
    finally:
        lock.close()


def _serve(config: Config, stop: StopSignal) -> int:
    cluster, sockets = config.postgres_path, socket_folder(config)
    for folder in (cluster, sockets):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    install = installation(cluster)
    pre_exec = pre_exec_for(cluster, [cluster, sockets])
    began = time.monotonic()
    new = not (cluster / "PG_VERSION").exists()
    make_cluster(install, cluster, pre_exec)
    write_access(cluster)
    if new:
        log.info("made an empty PostgreSQL %s cluster in %.1f s", install.version, time.monotonic() - began)
    wait = RESTART_S
    while not stop.asked:
        began = time.monotonic()
        server = _start(install, cluster, config, pre_exec, stop)
        while server.poll() is None and not stop.asked:
            select.select([stop.fd], [], [], POLL_S)
        if stop.asked:
            return _end(server)
        log.warning("the server ended with code %d; starting it again", server.returncode)
        wait = RESTART_S if time.monotonic() - began > STABLE_S else min(wait * 2, RESTART_MAX_S)
        select.select([stop.fd], [], [], wait)
    return 0


def _start(
    install: Installation, cluster: Path, config: Config, pre_exec: PreExec, stop: StopSignal
) -> "subprocess.Popen[bytes]":
    """Start the server and wait until it answers or has ended. Raises Unavailable."""
    began = time.monotonic()
    while (pid := other_server(cluster)) and not stop.asked:
        if time.monotonic() > began + OTHER_GONE_MAX_S:
            raise Unavailable(f"another PostgreSQL (process {pid}) runs on {cluster} and does not end")
        time.sleep(POLL_S)
    server = start(install, cluster, config, pre_exec)
    while server.poll() is None and not stop.asked:
        try:
            _make_database(config)
        except psycopg.OperationalError:
            if time.monotonic() > began + READY_MAX_S:
                log.warning("no answer yet from the server")
                began = time.monotonic()
            time.sleep(POLL_S)
        else:
            url = database_url(config)
            log.info('PostgreSQL %s is ready in %.1f s: psql "%s"', install.version, time.monotonic() - began, url)
            if config.database.port:
                log.info("by TCP: %s, with the password in %s", tcp_url(config), password_file(config))
            break
    return server


def _make_database(config: Config) -> None:
    """Create the database, and the role that reads it by TCP, unless they exist."""
    with psycopg.connect(embedded_url(config, "postgres"), autocommit=True, connect_timeout=2) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME]).fetchone():
            connection.execute(f"CREATE DATABASE {NAME}")
        if config.database.port:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [READER]).fetchone():
                connection.execute(f"CREATE ROLE {READER}")
            password = sql.Literal(password_of(password_file(config)))
            connection.execute(
                sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}").format(
                    sql.Identifier(READER), password
                )
            )
            connection.execute(f"GRANT pg_read_all_data TO {READER}")


def _end(server: "subprocess.Popen[bytes]") -> int:
    for number, seconds in STOP_STEPS:
        server.send_signal(number)
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            log.info("the server still has clients or work; asking it more firmly")
            continue
        log.info("the server has ended")
        return 0
    server.kill()
    server.wait()
    log.warning("the server was killed; it recovers at its next start")
    return 0
