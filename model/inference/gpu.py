"""What can be wrong with a GPU, and how much of its memory is in use."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

_RUINED = ("CUDA error", "cuDNN error", "CUDA driver error", "device-side assert")


def why_no_gpu() -> str:
    """Return why torch cannot use a GPU in this process; empty if it can.

    The text contains torch's own warnings, for example about a driver that is too old.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"expected a CUDA GPU, but torch {torch.__version__} is built for CPUs only"
    said = " ".join(dict.fromkeys(str(one.message) for one in heard))
    return "expected a CUDA GPU, found none" + (f": {' '.join(said.split())}" if said else "")


def fault_of(error: BaseException) -> Literal["memory", "context", ""]:
    """Tell an error of a GPU from other errors.

    `memory`: the GPU has too little memory left; a smaller load may still work. `context`: after
    this error, for example an illegal access or an ECC error, each further call of this process
    fails too. Empty: any other error.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "memory"
    if not isinstance(error, RuntimeError):
        return ""
    ruined = isinstance(error, torch.AcceleratorError) or any(w in str(error) for w in _RUINED)
    return "context" if ruined else ""


def free_cached_memory() -> None:
    """Give memory that torch keeps for later back to the GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def limit_memory(share: float) -> None:
    """Let this process use at most a share of the GPU's memory, because others use the rest."""
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share)


def peak_memory_bytes() -> int:
    """Return the most memory of the GPU that torch has reserved for this process."""
    return torch.cuda.max_memory_reserved()
