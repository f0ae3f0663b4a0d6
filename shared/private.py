"""Folders that nobody but this user can have made, read or written, also where everybody may make some.

Decides whose a folder must be; what is kept in it is not known here. Whoever may write a folder of compiled code runs
code as us, and whoever may write one of sockets is spoken to in our place, so what is not surely ours is refused.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


class NotPrivate(RuntimeError):
    """A folder that another user made or may write, or that is none; in words for the person who runs klagg."""


def private_folder(*names: str) -> Path:
    """Return `<tmp>/klagg-<uid>/<names>`, made if it is not there. Raises NotPrivate, OSError."""
    return closed_folder(Path(tempfile.gettempdir()).resolve(), f"klagg-{os.geteuid()}", *names)


def closed_folder(above: Path, *names: str) -> Path:
    """Return the folder `names` below another one; each is made if it is not there. Raises NotPrivate, OSError.

    Each belongs to this user, is none but a folder (no symbolic link), and is closed to others. One that others could
    only read is closed; what one that they could write holds may be theirs, so it is refused.
    """
    path = above
    opened = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _refuse_movable(above, os.fstat(opened))
        for name in names:
            path = path / name
            inside = _open(path, name, opened)
            os.close(opened)
            opened = inside
            _close(path, opened)
    finally:
        os.close(opened)
    return path


def _refuse_movable(folder: Path, its: os.stat_result) -> None:
    """Others may make folders there. Without the sticky bit they may also take ours away, and put theirs instead."""
    if its.st_mode & stat.S_IWOTH and not its.st_mode & stat.S_ISVTX:
        raise NotPrivate(f"{folder} can be changed by every user, and has no sticky bit: chmod +t {folder}")


def _open(path: Path, name: str, above: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except OSError as error:
        # Of a link, systems say one or the other (ELOOP, ENOTDIR); of somebody else's folder, EACCES.
        its = os.stat(name, dir_fd=above, follow_symlinks=False)
        what = "is a symbolic link" if stat.S_ISLNK(its.st_mode) else _whose(its) or f"is no folder ({error.strerror})"
        raise NotPrivate(f"{path} {what}; klagg makes a folder of that name: remove it") from error


def _close(path: Path, folder: int) -> None:
    its = os.fstat(folder)
    reason = _whose(its)
    if not reason and its.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = "can be written by other users"
    if reason:
        raise NotPrivate(f"{path} {reason}; klagg uses only a folder that it made itself: remove it")
    if stat.S_IMODE(its.st_mode) & 0o777 != 0o700:
        os.fchmod(folder, 0o700)


def _whose(its: os.stat_result) -> str:
    return "" if its.st_uid == os.geteuid() else f"belongs to another user (uid {its.st_uid})"
