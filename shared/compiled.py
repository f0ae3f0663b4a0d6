"""Functions that are compiled, once: the decorator, and where the machine code is kept.

numba keeps compiled functions on disk and compiles again when a function's own file has changed. It does not look at
the functions that one calls: after a change of `merge`, a kernel in another file would go on with the old one. So the
folder is named after all code that may be compiled, and any change of it begins a new one.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

from shared.private import NotPrivate, closed_folder, private_folder

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("engine", "ingest", "persist", "simulator")
"""Those that compile something."""
SOURCES = ("shared/*.py", *(f"services/{room}/{files}" for room in ROOMS for files in ("*.py", "*/*.py")))
"""All files of a room: what a function has of other modules, a number even, is in the machine code."""
KEPT_S = 7 * 86_400
"""Machine code of other versions is removed when it has not been used for so long."""

_UNCOUNTED: dict[str, Any] = {"_nrt": False}


def compiled(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Compile a function at its first call with arguments of new types, or load what was compiled before.

    It makes no array, nor does it count who uses those it is given: its caller holds them. Counting is what numba does
    otherwise, for each array at each use; it took three times as long as the work of a function that looks at a row.
    A function that makes arrays is refused by the compiler; it is `allocating`. Annotations are for readers and mypy:
    the compiler goes by the arguments that come.
    """
    made: Callable[Given, Answer] = numba.njit(cache=True, **_UNCOUNTED)(function)
    return made


def allocating(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Compile a function that makes arrays."""
    made: Callable[Given, Answer] = numba.njit(cache=True)(function)
    return made


_fixed: dict[Any, Any] = {}


def fixed(
    function: Callable[Given, Answer], *arguments: Given.args, **_by_name: Given.kwargs
) -> Callable[Given, Answer]:
    """Return a compiled function for arguments of just these types, so that it is not chosen anew at each call.

    That choice takes 6 us with structured arrays, as much as a hundred trades. It is also what checks the types, so the
    caller vouches for them: they are those of the first call, each at its place. An array that must not be written may
    stand for one that is only read.
    """
    made: Any = function
    if function not in _fixed:
        types = tuple(numba.typeof(argument) for argument in arguments)  # type: ignore[no-untyped-call]
        made.compile(types)
        _fixed[function] = made.overloads[types].entry_point
    chosen: Callable[Given, Answer] = _fixed[function]
    return chosen


def inlined(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Compile a function as a part of those that call it: handing over an array costs as much as reading some bytes."""
    made: Callable[Given, Answer] = numba.njit(cache=True, inline="always", **_UNCOUNTED)(function)
    return made


def _folder() -> Path:
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(str(source.relative_to(ROOT)).encode() + b"\0" + source.read_bytes())
    name = digest.hexdigest()[:16]
    # What numba loads is a pickle, so whoever writes it runs code as us: a folder that is not surely ours is none.
    try:
        folder = closed_folder(ROOT, ".compiled", name)
    except (NotPrivate, OSError):
        folder = private_folder("compiled", name)
    os.utime(folder)
    for other in folder.parent.iterdir():
        if other.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    return folder


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    try:
        numba.config.CACHE_DIR = str(_folder())  # type: ignore[attr-defined]
    except (NotPrivate, OSError) as error:
        # Whoever imports this has nothing yet that could say it.
        sys.exit(f"klagg: there is no folder to keep compiled functions in: {error}")
