"""Functions that are compiled, once: the decorator, and where the machine code is kept.

numba keeps compiled functions on disk and compiles again when a function's own file has changed. It does not look at
the functions that one calls: after a change of `merge`, a kernel in another file would go on with the old one. So the
folder is named after all code that may be compiled, and any change of it begins a new one.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("shared/*.py", "services/engine/*.py", "services/simulator/*.py")
KEPT_S = 7 * 86_400
"""Machine code of other versions is removed when it has not been used for so long."""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call with arguments of new types, or load what was compiled before."""
    return numba.njit(cache=True)(function)


def _folder() -> Path:
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    name = digest.hexdigest()[:16]
    for parent in (ROOT / ".compiled", Path(tempfile.gettempdir()) / f"klagg-{os.getuid()}" / "compiled"):
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        except OSError:
            continue
        for other in parent.iterdir():
            if other.stat().st_mtime < time.time() - KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
        return folder
    raise OSError("there is no folder to keep compiled functions in")


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(_folder())  # type: ignore[attr-defined]
