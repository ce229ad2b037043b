"""Two slots for each shape of windows: a GPU computes one batch while the host handles the other.

    host:     fill a | fill b | boxes of a | fill a | boxes of b | ...
    uploads:         a        b                     a
    computing:         aaaaaaaaabbbbbbbbbbbbbbbbbbbbbbaaaaaaaa

A slot has all memory of a batch: pinned pixels, their copy on the GPU, the network's outputs and
the packed boxes. It is filled again only when the boxes of its last batch were read, so nothing is
overwritten while it is in use. Source pixels are stretched and resampled before the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.inference.develop import Source, develop, stage
from scenesweep.model.inference.gpu_pass import GpuPass
from scenesweep.model.inference.source_windows import SourceWindows
from scenesweep.model.inference.streams import Captured, Copies, Mark, Streams
from scenesweep.model.inference.windows import AnyWindows, fill, in_batches
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.batched_decode import Packed

SLOTS = 2
Shape = tuple[int, int, int]
_Developing = tuple[Source, Tensor]
"""Source pixels on the GPU, and the block that is made of them."""


class Batch:
    """A batch in a slot; later, the boxes of its chips."""

    def __init__(self, slot: _Slot, chips: int, done: Mark) -> None:
        self._slot, self._chips, self._done = slot, chips, done
        self._boxes: list[ChipBoxes] | None = None

    def boxes(self) -> list[ChipBoxes]:
        """Wait for the batch, the first time, and return the boxes of each of its chips."""
        if self._boxes is None:
            self._done.synchronize()
            self._boxes = self._slot.boxes()[: self._chips]
        return self._boxes

    @property
    def is_done(self) -> bool:
        """Say whether `boxes` returns without waiting."""
        return self._boxes is not None or self._done.query()


@dataclass(slots=True)
class _OfShape:
    """The batch of a shape, its free slots, and its batches in flight, the oldest first."""

    batch: int
    free: list[_Slot]
    in_flight: deque[tuple[_Slot, Batch]] = field(default_factory=deque)


class Slots:
    """The slots of one network on one GPU. One thread at a time may use them.

    `batch_of` says how many windows of a shape make a batch. Slots of a shape are made when its
    first windows come, or by `prepare`.
    """

    def __init__(
        self, gpu_pass: GpuPass, streams: Streams, batch_of: Callable[[Shape], int]
    ) -> None:
        self._pass, self._streams, self._batch_of = gpu_pass, streams, batch_of
        self._shapes: dict[Shape, _OfShape] = {}

    def prepare(self, shape: Shape) -> None:
        """Make the slots for windows of `shape`: memory is reserved, the graphs are captured."""
        if shape not in self._shapes:
            batch = self._batch_of(shape)
            slots = [_Slot(self._pass, self._streams, shape, batch) for _ in range(SLOTS)]
            self._shapes[shape] = _OfShape(batch, slots)

    @torch.inference_mode()
    def submit(self, parts: Sequence[AnyWindows]) -> list[Batch]:
        """Start on windows of one shape, and return their batches in order.

        When no slot is free, waits for the oldest batch of this shape and keeps its boxes.
        """
        shape = parts[0].shape
        self.prepare(shape)
        of_shape = self._shapes[shape]
        return [self._start(of_shape, batch) for batch in in_batches(parts, of_shape.batch)]

    def _start(self, of_shape: _OfShape, parts: list[AnyWindows]) -> Batch:
        if not of_shape.free:
            slot, oldest = of_shape.in_flight[0]
            oldest.boxes()
            of_shape.in_flight.popleft()
            of_shape.free.append(slot)
        slot = of_shape.free[-1]
        batch = Batch(slot, sum(map(len, parts)), slot.start(parts))
        of_shape.free.pop()  # only now: after an error the slot is free for the next call
        of_shape.in_flight.append((slot, batch))
        return batch


class _Slot:
    """The memory of one batch of `batch` windows, and the captured work on it."""

    @torch.inference_mode()
    def __init__(self, gpu_pass: GpuPass, streams: Streams, shape: Shape, batch: int) -> None:
        self._pass, self._streams, self._size = gpu_pass, streams, shape[1:]
        values = batch * int(np.prod(shape))
        device = gpu_pass.device
        self._host_pixels = streams.host_memory((values,), torch.uint8)
        self._host_starts = streams.host_memory((batch, 3), torch.int64)
        self._pixels = torch.zeros(values, dtype=torch.uint8, device=device)
        self._starts = torch.zeros((batch, 3), dtype=torch.int64, device=device)
        self._source = _SourceMemory(streams, device)
        anchors = gpu_pass.network.anchors(self._size, device)
        self._captured: Captured[tuple[list[RawOutputs], Packed]] = streams.capture(
            lambda: gpu_pass(self._pixels, self._starts, self._size, anchors)
        )
        self._outputs, self._packed = self._captured.result
        self._host_packed = Packed(
            *(streams.host_memory(tuple(t.shape), t.dtype) for t in _tensors(self._packed))
        )

    def start(self, parts: list[AnyWindows]) -> Mark:
        """Copy windows into the slot and queue all work on them."""
        places = fill(parts, self._host_pixels.numpy(), self._host_starts.numpy())
        copies = [(self._starts, self._host_starts)]
        source: list[tuple[SourceWindows, Tensor]] = []
        for windows, place in zip(parts, places, strict=True):
            block = self._pixels[place]
            if isinstance(windows, SourceWindows):
                source.append((windows, block.view(windows.block)))
            else:
                copies.append((block, self._host_pixels[place]))
        developing, source_copies = self._source.fill(source)
        uploaded = self._streams.upload([*copies, *source_copies])
        if developing:
            self._streams.prepare(partial(_develop_all, developing), uploaded)
        self._streams.compute(self._captured, uploaded)
        host, device = _tensors(self._host_packed), _tensors(self._packed)
        return self._streams.download(list(zip(host, device, strict=True)))

    @torch.inference_mode()
    def boxes(self) -> list[ChipBoxes]:
        """Return copies of the boxes of every chip of the slot. The batch must be done."""
        ready = Packed(*(tensor.clone() for tensor in _tensors(self._host_packed)))
        network = self._pass.network
        return network.unpack(self._outputs, ready, self._pass.inference, self._size)


class _SourceMemory:
    """The memory of a slot for source pixels. It grows to what the largest batch needs."""

    def __init__(self, streams: Streams, device: torch.device) -> None:
        self._streams, self._device = streams, device
        self._host = torch.empty(0, dtype=torch.uint8)
        self._there = torch.empty(0, dtype=torch.uint8, device=device)

    def fill(self, parts: list[tuple[SourceWindows, Tensor]]) -> tuple[list[_Developing], Copies]:
        """Copy windows to the host's memory; return what to develop, and what to copy before."""
        if not parts:
            return [], []
        staged = stage([windows for windows, _ in parts])
        used = staged[-1].end
        if len(self._host) < used:
            self._host = self._streams.host_memory((used,), torch.uint8)
            self._there = torch.empty(used, dtype=torch.uint8, device=self._device)
        memory = self._host.numpy()
        for one in staged:
            one.write(memory)
        developing = [
            (one.source(self._there), block) for one, (_, block) in zip(staged, parts, strict=True)
        ]
        return developing, [(self._there[:used], self._host[:used])]


def _develop_all(developing: list[_Developing]) -> None:
    for source, block in developing:
        develop(source, block)


def _tensors(packed: Packed) -> list[Tensor]:
    return [getattr(packed, column.name) for column in fields(packed)]
