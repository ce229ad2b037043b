"""torch's compiler is not imported in our own processes, and a user's process is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
POSTPONE = """
from scenesweep.model.private_apis.torch_compiler import postpone_compiler_import
postpone_compiler_import()
"""


def output_of(code: str) -> list[str]:
    """Run code in a process of its own; return the words that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_process_of_ours_imports_no_compiler() -> None:
    code = f"""
{POSTPONE}
import sys, scenesweep.model.inference.detector
print("torchvision" in sys.modules, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    assert output_of(code) == ["True", "False", "False"]


def test_a_command_postpones_the_compiler_before_its_job_is_imported() -> None:
    code = """
import sys
from scenesweep.jobs.cli import main
sys.stdout, out = sys.stderr, sys.stdout
try:
    main(["evaluate", "--help"])
except SystemExit:
    pass
print("torchvision" in sys.modules, "torch._dynamo" in sys.modules, file=out)
"""
    assert output_of(code) == ["True", "False"]


def test_the_compiler_is_imported_on_first_use() -> None:
    """By torchvision's own question, by name, and through torch, in processes of their own."""
    question = f"""
{POSTPONE}
import scenesweep.model.inference.detector, sys
from torchvision.ops import roi_align
print(roi_align.__globals__["is_compile_supported"]("cpu"))
import torch._dynamo.utils as utils
print(utils.is_compile_supported is roi_align.__globals__["is_compile_supported"])
print(sys.modules["torch._dynamo.utils"] is utils, utils.__file__.endswith("utils.py"))
"""
    assert output_of(question) == ["True", "False", "True", "True"]
    by_name = f"""
{POSTPONE}
import scenesweep.model.inference.detector
from torch._dynamo.utils import counters
print(len(counters))
"""
    assert output_of(by_name) == ["0"]
    compiled = f"""
{POSTPONE}
import scenesweep.model.inference.detector, torch
print(int(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(()))))
"""
    assert output_of(compiled) == ["2"]


def test_a_users_process_keeps_its_compiler_threads_and_allocator() -> None:
    """The allocator: a large array still gets pages of its own from the system, as by default."""
    code = """
import sys, torch
import numpy as np
torch.set_num_threads(2)
from scenesweep import Detector
Detector.load("naip-trees", device="cpu").detect(np.zeros((1, 4, 64, 64), np.uint8))
compiler = sys.modules["torch._dynamo.utils"]
print(getattr(compiler, "__file__", "a stand-in").rpartition("torch")[2])
print(torch.get_num_threads())
if sys.platform == "linux":
    from tests.allocator import mapped_blocks
    before = mapped_blocks()
    array = np.ones(6_000_000)
    print(mapped_blocks() - before)
"""
    mapped = ["1"] if sys.platform == "linux" else []
    assert output_of(code) == ["/_dynamo/utils.py", "2", *mapped]
