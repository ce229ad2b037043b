"""The batched decode on a GPU that is not there: what it launches, and that it never waits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.gpu_timing import resnet
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.inference.batch_size import batch_on_gpu, room_on_gpu
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.anchors import anchors
from scenesweep.model.networks.batched_decode import Room, decode_batch
from scenesweep.model.networks.decode import decode
from scenesweep.model.networks.retinanet import ROOM
from tests.fake_cuda import KernelCount

R50_800 = (90000, 22500, 5625, 1521, 441)
"""Anchors of each level of a ResNet-50 RetinaNet for a chip of 800 x 800 pixels."""


def outputs_on_gpu(
    batch: int, *, classes: int = 1, branch: bool = False
) -> tuple[list[RawOutputs], list[Tensor]]:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, device="cuda", dtype=dtype)

    outputs = [
        RawOutputs(
            empty(batch, n, classes), empty(batch, n, 4), empty(batch, n) if branch else None
        )
        for n in R50_800
    ]
    return outputs, [empty(n, 4, dtype=torch.float32) for n in R50_800]


def kernels(
    batch: int, *, classes: int = 1, branch: bool = False, room: Room = ROOM
) -> Counter[str]:
    with FakeTensorMode(), torch.no_grad():
        outputs, anchors = outputs_on_gpu(batch, classes=classes, branch=branch)
        with KernelCount() as counted:
            packed = decode_batch(outputs, anchors, Inference(), (800, 800), room=room)
        assert packed.rows.shape == (batch, 1000, 6)
        assert packed.rows.device.type == packed.flags.device.type == "cuda"
    return counted.kernels


@pytest.mark.parametrize(("classes", "branch"), [(1, False), (3, False), (1, True)])
def test_no_operation_depends_on_data_or_reads_the_host(classes: int, branch: bool) -> None:
    count = kernels(2, classes=classes, branch=branch)
    count += kernels(2, classes=classes, branch=branch, room=Room(1024, 8, band=64))
    assert not {"nonzero", "_local_scalar_dense", "masked_select"} & set(count)


def test_the_number_of_kernels_does_not_depend_on_the_batch() -> None:
    assert kernels(2) == kernels(4) == kernels(16)
    assert kernels(16).total() < 450
    near = Room(1024, 8, band=64)
    assert kernels(2, room=near) == kernels(16, room=near)
    assert kernels(16, room=near).total() < 450


def test_the_decode_of_a_chip_would_wait_for_a_gpu() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        outputs, anchors = outputs_on_gpu(1)
        with pytest.raises(Exception) as raised:  # noqa: PT011 - its type depends on torch
            decode([raw.of(0) for raw in outputs], anchors, Inference(), (800, 800))
    assert isinstance(raised.value, DataDependentOutputException) or "nonzero" in str(raised.value)


H200 = 141 * 10**9
FORWARD, BYTES = 0.5 * 790e12, 0.85 * 4.3e12
"""Of an H200, in a second: operations of a forward pass, and bytes."""


@pytest.mark.parametrize(
    ("card", "room"),
    [
        (resnet(quick=False), ROOM),
        (open_model("naip-trees").card, Room(1024, 8, band=64)),
        (open_model("overhead-buildings").card, Room(512, 8, band=128)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_decoding_is_a_small_share_of_the_forward_pass(card: ModelCard, room: Room) -> None:
    """G3, counted: what decoding moves takes at most 8 % of the forward pass."""
    assert room_on_gpu(card) == room
    size, classes = (card.chip_px, card.chip_px), len(card.classes)
    batch = batch_on_gpu(card, size, H200)
    with FakeTensorMode(), torch.no_grad():
        places = [level.cuda() for level in anchors(card.architecture, size)]
        bf16 = torch.empty(0, dtype=torch.bfloat16, device="cuda")
        outputs = [
            RawOutputs(
                bf16.new_empty(batch, len(level), classes),
                bf16.new_empty(batch, len(level), 4),
                bf16.new_empty(batch, len(level)) if card.architecture.iou_branch else None,
            )
            for level in places
        ]
        with KernelCount() as counted:
            decode_batch(outputs, places, card.inference, size, room=room)
    forward = flops_per_chip(card) * batch / FORWARD
    assert counted.bytes / BYTES <= 0.08 * forward
