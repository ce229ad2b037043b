"""Queues of a GPU that is not there. They do their work as late as they may, or at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from scenesweep.model.inference.streams import Captured, Copies, Mark


@dataclass
class LazyMark:
    """A point in a queue; the host waits for it by running the queue up to there."""

    queue: LazyQueue
    position: int

    def synchronize(self) -> None:
        self.queue.log.append("wait")
        self.queue.run_to(self.position)

    def query(self) -> bool:
        return self.queue.has_done(self.position)


class LazyQueue:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self._work: deque[Callable[[], None]] = deque()
        self._added = self._done = 0

    def add(self, work: Callable[[], None]) -> LazyMark:
        self._work.append(work)
        self._added += 1
        return LazyMark(self, self._added)

    def has_done(self, position: int) -> bool:
        return self._done >= position

    def run_to(self, position: int) -> None:
        while self._done < position:
            self._work.popleft()()
            self._done += 1


class LazyStreams:
    """`Streams` on a CPU. `log` has the order in which the host asked for work and waited."""

    def __init__(self, *, late: bool = True) -> None:
        self.late = late
        self.log: list[str] = []
        self._uploads, self._computing = LazyQueue(self.log), LazyQueue(self.log)

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def upload(self, copies: Copies) -> Mark:
        return self._add("upload", self._uploads, lambda: _copy(copies))

    def capture(self, body: Callable[[], Any]) -> Captured[Any]:
        self.log.append("capture")
        result = body()

        def replay() -> None:
            _copy(list(zip(_tensors(result), _tensors(body()), strict=True)))

        return Captured(replay, result)

    def prepare(self, work: Callable[[], None], after: Mark) -> None:
        self._add("prepare", self._computing, _when(after, work))

    def compute(self, captured: Captured[Any], after: Mark) -> None:
        self._add("compute", self._computing, _when(after, captured.replay))

    def download(self, copies: Copies) -> Mark:
        return self._add("download", self._computing, lambda: _copy(copies))

    def _add(self, name: str, queue: LazyQueue, work: Callable[[], None]) -> Mark:
        self.log.append(name)
        mark = queue.add(torch.inference_mode()(work))
        if not self.late:
            queue.run_to(mark.position)
        return mark


def _when(after: Mark, work: Callable[[], None]) -> Callable[[], None]:
    """Return work that first runs the other queue up to a mark."""

    def later() -> None:
        assert isinstance(after, LazyMark)
        after.queue.run_to(after.position)
        work()

    return later


def _copy(copies: Copies) -> None:
    for target, source in copies:
        target.copy_(source)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, column.name) for column in fields(value)]
    return [] if value is None else [tensor for part in value for tensor in _tensors(part)]
