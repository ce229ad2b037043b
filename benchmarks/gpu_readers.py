"""Reader processes for the GPU benchmark: they decompress shards into shared memory.

A stand-in for GDAL's DEFLATE blocks. This module imports no torch, so that the processes start
quickly.
"""

from __future__ import annotations

import multiprocessing
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS_EACH = 3


@dataclass(frozen=True, slots=True)
class Readers:
    """Running readers. `full` gives the number of a slot that has a shard; put it into `free`."""

    slots: tuple[NDArray[np.uint8], ...]
    full: Any
    free: Any
    busy_s: Synchronized[float]
    """Seconds that all readers together have spent on reading."""


@contextmanager
def readers(shard: NDArray[np.uint8], count: int) -> Iterator[Readers]:
    """Start processes that each decompress this shard again and again, and end them."""
    context = multiprocessing.get_context("spawn")
    free, full = context.Queue(), context.Queue()
    busy = context.Value("d", 0.0)
    memories = [SharedMemory(create=True, size=shard.nbytes) for _ in range(SLOTS_EACH * count)]
    packed = zlib.compress(shard.tobytes(), 6)
    names = [memory.name for memory in memories]
    processes = [
        context.Process(target=_read, args=(packed, names, free, full, busy), daemon=True)
        for _ in range(count)
    ]
    for slot in range(len(memories)):
        free.put(slot)
    for process in processes:
        process.start()
    slots = tuple(np.ndarray(shard.shape, np.uint8, memory.buf) for memory in memories)
    try:
        yield Readers(slots, full, free, busy)
    finally:
        for process in processes:
            process.terminate()
            process.join()
        del slots
        for memory in memories:
            _release(memory)


def _read(packed: bytes, names: list[str], free: Any, full: Any, busy: Any) -> None:
    memories = [SharedMemory(name=name) for name in names]
    while True:
        slot = free.get()
        started = time.process_time()
        pixels = zlib.decompress(packed)
        memories[slot].buf[: len(pixels)] = pixels
        with busy.get_lock():
            busy.value += time.process_time() - started
        full.put(slot)


def _release(memory: SharedMemory) -> None:
    with suppress(BufferError):  # an array of the caller may still refer to it
        memory.close()
    memory.unlink()
