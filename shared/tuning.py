"""What a process asks of Linux so that trades wait less: short time slices, small pages, priorities, descriptors.

Nothing here changes what klagg does, and where the kernel refuses, klagg goes on without it. Who asks for what is
decided by the services.
"""

import ctypes
import gc
import os
import platform
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_THP_DISABLE = 41
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""The number of the system call, for which Python and its C library have no function."""
SHORT_SLICE_NS = 100_000
"""The shortest that Linux has."""
LOW_PRIORITY_NICE = 5
"""A quarter of a core that another process wants too, instead of half; all of one that no other wants."""


def raise_descriptor_limit() -> None:
    """Raise the limit of open descriptors as far as it goes. ZeroMQ ends a process that runs out of them."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # Some systems name a higher limit than they accept.
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


def lower_priority(pid: int) -> None:
    """Let other processes run before this one, which must be of this user and the leader of its session.

    Linux divides cores among sessions first (autogroup), and niceness alone counts only within a session. Each of
    PostgreSQL's processes is a session of its own, which would get as much of the machine as all of klagg.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, LOW_PRIORITY_NICE)
        Path(f"/proc/{pid}/autogroup").write_text(str(LOW_PRIORITY_NICE), encoding="ascii")


def request_short_slices() -> bool:
    """Ask Linux for short time slices: this process, and the threads it will start, run as soon as they wake up.

    Otherwise a process that wakes up for a trade may wait some 3 ms for the database's time slice to end. It gives no
    process more of the machine, and needs no privilege. Return whether the kernel accepted it; from 6.12 on it has an
    effect.
    """
    number = SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return False
    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
    attributes = struct.pack(
        "=IIQiIQQQ", 48, os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, SHORT_SLICE_NS, 0, 0
    )
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)


def disable_huge_pages() -> None:
    """Ask Linux for memory in pages of 4 KB only, each when it is first written.

    NumPy asks for pages of 2 MB for large arrays. Where memory is fragmented, such a page takes 4 to 6 ms, in which no
    trade is applied, and it takes memory for rows of symbols that do not exist. What is used fits the caches either
    way.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def freeze_objects() -> None:
    """Exclude all objects that exist from garbage collection: with numba loaded, it takes 64 to 150 ms."""
    gc.collect()
    gc.freeze()
