"""What a process asks of the kernel, asked back."""

import os
import platform
import struct
import subprocess
import sys

import pytest

from shared.tuning import SHORT_SLICE_NS

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}
RELEASE = tuple(int(part) for part in platform.release().split(".")[:2]) if sys.platform == "linux" else (0, 0)

ASK = """
import ctypes, threading
from shared.tuning import request_short_slices

def note():
    attributes = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall({number}, 0, attributes, 48, 0) == 0
    noted.append(attributes.raw.hex())

noted = []
note()
assert request_short_slices()
note()
thread = threading.Thread(target=note)
thread.start()
thread.join()
print(*noted)
"""


@pytest.mark.skipif(RELEASE < (6, 12), reason="the kernel heeds it from Linux 6.12 on")
def test_short_slices_are_taken_and_handed_on_to_threads_and_change_nothing_else() -> None:
    number = SCHED_GETATTR.get(platform.machine())
    if number is None:
        pytest.skip("a machine whose system calls are not known here")
    done = subprocess.run(
        ["nice", "-n", "3", sys.executable, "-c", ASK.format(number=number)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after, thread = (struct.unpack("=IIQiIQQQ", bytes.fromhex(packed)) for packed in done.stdout.split())
    assert after[5] == thread[5] == SHORT_SLICE_NS < before[5]
    for attributes in (after, thread):
        assert attributes[1:5] == before[1:5]
    assert before[3] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3), "nice"


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux")
def test_memory_comes_in_small_pages() -> None:
    program = """
import numpy as np
from shared.tuning import disable_huge_pages
disable_huge_pages()
np.zeros(1 << 25, np.uint8)[:] = 1
lines = [*open("/proc/self/status"), *open("/proc/self/smaps_rollup")]
print(*(line.split()[1] for line in lines if line.startswith(("THP_enabled", "AnonHugePages"))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]
