"""The batched decode on a GPU that is not there: what it launches, and that it never waits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.batched_decode import decode_batch
from scenesweep.model.networks.decode import decode
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


def kernels(batch: int, *, classes: int = 1, branch: bool = False) -> Counter[str]:
    with FakeTensorMode(), torch.no_grad():
        outputs, anchors = outputs_on_gpu(batch, classes=classes, branch=branch)
        with KernelCount() as counted:
            packed = decode_batch(
                outputs, anchors, Inference(), (800, 800), capacity=1024, rounds=12
            )
        assert packed.rows.shape == (batch, 1000, 6)
        assert packed.rows.device.type == packed.flags.device.type == "cuda"
    return counted.kernels


@pytest.mark.parametrize(("classes", "branch"), [(1, False), (3, False), (1, True)])
def test_no_operation_depends_on_data_or_reads_the_host(classes: int, branch: bool) -> None:
    count = kernels(2, classes=classes, branch=branch)
    assert not {"nonzero", "_local_scalar_dense", "masked_select"} & set(count)


def test_the_number_of_kernels_does_not_depend_on_the_batch() -> None:
    assert kernels(2) == kernels(4) == kernels(16)
    assert kernels(16).total() < 450


def test_the_decode_of_a_chip_would_wait_for_a_gpu() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        outputs, anchors = outputs_on_gpu(1)
        with pytest.raises(Exception) as raised:  # noqa: PT011 - its type depends on torch
            decode([raw.of(0) for raw in outputs], anchors, Inference(), (800, 800))
    assert isinstance(raised.value, DataDependentOutputException) or "nonzero" in str(raised.value)
