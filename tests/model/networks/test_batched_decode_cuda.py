"""The batched decode on a GPU that is not there: what it launches, and that it never waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.batched_decode import decode_batch
from scenesweep.model.networks.decode import decode

R50_800 = (90000, 22500, 5625, 1521, 441)
"""Anchors of each level of a ResNet-50 RetinaNet for a chip of 800 x 800 pixels."""
NO_KERNEL = """_unsafe_view alias as_strided detach empty expand narrow new_empty permute select
    slice split squeeze unbind unsqueeze view"""


class Kernels(TorchDispatchMode):
    """Counts the operations that launch a kernel, and fails if a tensor of the host is read.

    A convolution with a bias counts twice: torch adds the bias in a kernel of its own.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        tensors = [value for value in args if isinstance(value, Tensor)]
        assert all(tensor.device.type == "cuda" for tensor in tensors), name
        if func.namespace == "aten" and name not in NO_KERNEL.split():
            self.count[name] += 1
        if name == "convolution" and args[2] is not None:
            self.count["bias"] += 1
        return func(*args, **(kwargs or {}))


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
        with Kernels() as counted:
            packed = decode_batch(
                outputs, anchors, Inference(), (800, 800), capacity=1024, rounds=12
            )
        assert packed.rows.shape == (batch, 1000, 6)
        assert packed.rows.device.type == packed.flags.device.type == "cuda"
    return counted.count


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
