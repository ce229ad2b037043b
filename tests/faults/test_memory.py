"""What a reader takes of files that claim just as much as is allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rasterio

from tests.rasters import TRANSFORM, UTM

ROOT = Path(__file__).parents[2]
MOST_MIB = 1500
FILES: dict[str, dict[str, Any]] = {
    "a tile of 256 MiB of float64": {"size": 5_792, "block": 5_792, "dtype": "float64"},
    "1,000 bands in one block": {"size": 1024, "block": 512, "count": 1000, "interleave": "pixel"},
    "13 bands of float64": {"size": 3072, "block": 512, "count": 13, "dtype": "float64"},
    "13 bands of uint16": {"size": 3072, "block": 512, "count": 13, "dtype": "uint16"},
}
READ = """
import json, sys
from pathlib import Path
from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.raster.source_chips import read_for_detector
from tests.faults.hostile import peak_mib
from tests.rasters import make_card, make_job, ref_of
bands, gsd_m, as_source = json.loads(sys.argv[2])
card = make_card(chip_px=512, bands=list(range(1, bands + 1)), gsd_m=gsd_m)
plan = plan_scene(ref_of(sys.argv[1]), make_job(Path("unused"), card=card))
for number in plan.layout.numbers[:2]:
    shard = plan.layout.shard(int(number))
    chips = read_for_detector(plan.source, shard, as_source=as_source)
    assert type(chips).__name__ == ("SourceChips" if as_source else "Chips")
print(peak_mib())
"""


@pytest.mark.parametrize(
    ("about", "gsd_m", "as_source"),
    [
        *((about, 0.6, False) for about in FILES),
        ("13 bands of float64", 2.4, False),
        ("13 bands of uint16", 0.6, True),
        ("13 bands of uint16", 0.45, True),
    ],
)
def test_a_reader_stays_small(tmp_path: Path, about: str, gsd_m: float, as_source: bool) -> None:
    """Sparse files: a few hundred bytes that unfold to all they claim."""
    shape: dict[str, Any] = {"count": 1, "dtype": "uint8", "interleave": "band"}
    shape |= FILES[about]
    size, block = shape.pop("size"), shape.pop("block")
    path = tmp_path / "s.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size,
        height=size,
        crs=UTM,
        transform=TRANSFORM,
        tiled=True,
        blockxsize=block,
        blockysize=block,
        compress="deflate",
        sparse_ok=True,
        **shape,
    ):
        pass
    bands = shape["count"] if shape["count"] < 100 else 1
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        READ,
        str(path),
        json.dumps([bands, gsd_m, as_source]),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < MOST_MIB
