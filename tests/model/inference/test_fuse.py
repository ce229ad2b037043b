"""Fused layers compute what the plain network does, in as few kernels as they promise."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scenesweep.model.card import Inference
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference import group_norm
from scenesweep.model.inference.fold import fold_batch_norms
from scenesweep.model.inference.fuse import difference, fuse, is_fused, move, move_and_fuse
from scenesweep.model.inference.fused_layers import ConvRelu, FusedTower, PaddedConv, add_enlarged
from scenesweep.model.inference.gpu_pass import GpuPass
from scenesweep.model.inference.group_norm import normalise_groups, torch_keeps_channels_last
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet
from tests import retinanets
from tests.fake_cuda import KernelCount, put_on_fake_cuda

CPU = torch.device("cpu")
LAUNCHES = 318
"""Kernels of a batch of RetinaNet-R50, of any size, from pixels to packed boxes."""
SHIPPED = ("naip-trees", "overhead-buildings")
ONE_SIZE = {"aspect_ratios": (1.0,), "anchor_sizes_px": ((12.0,), (), ())}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet50": {},
    "basic blocks, group norm in the heads, IoU branch": {
        "backbone": "resnet18",
        "head_norm": "group",
        "iou_branch": True,
        "levels": (2, 4),
        **ONE_SIZE,
    },
    "group norm everywhere": {"backbone": "resnet18", "backbone_norm": "group"},
    "bottlenecks with group norm": {"backbone": "resnet50", "backbone_norm": "group"},
    "grouped convolutions": {"backbone": "resnext50_32x4d"},
    "P6 only": {"backbone": "resnet18", "levels": (3, 6), "anchor_sizes_px": [[32.0]] * 4},
}


def make_network(architecture: dict[str, Any], *, bands: int = 3) -> RetinaNet:
    """Return a network with folded norms whose every layer matters to its outputs."""
    torch.manual_seed(0)
    card = retinanets.card(**architecture)
    card = card.model_copy(update={"bands": tuple(range(1, bands + 1))})
    network = build(card).eval()
    assert isinstance(network, RetinaNet)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(cast(Tensor, layer.running_mean), std=0.1)
            nn.init.uniform_(cast(Tensor, layer.running_var), 0.5, 2.0)
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)
    for head in network.head.children():
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    fold_batch_norms(network)
    return network.requires_grad_(False)


def fused_copy(network: RetinaNet) -> RetinaNet:
    fused = copy.deepcopy(network)
    fuse(fused)
    return fused


def noise(*shape: int) -> Tensor:
    chips = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return chips.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "bands"), [*((name, 3) for name in ARCHITECTURES), ("resnet50", 4), ("resnet50", 8)]
)
def test_the_fused_network_equals_the_plain_one(name: str, bands: int) -> None:
    """In float32, to 1e-5 of the largest value, because sums have another order."""
    network = make_network(ARCHITECTURES[name], bands=bands)
    fused = fused_copy(network)
    chips = noise(2, bands, 96, 128)
    with torch.inference_mode():
        for ours, plain in zip(fused(chips), network(chips), strict=True):
            for field in ("logits", "deltas", "quality"):
                a, b = getattr(ours, field), getattr(plain, field)
                assert (a is None) == (b is None)
                if b is not None:
                    assert b.std() > 1e-3
                    limit = 1e-5 * float(b.abs().max())
                    torch.testing.assert_close(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_networks_pass_the_check_at_start(
    name: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    network = load_network(open_model(name)).eval()
    fold_batch_norms(network)
    moved = move_and_fuse(network, CPU, dtype)
    assert isinstance(moved, RetinaNet)
    assert is_fused(moved)
    assert not caplog.records
    chips = noise(1, len(moved.card.bands), 64, 64).to(dtype)
    padded = F.pad(chips, (0, 0, 0, 0, 0, 8 - chips.shape[1]))
    assert moved.input_channels == padded.shape[1]
    with torch.inference_mode():
        outputs, others = moved(chips)[0], moved(padded)[0]
    assert outputs.logits.dtype == outputs.deltas.dtype == torch.float32
    assert torch.equal(outputs.logits, others.logits)


def _raise(*_: object) -> list[Tensor]:
    raise RuntimeError("GET was unable to find an engine\nsecond line")


def _nan(tower: FusedTower, level: Tensor) -> list[Tensor]:
    shape = level.shape
    return [torch.full((shape[0], n, *shape[2:]), torch.nan) for n in tower.channels]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [(_raise, "GET was unable to find an engine (torch"), (_nan, "differ from those of plain")],
)
def test_a_network_that_fails_the_check_stays_plain(
    forward: Any, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = make_network({"backbone": "resnet18", "head_norm": "group"})
    monkeypatch.setattr(FusedTower, "forward", forward)
    moved = move_and_fuse(network, CPU, torch.bfloat16)
    assert moved is network
    assert not is_fused(moved)
    assert network.input_channels == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reason in caplog.text


def test_the_check_sees_a_lost_bias() -> None:
    network = make_network({"backbone": "resnet18"})
    fused = fused_copy(network)
    last = next(layer for layer in fused.modules() if isinstance(layer, ConvRelu))
    assert difference(network, fused, noise(2, 3, 128, 128)) == ""
    assert last.bias is not None
    last.bias.zero_()
    assert "differ" in difference(network, fused, noise(2, 3, 128, 128))


def test_other_detectors_are_moved_only() -> None:
    card = retinanets.card(kind="fcos", backbone="resnet18")
    network = build(card).eval()
    assert move_and_fuse(network, CPU, torch.float32) is network
    assert not is_fused(network)


def test_biases_of_output_layers_stay_in_float32() -> None:
    network = make_network({"backbone": "resnet18"})
    bias = network.head.classification_head.get_parameter("cls_logits.bias").clone()
    fuse(network)
    move(network, CPU, torch.bfloat16)
    head = next(layer for layer in network.modules() if isinstance(layer, FusedTower))
    assert torch.equal(head.output_bias.flatten(), bias)
    assert head.weight.dtype == torch.bfloat16


def test_zero_channels_change_nothing() -> None:
    """Small whole numbers: every order of summation is exact."""
    draw = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 5, 7, stride=2, padding=3).requires_grad_(False)
    conv.weight.copy_(torch.randint(-4, 5, conv.weight.shape, generator=draw))
    maps = torch.randint(0, 9, (2, 3, 32, 48), generator=draw).float()
    assert torch.equal(PaddedConv(conv)(maps), conv(maps))
    assert torch.equal(ConvRelu(conv)(maps), conv(maps).relu())


@pytest.mark.parametrize("shape", [(12, 20), (11, 19)])
def test_an_enlarged_map_is_added(shape: tuple[int, int]) -> None:
    coarse, fine = noise(2, 8, 6, 10), noise(2, 8, *shape)
    expected = fine + F.interpolate(coarse, size=shape, mode="nearest")
    assert torch.equal(add_enlarged(fine, coarse), expected)


@pytest.mark.parametrize(
    ("dtype", "mean", "limit"),
    [
        (torch.float32, 0, 3e-6),
        (torch.float32, 3, 1e-4),
        (torch.bfloat16, 0, 4e-3),
        (torch.bfloat16, 3, 4e-3),
    ],
)
def test_own_group_norm(dtype: torch.dtype, mean: float, limit: float) -> None:
    """As torch's in float32, to a share of the largest value; bfloat16: to its last bit."""
    norm = nn.GroupNorm(32, 96).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    maps = (noise(2, 96, 24, 40) + mean).to(dtype)
    rounded = copy.deepcopy(norm).to(dtype)
    expected = F.group_norm(
        maps.float(), 32, rounded.weight.float(), rounded.bias.float(), norm.eps
    )
    result = normalise_groups(maps, rounded)
    assert result.is_contiguous(memory_format=torch.channels_last)
    atol = limit * float(expected.abs().max())
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=atol)


def test_own_group_norm_of_a_constant_map() -> None:
    norm = nn.GroupNorm(2, 8).requires_grad_(False)
    maps = torch.full((1, 8, 9, 9), 1000.1).to(memory_format=torch.channels_last)
    assert normalise_groups(maps, norm).isfinite().all()


def test_versions_with_a_channels_last_group_norm() -> None:
    assert not torch_keeps_channels_last("2.11.0+cu128")
    assert torch_keeps_channels_last("2.15.0+cu132")
    assert torch_keeps_channels_last("3.0.0a0+git123")


def resnet50() -> RetinaNet:
    """Return torchvision's RetinaNet on a ResNet-50 with one class."""
    network = build(retinanets.card("object", backbone_norm="frozen")).eval()
    assert isinstance(network, RetinaNet)
    return network


def shipped(name: str) -> RetinaNet:
    network = load_network(open_model(name)).eval()
    assert isinstance(network, RetinaNet)
    return network


def count(network: RetinaNet, *, batch: int, fused: bool = True, px: int = 512) -> KernelCount:
    """Count the kernels of a forward pass in bfloat16 on CUDA, without a GPU."""
    fold_batch_norms(network)
    if fused:
        fuse(network)
    move(network, CPU, torch.bfloat16)
    with FakeTensorMode(), torch.no_grad():
        put_on_fake_cuda(network)
        chips = torch.empty(
            (batch, network.input_channels, px, px), device="cuda", dtype=torch.bfloat16
        ).to(memory_format=torch.channels_last)
        with KernelCount() as kernels:
            network(chips)
    return kernels


def test_launches_of_a_resnet50() -> None:
    """16 blocks and the heads have no ReLU, bias or addition outside of cuDNN's kernels.

    What is left: 6 biases and 2 additions with their biases in the pyramid, the ReLU before P7, and
    one addition of a bias for each of 10 outputs.
    """
    kernels = count(resnet50(), batch=16, px=800)
    assert kernels.convolutions == 111
    assert dict(kernels.kernels) == {
        "cudnn_convolution_relu": 73,
        "cudnn_convolution_add_relu": 16,
        "convolution": 22,
        "bias": 6,
        "add": 12,
        "add_": 2,
        "relu": 1,
        "max_pool2d_with_indices": 1,
    }
    plain = count(resnet50(), batch=16, fused=False, px=800)
    assert plain.kernels.total() == 333
    for batch in (2, 4):
        assert count(resnet50(), batch=batch).kernels == kernels.kernels


@pytest.mark.parametrize(("name", "plain", "fused"), [(SHIPPED[0], 78, 42), (SHIPPED[1], 152, 104)])
def test_launches_of_the_shipped_models(name: str, plain: int, fused: int) -> None:
    """With torch's own group norm for channels last."""
    assert count(shipped(name), batch=2, fused=False).kernels.total() == plain
    assert count(shipped(name), batch=2).kernels.total() == fused


def test_own_group_norm_copies_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "torch_keeps_channels_last", lambda _: False)
    kernels = count(shipped("naip-trees"), batch=4).kernels
    assert kernels.total() == 42 + 4 * 9
    assert not {"clone", "copy_", "_to_copy", "native_group_norm"} & set(kernels)


@pytest.mark.parametrize("batch", [2, 4, 16])
def test_launches_of_a_complete_batch(batch: int) -> None:
    """Windows, normalisation, ResNet-50, decoding: fewer than 600 kernels, and no host memory."""
    network = resnet50()
    fold_batch_norms(network)
    fuse(network)
    move(network, CPU, torch.bfloat16)
    size = (512, 512)
    with FakeTensorMode(), torch.no_grad():
        put_on_fake_cuda(network)
        anchors = [torch.empty(level.shape, device="cuda") for level in network.anchors(size, CPU)]
        mean, std = (torch.empty(1, 3, 1, 1, device="cuda") for _ in range(2))
        inference = Inference(score_threshold=0.3)
        work = GpuPass(network, inference, mean, std, torch.bfloat16)
        pixels = torch.empty(batch * 3 * 512 * 512, dtype=torch.uint8, device="cuda")
        starts = torch.empty(batch, 3, dtype=torch.int64, device="cuda")
        with KernelCount() as kernels:
            work(pixels, starts, size, anchors)
    assert "constant_pad_nd" not in kernels.kernels
    assert kernels.kernels["cudnn_convolution_relu"] == 73
    assert kernels.kernels.total() == LAUNCHES <= 600


def test_an_unknown_norm_is_an_error() -> None:
    network = build(retinanets.card(backbone="resnet18")).eval()
    assert isinstance(network, RetinaNet)
    with pytest.raises(TypeError, match="expected a folded or group normalisation"):
        fuse(network)
