"""`python -m benchmarks.gpu --quick` on a CPU: every item runs or needs a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.figures import Figure
from benchmarks.gpu_timing import Bench

ROOT = Path(__file__).parents[2]
NEED_A_GPU = {"graphs", "compiled"}
BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.argv = ["gpu", "--quick", "--out", {out!r}]
import runpy
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_a_quick_run_without_ray_and_rasterio(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    names = {"ray", "rasterio", "shapely", "geopandas", "pyarrow", "scenesweep.pipeline"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(names=names, out=str(out))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    items = document["items"]
    assert set(items) == {item.name for item in (*gpu.ITEMS, gpu.COMPILED)}
    for name, item in items.items():
        assert item["error"].startswith("needs a GPU") == (name in NEED_A_GPU), item
        assert name in NEED_A_GPU or (item["figures"] and not item["error"]), item
        for figure in item["figures"]:
            assert figure["value"] >= 0
    assert set(document["targets"]) == {
        *("G1", "G2", "G2 readers", "G3", "G3 syncs", "G3 boxes", "G4", "G5")
    }
    assert document["targets"]["G3 boxes"]["value"] == 1
    assert document["targets"]["G3 syncs"] == {
        "what": "G3 syncs: in a batch",
        "value": None,
        "unit": "",
        "target": "<= 1",
        "met": None,
    }
    same = [f for f in items["invariance"]["figures"] if f["what"].startswith("equal")]
    assert [figure["value"] for figure in same] == [1]


def _fails(_: Bench) -> list[Figure]:
    raise ValueError("expected a kernel\nand more")


def _is_slow(_: Bench) -> list[Figure]:
    while True:
        pass


def _measures(_: Bench) -> list[Figure]:
    return [Figure("speed", 3.0, "chips/s")]


def test_an_item_that_fails_or_hangs_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    items = [
        gpu.Item("fails", _fails, 5),
        gpu.Item("hangs", _is_slow, 0.1),
        gpu.Item("works", _measures, 5),
    ]
    results = gpu.run(items, Bench(torch.device("cpu"), quick=True))
    assert [results[item.name]["error"] for item in items] == [
        "ValueError: expected a kernel",
        "TimeoutError: took more than 0 s",
        "",
    ]
    assert results["works"]["figures"][0]["value"] == 3
    assert "ValueError: expected a kernel\n" in capsys.readouterr().out


def test_items_are_chosen_by_name() -> None:
    chosen = gpu.chosen(["norms"], peers=False)
    assert chosen is not None
    assert [item.name for item in chosen] == ["ceilings", "norms"]
    assert gpu.chosen(["norm"], peers=False) is None
    assert gpu.chosen(None, peers=True) == [*gpu.ITEMS, gpu.COMPILED, gpu.PEERS]


def test_the_budgets_fit_into_eight_minutes() -> None:
    assert sum(item.budget_s for item in gpu.ITEMS) <= gpu.TOTAL_S
    assert gpu.TOTAL_S <= 480
