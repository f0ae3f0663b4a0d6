"""A folder's own disk, of which space can be taken and given back: what a full disk is to a database.

It is memory, mounted in this process's own view of the file system: whatever ends the process, the disk ends with it.
Only root can have one.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

SPACE_MB = 2_048
"""No more is used than is written."""
CLONE_NEWNS = 0x00020000
TRIES_MAX = 20


class Disk:
    def __init__(self, folder: Path) -> None:
        """Give a folder that does not exist yet a disk of its own. Raises OSError if none can be had."""
        self._folder = folder
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        folder.mkdir(parents=True)
        _command("mount", "--make-rprivate", "/")
        _command("mount", "-t", "tmpfs", "-o", f"size={SPACE_MB}m", "none", str(folder))

    def fill(self) -> None:
        """Leave no space."""
        for _ in range(TRIES_MAX):  # Somebody may be writing.
            state = os.statvfs(self._folder)
            try:
                self._resize(f"{(state.f_blocks - state.f_bfree) * state.f_frsize}")
            except OSError:
                continue
            return
        raise OSError(f"{self._folder} cannot be filled")

    def free(self) -> None:
        """Leave space again."""
        self._resize(f"{SPACE_MB}m")

    def keep(self) -> None:
        """Take the disk away; what is on it stays in the folder."""
        kept = self._folder.with_name("kept")
        _command("cp", "-a", str(self._folder), str(kept))
        _command("umount", "--lazy", str(self._folder))
        self._folder.rmdir()
        shutil.move(kept, self._folder)

    def _resize(self, size: str) -> None:
        _command("mount", "-o", f"remount,size={size}", str(self._folder))


def _command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words[:3])}: {done.stderr.strip()}")
