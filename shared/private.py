"""Folders that no other user can have made, read or written, even below a folder that all users may write.

Decides who must own a folder and who may open it; what is kept in it is not known here. A user who can write a folder
of compiled code runs code as us, and one who can write a folder of sockets can stand in for a service, so that a folder
is refused unless it is surely ours.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


class NotPrivate(RuntimeError):
    """A folder that another user made or may write, or no folder at all; in words for the person who runs klagg."""


def private_folder(*names: str) -> Path:
    """Return `<tmp>/klagg-<uid>/<names>`, made if it is not there. Raises NotPrivate, OSError."""
    return closed_folder(Path(tempfile.gettempdir()).resolve(), f"klagg-{os.geteuid()}", *names)


def closed_folder(above: Path, *names: str) -> Path:
    """Return the folder `names` below another one; each is made if it is not there. Raises NotPrivate, OSError.

    Each belongs to this user, is a folder and no symbolic link, and is closed to other users. One that they could only
    read is closed to them; one that they could write is refused, because they may have written what is in it.
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


def _refuse_movable(folder: Path, attributes: os.stat_result) -> None:
    """Other users may make folders there; without the sticky bit they may also replace ours. Raises NotPrivate."""
    if attributes.st_mode & stat.S_IWOTH and not attributes.st_mode & stat.S_ISVTX:
        raise NotPrivate(f"{folder} can be changed by every user, and has no sticky bit: chmod +t {folder}")


def _open(path: Path, name: str, above: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except OSError as error:
        # For a link, the error is ELOOP or ENOTDIR, depending on the system; for another user's folder, EACCES.
        attributes = os.stat(name, dir_fd=above, follow_symlinks=False)
        what = (
            "is a symbolic link"
            if stat.S_ISLNK(attributes.st_mode)
            else _foreign_owner(attributes) or f"is no folder ({error.strerror})"
        )
        raise NotPrivate(f"{path} {what}; klagg makes a folder of that name: remove it") from error


def _close(path: Path, folder: int) -> None:
    attributes = os.fstat(folder)
    reason = _foreign_owner(attributes)
    if not reason and attributes.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = "can be written by other users"
    if reason:
        raise NotPrivate(f"{path} {reason}; klagg uses only a folder that it made itself: remove it")
    if stat.S_IMODE(attributes.st_mode) & 0o777 != 0o700:
        os.fchmod(folder, 0o700)


def _foreign_owner(attributes: os.stat_result) -> str:
    return "" if attributes.st_uid == os.geteuid() else f"belongs to another user (uid {attributes.st_uid})"
