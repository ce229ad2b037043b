"""Copy pixels into pinned memory with several threads, because one does not fill a GPU's bus."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_THREADS = 4
_LEAST_BYTES = 2_000_000
"""Of a piece: below that, handing it to a thread costs more than it saves."""


def copy(target: NDArray[np.generic], source: NDArray[np.generic]) -> None:
    """Copy an array of the same shape and type. numpy lets other threads run meanwhile."""
    pieces = min(_THREADS, source.nbytes // _LEAST_BYTES)
    if pieces < 2:
        np.copyto(target, source)
        return
    axis = int(np.argmax(source.shape))
    targets = np.array_split(target, pieces, axis)
    list(_pool().map(np.copyto, targets, np.array_split(source, pieces, axis)))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "copy")
