"""glibc's allocator, told to keep what torch frees.

Feature maps are a few megabytes each and live for a step. By default glibc gives such memory back to the system each
time, and the next step pays for every page of it anew, a good part of a window's time with torch on a CPU. This is done
in the command, whose process is ours; a library has no business with its user's allocator (README, "Runtimes", says how
to do the same with environment variables).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 256 << 20  # free memory at the heap's top before it is given back
LARGEST_BYTES = 32 << 20  # the largest mmap threshold that glibc takes


def keep_freed_memory() -> bool:
    """Raise the allocator's thresholds; returns whether this is glibc and it did."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # another libc may take other numbers
        return bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
    except (OSError, AttributeError):
        return False
