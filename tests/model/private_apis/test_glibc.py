"""A detector's process keeps the memory that it freed."""

from __future__ import annotations

import sys

import pytest

from tests.model.private_apis.test_torch_compiler import output_of


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
def test_freed_memory_stays_in_the_process_and_is_used_again() -> None:
    code = """
import numpy as np
from scenesweep.model.private_apis.glibc import keep_freed_memory
from tests.allocator import heap_bytes, mapped_blocks
keep_freed_memory()
blocks = mapped_blocks()
a, b = np.ones(6_000_000), np.ones(300_000)
print(mapped_blocks() - blocks)  # no block gets pages of its own
used = heap_bytes()
del a, b
print(heap_bytes() - used)  # the heap does not shrink
a, b = np.ones(6_000_000), np.ones(300_000)
print(heap_bytes() - used)  # nor grow: the same memory is used again
"""
    assert output_of(code) == ["0", "0", "0"]
