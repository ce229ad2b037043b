"""Varied chips: boxes follow their pixels, and everything follows from the seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.settings import Augmentation
from scenesweep.model.training.augment import Augmenter, Example, chip_seed
from scenesweep.model.training.colour import change_colours
from tests.rasters import make_card

PLAIN: dict[str, Any] = {"turns": False, "band_jitter": 0.0}


def four_bands(**changes: Any) -> ModelCard:
    bands = {"bands": ("red", "green", "blue", "nir"), "missing_bands_ok": ("nir",)}
    return make_card(**bands, scaling={"mean": (0.1, 0.2, 0.3, 0.4), "std": (0.1,) * 4}, **changes)


def painted(size: int = 64, bands: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A dark chip with a bright rectangle, and its box."""
    chip = np.zeros((bands, size, size), np.uint8)
    chip[:, 10:22, 34:54] = 200
    return chip, np.array([[34, 10, 54, 22]], np.float32)


def vary(
    chip: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    seed: int,
    *,
    points: bool = False,
    card: ModelCard | None = None,
    **augmentation: Any,
) -> Example:
    augment = Augmenter(
        card or make_card(),
        Augmentation(**augmentation),
        chip_px=chip.shape[-1],
        points=points,
    )
    example = augment(chip, boxes, np.arange(len(boxes)), seed=seed)
    assert example.pixels.dtype == torch.uint8
    return replace(example, pixels=change_colours(example.pixels, example.colour))


def test_turns_are_the_eight_symmetries_and_boxes_follow() -> None:
    chip, boxes = painted()
    chip[0, 10, 34] = 255  # a corner, so that all eight differ
    seen = set()
    for seed in range(80):
        example = vary(chip, boxes, seed, band_jitter=0.0)
        x0, y0, x1, y1 = example.boxes[0].int().tolist()
        assert (example.pixels[0, y0:y1, x0:x1] > 0).all()
        assert example.pixels.sum() == chip.sum()
        seen.add(example.pixels.numpy().tobytes())
    assert len(seen) == 8


@given(
    seed=st.integers(0, 2**63 - 1),
    size=st.sampled_from([64, 96]),
    stretch=st.sampled_from([1.0, 1.5]),
)
@settings(max_examples=60, deadline=None)
def test_boxes_follow_their_pixels_through_scale_and_crop(
    seed: int, size: int, stretch: float
) -> None:
    chip, boxes = painted(size=64)
    dark = make_card(scaling={"mean": (0.0,), "std": (0.25,)})
    example = vary(
        *(chip, boxes, seed),
        card=dark,
        scale=(0.6, 1.6),
        stretch=stretch,
        crop_px=size,
        band_jitter=0.0,
        min_visible=0.5,
    )
    bright = torch.nonzero(example.pixels[0] > 100)
    if not len(example.boxes):
        return
    y0, x0 = bright.amin(dim=0)
    y1, x1 = bright.amax(dim=0) + 1
    painted_box = torch.stack([x0, y0, x1, y1]).float()
    assert (example.boxes[0] - painted_box).abs().max() <= 1.0
    assert (example.boxes >= 0).all()
    assert (example.boxes <= example.pixels.shape[-1]).all()


def test_boxes_are_cut_at_a_crop_or_dropped_and_points_stay_whole() -> None:
    chip = np.zeros((1, 128, 128), np.uint8)
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 100, (40, 2)).astype(np.float32)
    boxes = np.hstack([corners, corners + rng.integers(6, 28, (40, 1))]).astype(np.float32)
    sides = boxes[:, 2] - boxes[:, 0]
    for seed in range(20):
        cut = vary(chip, boxes, seed, crop_px=64, min_visible=0.5, **PLAIN)
        widths, heights = (cut.boxes[:, 2:] - cut.boxes[:, :2]).T
        left = (widths * heights).numpy() / sides[cut.labels.numpy()] ** 2
        assert (left >= 0.5).all()
        whole = vary(chip, boxes, seed, points=True, crop_px=64, **PLAIN)
        assert (whole.boxes[:, 2] - whole.boxes[:, 0]).tolist() == sides[whole.labels].tolist()
        centres = (whole.boxes[:, :2] + whole.boxes[:, 2:]) / 2
        assert ((centres >= 0) & (centres < 64)).all()
        offset = whole.boxes[0] - torch.from_numpy(boxes)[whole.labels[0]]
        moved = torch.from_numpy(boxes) + offset
        middle = (moved[:, :2] + moved[:, 2:]) / 2
        inside = ((middle >= 0) & (middle < 64)).all(dim=1)
        assert whole.labels.tolist() == torch.nonzero(inside).squeeze(1).tolist()


def test_squares_over_the_edge_stay_whole_when_nothing_is_cropped() -> None:
    chip = np.zeros((1, 64, 64), np.uint8)
    boxes = np.array([[-4, 60, 8, 72]], np.float32)
    for seed in range(8):
        example = vary(chip, boxes, seed, points=True)
        width, height = (example.boxes[0, 2:] - example.boxes[0, :2]).tolist()
        assert (width, height) == (12, 12)
        assert len(example.boxes) == len(example.labels) == 1


def test_padding_is_the_mean_of_each_band() -> None:
    chip = np.full((4, 64, 64), 250, np.uint8)
    none = np.zeros((0, 4), np.float32)
    example = vary(chip, none, 5, card=four_bands(), scale=(0.5, 0.5), **PLAIN)
    for band, mean in enumerate((0.1, 0.2, 0.3, 0.4)):
        values = set(example.pixels[band].unique().tolist())
        assert values == {250.0, float(round(255 * mean))}
    assert example.boxes.shape == (0, 4)


def test_only_bands_that_may_be_missing_are_blanked() -> None:
    chip = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    none = np.zeros((0, 4), np.float32)
    blank = 0
    for seed in range(200):
        pixels = vary(chip, none, seed, card=four_bands(), band_dropout=0.4, **PLAIN).pixels
        assert (pixels[:3] == torch.from_numpy(chip[:3])).all()
        if (pixels[3] == 102).all():
            blank += 1
        else:
            assert (pixels[3] == torch.from_numpy(chip[3])).all()
    assert 55 <= blank <= 105


def test_jitter_changes_each_band_linearly_within_range() -> None:
    chip = np.random.default_rng(0).integers(100, 150, (4, 64, 64), np.uint8)
    none = np.zeros((0, 4), np.float32)
    gains = []
    for seed in range(60):
        pixels = vary(chip, none, seed, card=four_bands(), turns=False, band_jitter=0.2).pixels
        assert 0 <= pixels.min() <= pixels.max() <= 255
        for before, after in zip(chip, pixels.numpy(), strict=True):
            if after.min() > 0 and after.max() < 255:
                gain, offset = np.polyfit(before.ravel(), after.ravel(), 1)
                assert np.allclose(before * gain + offset, after, atol=1e-2)
                gains.append(gain)
    assert np.mean(gains) == pytest.approx(1, abs=0.05)
    assert np.std(gains) == pytest.approx(np.hypot(0.1, 0.1), rel=0.35)


def test_equal_seeds_give_equal_examples_whatever_was_drawn_before() -> None:
    chip, boxes = painted()
    everything: dict[str, Any] = {"scale": (0.7, 1.4), "band_jitter": 0.3}
    one = vary(chip, boxes, 7, **everything)
    state = torch.get_rng_state()
    torch.rand(3)
    torch.set_rng_state(state)
    two = vary(chip, boxes, 7, **everything)
    assert torch.equal(one.pixels, two.pixels)
    assert torch.equal(one.boxes, two.boxes)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one.pixels, vary(chip, boxes, 8, **everything).pixels)
    seeds = {chip_seed(s, e, i) for s in range(-1, 3) for e in range(4) for i in range(50)}
    assert len(seeds) == 4 * 4 * 50


def test_chips_may_be_read_only() -> None:
    chip, boxes = painted()
    chip.setflags(write=False)
    boxes.setflags(write=False)
    vary(chip, boxes, 1, scale=(0.9, 1.1))
    assert chip.max() == 200


def test_crops_must_suit_the_network() -> None:
    chip, boxes = painted(size=66)
    with pytest.raises(ModelError, match=r"crops: expected a multiple of 8 px, got 66"):
        vary(chip, boxes, 1)


def test_the_ratio_of_width_to_height_is_drawn_within_its_range() -> None:
    chip, boxes = painted(size=64)
    ratios = []
    for seed in range(40):
        example = vary(chip, boxes, seed, stretch=1.5, crop_px=128, turns=False, band_jitter=0.0)
        width, height = (example.boxes[0, 2:] - example.boxes[0, :2]).tolist()
        before = (boxes[0, 2] - boxes[0, 0]) / (boxes[0, 3] - boxes[0, 1])
        ratios.append(width / height / before)
        assert width * height == pytest.approx(float((boxes[0, 2:] - boxes[0, :2]).prod()), rel=0.1)
    assert 1 / 1.6 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.6
