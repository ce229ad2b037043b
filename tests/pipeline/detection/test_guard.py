"""Errors of a GPU: which are they, and what becomes of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scenesweep.model.boxes import DetectorOutput
from scenesweep.model.inference import gpu
from scenesweep.pipeline.detection.guard import GuardedDetector
from scenesweep.pipeline.errors import DetectorLost, DetectorOutOfMemory
from tests.rasters import SquareDetector

CHIPS = np.zeros((2, 1, 64, 64), np.uint8)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
SICK = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class Failing(SquareDetector):
    """Raises the given errors, one for each call; then it detects."""

    runs_on = "cuda bfloat16"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        if self.errors:
            raise self.errors.pop(0)
        return super().detect(chips)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FULL, "memory"),
        (SICK, "context"),
        (RuntimeError("CUDA error: unspecified launch failure"), "context"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "context"),
        (RuntimeError("expected 4 channels, got 3"), ""),
        (ValueError("CUDA error"), ""),
        (MemoryError(), ""),
    ],
)
def test_faults_of_a_gpu_are_told_from_bugs(error: Exception, fault: str) -> None:
    assert gpu.fault_of(error) == fault


def test_little_memory_is_tried_once_more_with_the_same_batch() -> None:
    failing = Failing(FULL)
    assert len(GuardedDetector(failing).detect(CHIPS).capped) == 2
    assert failing.errors == []


def test_little_memory_twice_is_a_loss_for_memory() -> None:
    with pytest.raises(DetectorOutOfMemory, match=r"too little memory .*allocate 2 GiB.*batch"):
        GuardedDetector(Failing(FULL, FULL)).detect(CHIPS)


@pytest.mark.parametrize("errors", [(SICK,), (FULL, SICK)])
def test_a_failed_gpu_is_a_loss_of_the_detector(errors: tuple[Exception, ...]) -> None:
    with pytest.raises(DetectorLost, match=r"the GPU failed .*illegal memory access"):
        GuardedDetector(Failing(*errors)).detect(CHIPS)


def test_a_bug_stays_a_bug() -> None:
    bug = RuntimeError("expected 4 channels, got 3")
    with pytest.raises(RuntimeError) as raised:
        GuardedDetector(Failing(bug)).detect(CHIPS)
    assert raised.value is bug


def test_an_old_driver_is_named_with_torchs_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_driver() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found 11040)", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        why = gpu.why_no_gpu()
    assert why == (
        "expected a CUDA GPU, found none: The NVIDIA driver on your system is too old (found 11040)"
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built for CPUs only" in gpu.why_no_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.why_no_gpu() == ""
