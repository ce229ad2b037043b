"""P1 and P2: whole processes on one scene, the same weights, chips and overlap."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from benchmarks.figures import Figure, at_least, tell
from benchmarks.peers.make_model import enlarged
from scenesweep.jobs.demo import CRS
from scenesweep.jobs.suburb import PX_M, paint_suburb
from scenesweep.model.boxes import Boxes
from scenesweep.model.evaluate import Comparison, Rule, find_matches

PATCH, OVERLAP = 800, 0.05
ENLARGED = 2
"""The scene is at the network's own scale: where tools enlarge it themselves, they round apart."""
ORIGIN_M = (319_000.0, 3_775_000.0)
"""Where a metre of UTM is a metre of ground, so that no tool resamples."""
COLUMNS = ["xmin", "ymin", "xmax", "ymax", "score"]
PEERS = {
    "deepforest-window": ("run_deepforest.py", "deepforest", "window"),
    "deepforest-single": ("run_deepforest.py", "deepforest", "single"),
    "sahi": ("run_sahi.py", "torchvision.pth", "-"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", default=[], help=", ".join(PEERS))
    parser.add_argument("--bench", type=Path, default=Path(".bench"))
    parser.add_argument("--across", type=int, default=8, help="chips across the square scene")
    parser.add_argument("--set", action="append", default=[], help="settings of our own run")
    arguments = parser.parse_args()
    bench = arguments.bench
    scene = write_rgb(bench, arguments.across)
    before = computed()
    ours, own_s = run_ours(bench, scene, arguments.set)
    own_computed = computed() - before
    figures = [Figure(f"scenesweep, {arguments.across**2} chips", own_s, "s")]
    figures.append(Figure("scenesweep: processors computed", own_computed, "s"))
    figures.append(Figure("scenesweep: detections", len(ours), ""))
    boxes = {}
    for name in arguments.peers or PEERS:
        before = computed()
        theirs, seconds = run_peer(bench, scene, *PEERS[name])
        theirs_computed, boxes[name] = computed() - before, theirs
        figures += [
            Figure(f"{name}", seconds, "s"),
            Figure(f"{name}: processors computed", theirs_computed, "s"),
            Figure(f"{name}: computed against ours", theirs_computed / own_computed, "x"),
            Figure(f"{name}: detections", len(theirs), ""),
            at_least(f"{name}: times as long as ours", seconds / own_s, "x", 5),
            at_least(f"{name}: agreement, F at IoU 0.5", agreement(ours, theirs), "", 0.99),
        ]
    figures += [
        Figure(f"{one} with {other}: agreement", agreement(boxes[one], boxes[other]), "")
        for one, other in combinations(boxes, 2)
    ]
    name = "peers" if arguments.across == 8 else f"peers-{arguments.across**2}-chips"
    tell(name, figures, settings=arguments.set)


def computed() -> float:
    """Return the seconds that all processors have computed since the machine started.

    Run alone, a difference of these says what a process cost also where other machines take
    the processors away (steal), which the clock on the wall cannot tell.
    """
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def run_ours(bench: Path, scene: Path, settings: list[str]) -> tuple[NDArray[np.float64], float]:
    """Sweep with our command; return boxes with scores (N, 5), scene pixels, and seconds."""
    out = bench / "out"
    shutil.rmtree(out, ignore_errors=True)
    margin = round(PATCH * OVERLAP / 2)
    # The peers report all that a patch has, also of ground that its neighbour sees better.
    given = [f"tiling.chip={PATCH}", f"tiling.margin={margin}", f"tiling.slack={margin}"]
    given += ["merge.iou=0.15"]
    given += ["detect.score_threshold=0.3", *settings]
    command = [sys.executable, "-m", "scenesweep.jobs.detect", str(scene), "--address", "local"]
    command += ["--model", str(bench / "model" / "scenesweep.safetensors"), "--out", str(out)]
    started = time.monotonic()
    subprocess.run([*command, *(f"--set={one}" for one in given)], check=True)
    seconds = time.monotonic() - started
    (table,) = out.glob("detections/date=*/*.parquet")
    columns = ["x_min", "y_min", "x_max", "y_max", "score"]
    found = pq.read_table(table, columns=columns, partitioning=None)
    return np.stack([found[name].to_numpy() for name in columns], axis=1), seconds


def run_peer(
    bench: Path, scene: Path, script: str, weights: str, strategy: str
) -> tuple[NDArray[np.float64], float]:
    """Sweep with another tool in its environment; return boxes with scores and seconds."""
    out = bench / "found.csv"
    python = bench / "venv" / "bin" / "python"
    path = Path(__file__).parent / script
    arguments = [scene, bench / "model" / weights, strategy, PATCH, OVERLAP, out]
    started = time.monotonic()
    subprocess.run(
        [str(python), str(path), *map(str, arguments)],
        check=True,
        env=os.environ | {"TORCH_HOME": str(bench / "torch")},
    )
    seconds = time.monotonic() - started
    return pd.read_csv(out)[COLUMNS].to_numpy(), seconds


def agreement(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Return the F-score of our boxes with theirs as the truth, matched at IoU 0.5."""
    count = len(ours)
    found = Boxes(
        ours[:, :4].astype(np.float32),
        ours[:, 4].astype(np.float32),
        np.zeros(count, np.int16),
        np.zeros(count, np.int32),
    )
    sample = Comparison("scene", found, theirs[:, :4], np.zeros(len(theirs), np.int64))
    return find_matches([sample], Rule(iou=0.5)).count().curve().row(0).f_score


def write_rgb(bench: Path, across: int) -> Path:
    """Write a painted suburb in red, green and blue, unless it exists; return its file.

    It is a little smaller than `across` x `across` windows, so that rounding adds none.
    """
    side = PATCH + (across - 1) * round(PATCH * (1 - OVERLAP)) - 20
    path = bench / f"suburb-{side}.tif"
    if path.exists():
        return path
    bench.mkdir(parents=True, exist_ok=True)
    pixels = enlarged(paint_suburb(side // ENLARGED, seed=23).pixels[:3], ENLARGED)
    size = PX_M / ENLARGED
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=3,
        dtype="uint8",
        crs=CRS,
        transform=from_origin(*ORIGIN_M, size, size),
        photometric="RGB",
        tiled=True,
    ) as dataset:
        dataset.write(pixels)
    return path


if __name__ == "__main__":
    main()
