# ruff: noqa: T201
"""The tutorial of docs/tutorial.md as one script: `python docs/tutorial.py FOLDER`.

It paints a small suburb, sweeps it twice, and reads the table of detections. It writes only to
FOLDER. Tests run it.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import geopandas
import numpy as np
import rasterio

from scenesweep import Detector, sweep
from scenesweep.jobs.demo import write_scene
from scenesweep.jobs.suburb import paint_suburb


def main(folder: Path) -> None:
    scene = folder / "suburb.tif"
    write_scene(scene, paint_suburb(512, seed=3))

    # Plan, read, detect, merge and publish the scene in this process.
    run = sweep(scene, "naip-trees", folder / "out")
    (result,) = run.results
    print(f"{result.status}: {result.detections} detections in {result.windows} windows")

    # The table has longitude and latitude; `x_min` to `y_max` are scene pixels.
    trees = geopandas.read_parquet(result.files["detections"])
    print(trees[["class_name", "score", "center_lon", "center_lat"]].head(3))

    # Trees per block of 100 m; each tree counts once, by its centre.
    centres = trees.to_crs(trees.estimate_utm_crs()).centroid
    blocks = Counter(zip(centres.x // 100, centres.y // 100, strict=True))
    print(f"{len(trees)} trees in {len(blocks)} blocks, {max(blocks.values())} in the fullest")

    # Other merge settings need no new detection: the staged parts are reused.
    run = sweep(scene, "naip-trees", folder / "out", merge={"min_scores": {"tree": 0.6}})
    (again,) = run.results
    print(f"{again.detections} with a score of 0.6; {again.resumed_shards} shards reused")

    # The detector alone: chips in, boxes out, without georeference.
    detector = Detector.load("naip-trees")
    with rasterio.open(scene) as dataset:
        chip = dataset.read()[None, :, :256, :256]
    detected = detector.detect(np.ascontiguousarray(chip))
    print(f"{len(detected.boxes)} boxes in a chip of {detector.card.gsd_m} m a pixel")
    print(Counter(detector.card.classes[label] for label in detected.boxes.label))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/tutorial.py FOLDER (the folder to write to)")
    main(Path(sys.argv[1]))
