"""torch's compiler stays out of processes that do not use it; a detector keeps its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def said(code: str) -> list[str]:
    """Run code in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_detector_imports_no_compiler() -> None:
    code = """
import sys, model.inference.detector
print("torchvision" in sys.modules, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    assert said(code) == ["True", "False", "False"]


def test_the_compiler_is_there_for_who_asks() -> None:
    """By torchvision's own question, by name, and through torch, in processes of their own."""
    asked = """
import scenesweep.model.inference.detector, sys
from torchvision.ops import roi_align
print(roi_align.__globals__["is_compile_supported"]("cpu"))
import torch._dynamo.utils as utils
print(utils.is_compile_supported is roi_align.__globals__["is_compile_supported"])
print(sys.modules["torch._dynamo.utils"] is utils, utils.__file__.endswith("utils.py"))
"""
    assert said(asked) == ["True", "False", "True", "True"]
    named = (
        "import scenesweep.model.inference.detector; "
        "from torch._dynamo.utils import counters; print(len(counters))"
    )
    assert said(named) == ["0"]
    compiled = """
import scenesweep.model.inference.detector, torch
print(int(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(()))))
"""
    assert said(compiled) == ["2"]


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
def test_memory_that_was_freed_is_used_again() -> None:
    """And not asked of the system anew, page by page."""
    code = """
import resource, numpy as np
from scenesweep.model.inference.lean import keep_freed_memory
keep_freed_memory()
for turn in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a, b = np.ones(6_000_000), np.ones(300_000)
    del a, b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(said(code)[0]) < 1_000  # of 12,000 pages
