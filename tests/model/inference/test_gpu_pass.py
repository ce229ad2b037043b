"""The work of a batch, which a CUDA graph holds: equal to the CPU's, and without waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu_timing import resnet
from scenesweep.model.card import ModelCard
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.batch_size import batch_on_gpu
from scenesweep.model.inference.detector import load_detector
from scenesweep.model.inference.fold import fold_batch_norms
from scenesweep.model.inference.gpu_pass import GpuPass, cut, normalise
from scenesweep.model.inference.windows import windows_of
from scenesweep.model.networks.anchors import anchors
from scenesweep.model.networks.network import build, normalisation
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.settings import DetectorSettings
from tests.fake_cuda import KernelCount
from tests.small_models import a_model, noise

R50 = resnet(quick=False)


def test_windows_are_cut_as_on_the_host() -> None:
    pixels = noise(1, 3, 96)[0]
    windows = windows_of(pixels, np.array([[0, 0], [32, 8], [64, 32]]), size=(32, 64))
    flat, starts = torch.from_numpy(windows.pixels.reshape(-1)), torch.from_numpy(windows.starts)
    chips = cut(flat, starts, (32, 64), bands=3)
    np.testing.assert_array_equal(chips.numpy(), windows.chips())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pixels_are_normalised_as_on_the_host(tmp_path: Path, precision: str) -> None:
    settings = DetectorSettings.model_validate({"device": "cpu", "precision": precision})
    detector = load_detector(a_model(tmp_path), settings)
    work, chips = detector.gpu_pass(), noise(3)
    ours = normalise(torch.from_numpy(chips), work.mean, work.std, dtype=detector.dtype, channels=8)
    assert torch.equal(ours[:, :1], detector.prepare(chips, 3))
    assert not ours[:, 1:].any()
    assert ours.is_contiguous(memory_format=torch.channels_last)


def put_on_gpu(network: RetinaNet) -> None:
    """Give a network without values fake weights on a GPU, in bfloat16 and channels-last order."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            fake = torch.empty(weight.shape, dtype=torch.bfloat16, device="cuda")
            if fake.dim() == 4:
                fake = fake.contiguous(memory_format=torch.channels_last)
            module.register_parameter(name, nn.Parameter(fake, requires_grad=False))


def kernels(card: ModelCard, batch: int) -> int:
    """Count the kernels of a batch of plain layers, from uint8 pixels to packed boxes."""
    size = (card.chip_px, card.chip_px)
    with torch.device("meta"):
        network = build(card).eval()
        fold_batch_norms(network)
    assert isinstance(network, RetinaNet)
    with FakeTensorMode(), torch.no_grad():
        put_on_gpu(network)
        mean, std = (value.cuda() for value in normalisation(card))
        work = GpuPass(network, card.inference, mean, std, torch.bfloat16)
        level_anchors = [level.cuda() for level in anchors(card.architecture, size)]
        pixels = torch.empty(
            batch * len(card.bands) * size[0] * size[1], dtype=torch.uint8, device="cuda"
        )
        starts = torch.empty(batch, 3, dtype=torch.int64, device="cuda")
        with KernelCount() as counted:  # fails if an operation reads the host or depends on data
            _, packed = work(pixels, starts, size, level_anchors)
        assert packed.rows.device.type == "cuda"
        assert len(packed.rows) == batch
    return counted.kernels.total()


def test_a_batch_of_resnet50_has_few_kernels_and_waits_for_nothing() -> None:
    assert kernels(R50, 16) <= 600
    assert kernels(R50, 2) == kernels(R50, 4) == kernels(R50, 16)


@pytest.mark.parametrize("name", ["naip-trees", "overhead-buildings"])
def test_a_batch_of_a_shipped_model_waits_for_nothing(name: str) -> None:
    assert kernels(open_model(name).card, 4) <= 600


H200 = 141 * 10**9


@pytest.mark.parametrize(
    ("card", "batch"),
    [(R50, 16), (open_model("naip-trees").card, 128), (open_model("overhead-buildings").card, 96)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_batch_follows_from_card_and_memory(card: ModelCard, batch: int) -> None:
    size = (card.chip_px, card.chip_px)
    assert batch_on_gpu(card, size, H200) == batch
    assert batch_on_gpu(card, size, H200 // 100) < batch
    assert batch_on_gpu(card, size, 1) == 1
    assert batch_on_gpu(card, (64, 128), H200) == 4
