"""Settings of the memory allocator of the GNU C library (mallopt(3))."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
_KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let the allocator keep up to 1 GiB of freed memory in this process and use it again.

    A network allocates arrays of the same sizes for every chip. By default the allocator returns
    large ones to the system, which must clear their pages before it hands them out again. Clearing
    can take a tenth of a detector's time.

    Only for processes of our own, because it cannot be undone. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
