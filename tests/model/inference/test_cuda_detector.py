"""On a GPU only: the detector's slots, streams and graphs give the boxes of plain calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scenesweep.model.inference.detector import load_detector
from scenesweep.model.inference.windows import chips_of, windows_of
from scenesweep.model.settings import DetectorSettings
from tests.model.inference.test_develop import source_windows
from tests.small_models import a_model, noise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = DetectorSettings(device="cuda", precision="float32", batch=4)


def test_cuda_boxes_are_those_of_the_cpu(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    on_cpu = load_detector(model, DetectorSettings(device="cpu", precision="float32", batch=4))
    ours, theirs = load_detector(model, CUDA).detect(noise(9)), on_cpu.detect(noise(9))
    assert len(ours.boxes) == pytest.approx(len(theirs.boxes), rel=0.01)
    assert np.sort(ours.boxes.score)[-20:] == pytest.approx(np.sort(theirs.boxes.score)[-20:], 1e-3)


def test_cuda_batches_in_flight_do_not_mix(tmp_path: Path) -> None:
    detector = load_detector(a_model(tmp_path), CUDA)
    chips = noise(24)
    shards = [chips_of(chips[first : first + 4]) for first in range(0, 24, 4)]
    alone = [detector.collect(detector.submit(shard)) for shard in shards]
    tickets = [detector.submit(shard) for shard in shards]
    for ticket, output in zip(tickets, alone, strict=True):
        found = detector.collect(ticket)
        np.testing.assert_array_equal(found.boxes.xyxy, output.boxes.xyxy)
        np.testing.assert_array_equal(found.boxes.score, output.boxes.score)


def test_cuda_windows_are_cut_as_on_the_host(tmp_path: Path) -> None:
    detector = load_detector(a_model(tmp_path), CUDA)
    shard = windows_of(noise(1, size=128)[0], np.array([[0, 0], [32, 8], [64, 64]]), size=(64, 64))
    found, wanted = detector.collect(detector.submit(shard)), detector.detect(shard.chips())
    np.testing.assert_array_equal(found.boxes.xyxy, wanted.boxes.xyxy)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_cuda_source_pixels_are_developed_as_on_the_host(tmp_path: Path, dtype: str) -> None:
    detector = load_detector(a_model(tmp_path), CUDA)
    source = source_windows(dtype)
    found, wanted = detector.collect(detector.submit(source)), detector.detect(source.chips())
    np.testing.assert_array_equal(found.boxes.xyxy, wanted.boxes.xyxy)
    np.testing.assert_array_equal(found.boxes.score, wanted.boxes.score)
