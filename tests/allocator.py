"""What the allocator of the GNU C library says of itself (mallinfo2(3))."""

from __future__ import annotations

import ctypes

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd")
MORE_FIELDS = ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Info(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in (*FIELDS, *MORE_FIELDS))


def _info() -> _Info:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Info
    info: _Info = mallinfo2()
    return info


def mapped_blocks() -> int:
    """Return how many blocks have pages of their own: the system takes them back when freed."""
    return int(_info().hblks)


def heap_bytes() -> int:
    """Return the size of the heap, free parts of it included."""
    return int(_info().arena)
