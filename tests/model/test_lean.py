"""torch's compiler stays out of processes that do not use it, and is whole where it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def said(code: str) -> list[str]:
    """Run code in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_detector_imports_no_compiler() -> None:
    code = """
import sys, model.detector
print("torchvision" in sys.modules, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    assert said(code) == ["True", "False", "False"]


def test_the_compiler_is_there_for_who_asks() -> None:
    """By torchvision's own question, by name, and through torch, in processes of their own."""
    asked = """
import model.detector, sys
from torchvision.ops import roi_align
print(roi_align.__globals__["is_compile_supported"]("cpu"))
import torch._dynamo.utils as utils
print(utils.is_compile_supported is roi_align.__globals__["is_compile_supported"])
print(sys.modules["torch._dynamo.utils"] is utils, utils.__file__.endswith("utils.py"))
"""
    assert said(asked) == ["True", "False", "True", "True"]
    named = "import model.detector; from torch._dynamo.utils import counters; print(len(counters))"
    assert said(named) == ["0"]
    compiled = """
import model.detector, torch
print(int(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(()))))
"""
    assert said(compiled) == ["2"]
