"""Set up a process for a detector: torch's threads and the memory allocator.

Both belong to the complete process. A process of our own (a detector actor, a command) is set up
for good. A process that belongs to a caller is as before when `callers_process` ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scenesweep.model.private_apis.glibc import keep_freed_memory


@dataclass(slots=True)
class _Caller:
    """The number of torch's threads before a detector changed it; None as long as none did."""

    threads: int | None = None


class _Thread(threading.local):
    """The caller of the current thread: torch keeps its number of threads for each thread."""

    caller: _Caller | None = None


_current = _Thread()


@contextmanager
def callers_process() -> Iterator[None]:
    """Leave the allocator alone inside this block, and restore torch's threads at its end."""
    outer, _current.caller = _current.caller, _Caller()
    try:
        yield
    finally:
        threads, _current.caller = _current.caller.threads, outer
        if threads is not None:
            import torch

            torch.set_num_threads(threads)


def set_up_process(threads: int) -> None:
    """Set torch's threads and let the allocator keep freed memory, for a detector on a CPU."""
    import torch

    caller = _current.caller
    if caller is None:
        keep_freed_memory()
    elif caller.threads is None:
        caller.threads = torch.get_num_threads()
    torch.set_num_threads(threads)
