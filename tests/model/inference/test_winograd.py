"""Winograd's convolutions find what direct ones find, where they are used at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.detector import load_detector
from scenesweep.model.inference.winograd import WinogradConv2d, use_winograd
from scenesweep.model.settings import DetectorSettings
from tests.small_models import a_model, noise

here = pytest.mark.skipif(
    use_winograd(nn.Sequential(nn.Conv2d(96, 96, 3, padding=1))) == 0,
    reason="needs AVX2, and torch with NNPACK",
)


def pair(**options: Any) -> tuple[nn.Conv2d, nn.Sequential]:
    """Return a convolution, and the same one in a network that may go the other way."""
    torch.manual_seed(0)
    direct = nn.Conv2d(96, 128, 3, **({"padding": 1} | options)).eval()
    other = nn.Sequential(nn.Conv2d(96, 128, 3, **({"padding": 1} | options))).eval()
    other[0].load_state_dict(direct.state_dict())
    return direct, other.to(memory_format=torch.channels_last)


@here
@pytest.mark.parametrize("shape", [(1, 96, 40, 40), (3, 96, 25, 41), (2, 96, 1, 1000)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_convolution_is_the_same_up_to_rounding(shape: tuple[int, ...], bias: bool) -> None:
    direct, other = pair(bias=bias)
    assert use_winograd(other) == 1
    chips = torch.randn(shape).to(memory_format=torch.channels_last)
    expected, got = direct(chips), other(chips)
    assert got.shape == expected.shape
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    for chip in range(len(chips)):
        assert torch.equal(other(chips[chip : chip + 1])[0], got[chip])


@here
@torch.inference_mode()
def test_small_maps_go_the_direct_way() -> None:
    direct, other = pair()
    use_winograd(other)
    chips = torch.randn(1, 96, 31, 32)
    assert torch.equal(other(chips), direct(chips))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding": 0},
        {"groups": 2},
        {"padding_mode": "reflect"},
    ],
)
def test_other_convolutions_are_left_alone(options: dict[str, Any]) -> None:
    _, other = pair(**options)
    assert use_winograd(other) == 0
    assert type(other[0]) is nn.Conv2d


@here
@pytest.mark.parametrize("name", ["naip-trees", "overhead-buildings"])
def test_a_detector_finds_the_same(name: str) -> None:
    model = open_model(name)
    low = model.card.inference.model_copy(update={"score_threshold": 0.02})
    auto, direct = (
        load_detector(model, DetectorSettings(device="cpu", **how), inference=low)
        for how in ({"precision": "float32"}, {"precision": "float32", "convolution": "direct"})
    )
    assert auto.runs_on == "cpu float32 winograd"
    assert direct.runs_on == "cpu float32"
    assert any(isinstance(layer, WinogradConv2d) for layer in auto.network.modules())
    chips = noise(2, len(model.card.bands), 256)
    expected, got = direct.detect(chips).boxes, auto.detect(chips).boxes
    assert len(got) == len(expected) > 0
    np.testing.assert_allclose(got.score, expected.score, atol=1e-5)
    np.testing.assert_allclose(got.xyxy, expected.xyxy, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "runs_on"),
    [({"precision": "bfloat16"}, "cpu bfloat16"), ({"threads": 2}, "cpu float32")],
)
def test_others_go_the_direct_way(tmp_path: Path, settings: dict[str, Any], runs_on: str) -> None:
    how = DetectorSettings(**({"device": "cpu", "precision": "float32"} | settings))
    assert load_detector(a_model(tmp_path), how).runs_on == runs_on
