"""RetinaNets with the parameter names of Detectron2 and mmdetection, written from their papers.

They are a second, independent way to the boxes: plain loops over blocks, levels and anchors. Shapes
and names are those of the published R-50-FPN checkpoints (80 classes, 9 anchors per cell).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import batched_nms

CLASSES = 80
DEPTHS = (3, 4, 6, 3)
RATIOS = (0.5, 1.0, 2.0)
SIZES = tuple(
    tuple(base * 2 ** (step / 3) for step in range(3)) for base in (32, 64, 128, 256, 512)
)


class Net(nn.Module):
    """Parameters by dotted name, made at first use, so that the code below reads as a formula."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.random = torch.Generator().manual_seed(0)

    def conv(
        self, name: str, x: Tensor, out: int, k: int, stride: int = 1, *, bias: bool
    ) -> Tensor:
        weight = self._value(f"{name}.weight", (out, x.shape[1], k, k))
        return F.conv2d(
            x, weight, self._value(f"{name}.bias", (out,)) if bias else None, stride, k // 2
        )

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm with fixed statistics."""
        for kind in ("weight", "bias", "running_mean", "running_var"):
            self._value(f"{name}.{kind}", (x.shape[1],))
        scale = self.values[f"{name}.weight"] / (self.values[f"{name}.running_var"] + 1e-5).sqrt()
        shift = self.values[f"{name}.bias"] - self.values[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def _value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.values:
            noise = torch.randn(shape, generator=self.random)
            if len(shape) == 4:
                noise *= math.sqrt(2 / math.prod(shape[1:]))
            elif name.endswith(("running_var", "norm.weight")) or (
                ".bn" in name and "weight" in name
            ):
                noise = 0.5 + torch.rand(shape, generator=self.random)
            else:
                noise *= 0.1
            self.values[name] = noise
        return self.values[name]


def resnet50(
    net: Net, x: Tensor, names: Callable[[str], tuple[str, str]], *, stride_in_1x1: bool
) -> list[Tensor]:
    """Return C3, C4 and C5. `names` gives the names of a convolution and of its norm."""

    def unit(place: str, x: Tensor, out: int, k: int, stride: int = 1) -> Tensor:
        conv, norm = names(place)
        return net.norm(norm, net.conv(conv, x, out, k, stride, bias=False))

    x = F.max_pool2d(unit("stem", x, 64, 7, 2).relu(), 3, 2, 1)
    maps = []
    for layer, depth in enumerate(DEPTHS):
        width = 64 * 2**layer
        for block in range(depth):
            stride = 2 if layer and block == 0 else 1
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            place = f"{layer}.{block}"
            y = unit(f"{place}.1", x, width, 1, first).relu()
            y = unit(f"{place}.2", y, width, 3, second).relu()
            y = unit(f"{place}.3", y, 4 * width, 1)
            x = unit(f"{place}.short", x, 4 * width, 1, stride) if block == 0 else x
            x = (x + y).relu()
        maps.append(x)
    return maps[1:]


def pyramid(
    net: Net, maps: list[Tensor], names: dict[str, list[str]], *, relu: bool
) -> list[Tensor]:
    """Return P3 to P7; P6 comes from C5. `names` has laterals, outputs, and P6 with P7."""
    inner = net.conv(names["lateral"][2], maps[2], 256, 1, bias=True)
    levels = [net.conv(names["output"][2], inner, 256, 3, bias=True)]
    for i in (1, 0):
        lateral = net.conv(names["lateral"][i], maps[i], 256, 1, bias=True)
        inner = lateral + F.interpolate(inner, scale_factor=2, mode="nearest")
        levels.insert(0, net.conv(names["output"][i], inner, 256, 3, bias=True))
    p6 = net.conv(names["extra"][0], maps[2], 256, 3, 2, bias=True)
    p7 = net.conv(names["extra"][1], p6.relu() if relu else p6, 256, 3, 2, bias=True)
    return [*levels, p6, p7]


def head(net: Net, x: Tensor, convs: list[str], output: tuple[str, int]) -> Tensor:
    for name in convs:
        x = net.conv(name, x, 256, 3, bias=True).relu()
    return net.conv(output[0], x, output[1], 3, bias=True)


def detectron2(net: Net, x: Tensor, *, stride_in_1x1: bool) -> list[tuple[Tensor, Tensor]]:
    """Return logits and deltas of each level, with Detectron2's names."""

    def names(place: str) -> tuple[str, str]:
        if place == "stem":
            conv = "backbone.bottom_up.stem.conv1"
        else:
            layer, block, kind = place.split(".")
            kind = "shortcut" if kind == "short" else f"conv{kind}"
            conv = f"backbone.bottom_up.res{int(layer) + 2}.{block}.{kind}"
        return conv, f"{conv}.norm"

    parts = {
        "lateral": [f"backbone.fpn_lateral{level}" for level in (3, 4, 5)],
        "output": [f"backbone.fpn_output{level}" for level in (3, 4, 5)],
        "extra": ["backbone.top_block.p6", "backbone.top_block.p7"],
    }
    levels = pyramid(net, resnet50(net, x, names, stride_in_1x1=stride_in_1x1), parts, relu=True)
    cls, box = ([f"head.{kind}_subnet.{2 * i}" for i in range(4)] for kind in ("cls", "bbox"))
    return [
        (
            head(net, level, cls, ("head.cls_score", 9 * CLASSES)),
            head(net, level, box, ("head.bbox_pred", 9 * 4)),
        )
        for level in levels
    ]


def mmdetection(net: Net, x: Tensor, *, stride_in_1x1: bool) -> list[tuple[Tensor, Tensor]]:
    """Return logits and deltas of each level, with mmdetection's names."""

    def names(place: str) -> tuple[str, str]:
        if place == "stem":
            return "backbone.conv1", "backbone.bn1"
        layer, block, kind = place.split(".")
        start = f"backbone.layer{int(layer) + 1}.{block}"
        if kind == "short":
            return f"{start}.downsample.0", f"{start}.downsample.1"
        return f"{start}.conv{kind}", f"{start}.bn{kind}"

    parts = {
        "lateral": [f"neck.lateral_convs.{i}.conv" for i in range(3)],
        "output": [f"neck.fpn_convs.{i}.conv" for i in range(3)],
        "extra": [f"neck.fpn_convs.{i}.conv" for i in (3, 4)],
    }
    levels = pyramid(net, resnet50(net, x, names, stride_in_1x1=stride_in_1x1), parts, relu=False)
    cls, box = ([f"bbox_head.{kind}_convs.{i}.conv" for i in range(4)] for kind in ("cls", "reg"))
    return [
        (
            head(net, level, cls, ("bbox_head.retina_cls", 9 * CLASSES)),
            head(net, level, box, ("bbox_head.retina_reg", 9 * 4)),
        )
        for level in levels
    ]


def cell_anchors(sizes: tuple[float, ...], *, by_size: bool) -> list[tuple[float, float]]:
    """Return width and height of the nine anchors of a cell."""
    pairs = [(s, r) for s in sizes for r in RATIOS] if by_size else []
    pairs = pairs or [(s, r) for r in RATIOS for s in sizes]
    return [(s / math.sqrt(r), s * math.sqrt(r)) for s, r in pairs]


def boxes_of(
    outputs: list[tuple[Tensor, Tensor]], side: int, *, by_size: bool, nms: float, score: float
) -> dict[str, NDArray[Any]]:
    """Decode anchor by anchor in float64, and apply NMS per class."""
    found: list[tuple[list[float], float, int]] = []
    for level, (logits, deltas) in enumerate(outputs):
        stride = 8 * 2**level
        for a, (width, height) in enumerate(cell_anchors(SIZES[level], by_size=by_size)):
            scores = logits[0, a * CLASSES : (a + 1) * CLASSES].double().sigmoid()
            for label, row, column in (scores > score).nonzero().tolist():
                dx, dy, dw, dh = deltas[0, 4 * a : 4 * a + 4, row, column].double().tolist()
                x, y = column * stride + dx * width, row * stride + dy * height
                w = width * math.exp(min(dw, math.log(1000 / 16)))
                h = height * math.exp(min(dh, math.log(1000 / 16)))
                box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, side).tolist()
                found.append((box, float(scores[label, row, column]), label))
    xyxy = torch.tensor([box for box, _, _ in found])
    scored, labels = torch.tensor([s for _, s, _ in found]), torch.tensor([n for *_, n in found])
    kept = batched_nms(xyxy, scored, labels, nms)
    return {
        "boxes": xyxy[kept].numpy(),
        "scores": scored[kept].numpy(),
        "labels": labels[kept].numpy(),
    }
