"""Windows in blocks of pixels equal the chips that are cut from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenesweep.model.inference.windows import Windows, chips_of, fill, in_batches, windows_of


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Windows, np.ndarray]:
    """Draw windows of 4 x 6 pixels with 2 bands, and their chips, cut one by one."""
    height, width = draw(st.integers(4, 12)), draw(st.integers(6, 12))
    pixels = np.random.default_rng(height * width).integers(0, 256, (2, height, width), np.uint8)
    corner = st.tuples(st.integers(0, height - 4), st.integers(0, width - 6))
    corners = np.array(draw(st.lists(corner, min_size=1, max_size=7)))
    chips = np.stack([pixels[:, y : y + 4, x : x + 6] for y, x in corners])
    if draw(st.booleans()):
        return chips_of(chips), chips
    return windows_of(pixels, corners, size=(4, 6)), chips


@given(blocks())
def test_windows_are_the_chips_at_their_corners(block: tuple[Windows, np.ndarray]) -> None:
    windows, chips = block
    assert len(windows) == len(chips)
    np.testing.assert_array_equal(windows.chips(), chips)
    np.testing.assert_array_equal(windows.part(1, 3).chips(), chips[1:3])
    np.testing.assert_array_equal(next(windows.compact()).chips(), chips)


@given(st.lists(blocks(), max_size=4), st.integers(1, 5))
def test_batches_fill_their_buffers_in_order(
    drawn: list[tuple[Windows, np.ndarray]], batch: int
) -> None:
    found = []
    batches = list(in_batches([windows for windows, _ in drawn], batch))
    for parts in batches:
        pixels, starts = np.zeros(batch * 48, np.uint8), np.full((batch, 3), 9)
        places = fill(parts, pixels, starts)
        windows = sum(map(len, parts))
        assert places[-1].stop <= len(pixels)
        assert not starts[windows:].any()
        found += list(Windows(pixels, starts[:windows], (2, 4, 6)).chips())
    assert [len(found)] == [sum(len(chips) for _, chips in drawn)]
    assert all(sum(map(len, parts)) == batch for parts in batches[:-1])
    for ours, chip in zip(found, (chip for _, chips in drawn for chip in chips), strict=True):
        np.testing.assert_array_equal(ours, chip)


def test_overlaps_are_not_copied() -> None:
    windows = windows_of(np.zeros((1, 12, 12), np.uint8), np.array([[0, 0], [4, 4]]), size=(8, 8))
    whole = windows_of(np.zeros((1, 12, 12), np.uint8), np.array([[0, 0]] * 3), size=(8, 8))
    assert (
        next(windows.compact()).pixels.size == 2 * 64
    )  # 144 pixels are more than those of two chips
    assert next(whole.compact()) is whole


def test_a_window_outside_its_block_is_refused() -> None:
    with pytest.raises(ValueError, match="inside"):
        windows_of(np.zeros((1, 8, 8), np.uint8), np.array([[1, 0]]), size=(8, 8))
