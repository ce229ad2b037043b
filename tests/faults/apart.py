"""Run a function in a process of its own, which may be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

ONE, OTHER = ("tiling.shard=3",), ("tiling.shard=3", "merge.iou=0.3")


FORKS = multiprocessing.get_context("forkserver")


def apart(target: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a new process and return its exit code: under zero for a signal."""
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode
