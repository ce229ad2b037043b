"""Private APIs of other libraries that we depend on: all of them, each tried once.

When one fails after an update, the message says what it was for and what to do. The last test
fails when a private name of another library is used anywhere else.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class PrivateApi:
    """A private API: its name, our file that uses it, what for, what to do without it, a trial."""

    name: str
    file: str
    purpose: str
    without_it: str
    attempt: Callable[[], None]


def _nnpack() -> None:
    from scenesweep.model.private_apis.torch import nnpack_convolution

    if not torch.backends.nnpack.is_available():
        assert callable(torch._nnpack_spatial_convolution)
        return
    maps, weight = torch.rand(1, 3, 9, 9), torch.rand(2, 3, 3, 3)
    expected = torch.nn.functional.conv2d(maps, weight, padding=1)
    torch.testing.assert_close(
        nnpack_convolution(maps, weight, None), expected, rtol=1e-3, atol=1e-3
    )


def _bfloat16() -> None:
    from scenesweep.model.private_apis.torch import cpu_computes_bfloat16

    assert cpu_computes_bfloat16() in (True, False)


def _compiler() -> None:
    from torch._dynamo import utils
    from torchvision.ops import roi_align

    assert "is_compile_supported" in roi_align.__globals__
    assert list(inspect.signature(utils.is_compile_supported).parameters) == ["device_type"]


def _mallopt() -> None:
    import ctypes

    if sys.platform == "linux":
        assert ctypes.CDLL(None).mallopt is not None


def _box_coder() -> None:
    from scenesweep.model.private_apis.torchvision import BoxCoder

    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    box, anchor = torch.tensor([[2.0, 3.0, 8.0, 7.0]]), torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    deltas = coder.encode_single(box, anchor)
    torch.testing.assert_close(coder.decode_single(deltas, anchor), box)


def _keep_proposals() -> None:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from scenesweep.model.private_apis.torchvision import keep_proposals

    with torch.device("meta"):
        detector = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    keep_proposals(detector, 7)
    assert detector.rpn.post_nms_top_n() == 7


def _gdal_library() -> None:
    import rasterio

    from scenesweep.pipeline.raster.private_rasterio import gdal_library

    library = gdal_library()
    with rasterio.Env() as env:
        assert library.GDALGetDriverCount() >= len(env.drivers())
    assert library.GDALGetDriverByName(b"GTiff")
    assert library.VSISetPathSpecificOption is not None


def _gdal_error() -> None:
    from scenesweep.pipeline.raster.private_rasterio import GdalError

    assert issubclass(GdalError, Exception)


def _key_value_store() -> None:
    from ray.experimental import internal_kv

    for name in ("_internal_kv_put", "_internal_kv_exists", "_internal_kv_del"):
        assert "namespace" in inspect.signature(getattr(internal_kv, name)).parameters


def _draining_nodes() -> None:
    from ray._private.state import state

    assert list(inspect.signature(state.get_draining_nodes).parameters) == []


def _affinity_that_spills() -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy("0" * 56, soft=True, _spill_on_unavailable=True)
    assert there.soft


def _argparse() -> None:
    from scenesweep.jobs.cli import Parser

    parser = Parser()
    parser.add_argument("--cities")
    assert "--cities" in parser._option_string_actions


APIS = [
    PrivateApi(
        "torch._nnpack_spatial_convolution",
        "model/private_apis/torch.py",
        "3 x 3 convolutions by Winograd's filtering on one thread of an AVX2 CPU",
        "let `use_winograd` return 0: detectors run without it, more slowly",
        _nnpack,
    ),
    PrivateApi(
        "torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported",
        "model/private_apis/torch.py",
        "`precision: auto` takes bfloat16 where the CPU has instructions for it",
        "look for a public name in torch.cpu (get_capabilities), or read /proc/cpuinfo",
        _bfloat16,
    ),
    PrivateApi(
        "torch._dynamo.utils.is_compile_supported, as torchvision.ops.roi_align imports it",
        "model/private_apis/torch_compiler.py",
        "a stand-in saves the import of torch's compiler, seconds at every start of a detector",
        "delete the module and its two calls: everything works, processes start more slowly",
        _compiler,
    ),
    PrivateApi(
        "mallopt of the C library",
        "model/private_apis/glibc.py",
        "a detector's process keeps freed memory",
        "nothing: `keep_freed_memory` does nothing where mallopt is missing",
        _mallopt,
    ),
    PrivateApi(
        "torchvision.models.detection._utils.BoxCoder",
        "model/private_apis/torchvision.py",
        "box deltas as in torchvision's RetinaNet, whose weights we load",
        "copy the class (about 80 lines, BSD-3-Clause) into model/losses",
        _box_coder,
    ),
    PrivateApi(
        "RegionProposalNetwork._post_nms_top_n",
        "model/private_apis/torchvision.py",
        "Faster R-CNN, for comparison, passes on as many proposals as the card allows boxes",
        "pass rpn_post_nms_top_n_test to FasterRCNN when it is built",
        _keep_proposals,
    ),
    PrivateApi(
        "rasterio._env, loaded by ctypes",
        "pipeline/raster/private_rasterio.py",
        "takes drivers away from rasterio's GDAL, so that files cannot make it read other files",
        "find libgdal in rasterio's wheel (rasterio.libs) by name. Do not go on without it: "
        "docs/security.md promises it",
        _gdal_library,
    ),
    PrivateApi(
        "rasterio._err.CPLE_BaseError",
        "pipeline/raster/private_rasterio.py",
        "some errors of GDAL leave rasterio without being translated; they fail one scene only",
        "see whether rasterio.errors has them now, and put that class into `BROKEN`",
        _gdal_error,
    ),
    PrivateApi(
        "ray.experimental.internal_kv",
        "pipeline/engine/ray.py",
        "a task tells the driver that it started, so that time in Ray's queue is not counted",
        "use a named actor with a set of keys, or count a task's time from its submission",
        _key_value_store,
    ),
    PrivateApi(
        "ray._private.state.state.get_draining_nodes",
        "pipeline/engine/ray.py",
        "detectors on a node that was told to go get no more work",
        "return an empty set as `Cluster.leaving`: the work of such a node is done again elsewhere",
        _draining_nodes,
    ),
    PrivateApi(
        "NodeAffinitySchedulingStrategy(_spill_on_unavailable=...)",
        "pipeline/engine/ray.py",
        "a read runs on its detector's node, or elsewhere if that node is busy",
        "leave the argument out, and give a node only as many reads as it has CPUs for",
        _affinity_that_spills,
    ),
    PrivateApi(
        "argparse.ArgumentParser._option_string_actions",
        "jobs/cli.py",
        "an unknown option gets the nearest ones as a hint",
        "drop the hint, or collect the names from format_help()",
        _argparse,
    ),
]


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name.split(",")[0])
def test_it_still_works(api: PrivateApi) -> None:
    try:
        api.attempt()
    except Exception as error:
        pytest.fail(
            f"{api.name} is gone or works differently ({type(error).__name__}: {error}). "
            f"{api.file} uses it: {api.purpose}. What to do: {api.without_it}."
        )


def test_private_names_are_used_in_these_files_only() -> None:
    """An underscore in an import of another library, or in an attribute of what was imported."""
    allowed = {api.file for api in APIS}
    uses = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for top in ("model", "pipeline", "jobs")
        for path in sorted((ROOT / top).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in allowed
        for line, name in _private_names(ast.parse(path.read_text()))
    ]
    assert not uses, f"move them into a module of their own and add them to APIS: {uses}"


def _private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    foreign: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", "") or ""
            for alias in node.names:
                dotted = f"{module}.{alias.name}".strip(".")
                if dotted.split(".")[0] in ("scenesweep", "__future__"):
                    continue
                foreign.add((alias.asname or alias.name).split(".")[0])
                if any(_is_private(part) for part in dotted.split(".")):
                    yield node.lineno, dotted
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if (
                isinstance(root, ast.Name)
                and root.id in foreign
                and ast.unparse(node) != "os._exit"
            ):
                yield node.lineno, ast.unparse(node)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
