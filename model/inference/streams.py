"""The queues of a GPU, behind an interface: uploads beside computing, and graphs of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Copies = Sequence[tuple[Tensor, Tensor]]
"""Pairs of a target and a source of one shape."""


class Mark(Protocol):
    """A point in a queue, which the host or another queue can wait for."""

    def synchronize(self) -> None:
        """Let the host wait until the queue has reached this point."""
        ...

    def query(self) -> bool:
        """Say whether the queue has reached this point."""
        ...


@dataclass(frozen=True, slots=True)
class Captured(Generic[Result]):
    """A captured function: `replay` computes it again, into the same tensors of `result`."""

    replay: Callable[[], None]
    result: Result


class Streams(Protocol):
    """Two queues, of uploads and of computing. Each does its work in order."""

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of the host that the GPU can copy from and to by itself."""
        ...

    def upload(self, copies: Copies) -> Mark:
        """Queue copies to the GPU. The mark stands behind them."""
        ...

    def capture(self, body: Callable[[], Result]) -> Captured[Result]:
        """Warm up and record a function of fixed shapes. Waits for the GPU."""
        ...

    def prepare(self, work: Callable[[], None], after: Mark) -> None:
        """Queue the kernels of a function, in the order of computing, when `after` is reached."""
        ...

    def compute(self, captured: Captured[Result], after: Mark) -> None:
        """Queue a captured function, to begin when `after` is reached."""
        ...

    def download(self, copies: Copies) -> Mark:
        """Queue copies to the host behind all computing. The mark stands behind them."""
        ...


class CudaStreams:
    """The queues of one NVIDIA GPU.

    Downloads share the queue of computing: a batch's boxes are small, and an upload must not wait
    behind them.
    """

    def __init__(self, device: torch.device) -> None:
        self._uploads = torch.cuda.Stream(device)
        self._computing = torch.cuda.Stream(device)
        # One pool: the graphs run one after the other, so they can share memory.
        self._pool = torch.cuda.graph_pool_handle()

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a pinned tensor."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def upload(self, copies: Copies) -> Mark:
        """Queue copies on the stream of uploads."""
        return _copy(copies, self._uploads)

    def capture(self, body: Callable[[], Result]) -> Captured[Result]:
        """Run a function twice, then record it as a CUDA graph."""
        torch.cuda.synchronize(self._computing.device)
        with reproducible(), torch.cuda.stream(self._computing):
            for _ in range(2):  # cuDNN makes its plans and workspaces
                body()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._computing):
                result = body()
        torch.cuda.synchronize(self._computing.device)
        return Captured(graph.replay, result)

    def prepare(self, work: Callable[[], None], after: Mark) -> None:
        """Launch kernels on the stream of computing. Their memory is reused in its order."""
        with torch.cuda.stream(self._computing):
            self._wait_for(after)
            work()

    def compute(self, captured: Captured[Result], after: Mark) -> None:
        """Launch a graph on the stream of computing."""
        with torch.cuda.stream(self._computing):
            self._wait_for(after)
            captured.replay()

    def _wait_for(self, mark: Mark) -> None:
        if isinstance(mark, torch.cuda.Event):
            self._computing.wait_event(mark)

    def download(self, copies: Copies) -> Mark:
        """Queue copies on the stream of computing."""
        return _copy(copies, self._computing)


@contextmanager
def reproducible() -> Iterator[None]:
    """Let cuDNN choose the same kernels each time, and compute float32 as float32 (no TF32).

    The choice holds inside this block only, and for the graphs that are captured in it.
    """
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


def _copy(copies: Copies, stream: torch.cuda.Stream) -> Mark:
    with torch.cuda.stream(stream):
        for target, source in copies:
            target.copy_(source, non_blocking=True)
        done = torch.cuda.Event(blocking=True)
        done.record(stream)
    return done
