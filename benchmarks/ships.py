"""The figures of the card ships-10m on ports that its folds left out: whole scenes, F at IoU 0.3.

It sweeps the scenes of each fold with the model of that fold, in three forms: as they are, as
16-bit reflectance times 10,000, and without near infrared. Detections of all folds are evaluated
together at one threshold, that with the best F on the scenes as they are. Open water is what is
darker than 0.1 in near infrared and more than 300 m away from land, which is connected ground
brighter than that of more than 0.2 km2. A detection there is a false alarm if it touches no ship.

    scenesweep train --folds 3 … --out run      # docs/model.md has the command
    python -m benchmarks.ships --run run --data sentinel2_ships_nir
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.figures import Figure, at_least, at_most, tell
from scenesweep import sweep
from scenesweep.model.evaluate import Comparison, Rule, bootstrap, find_matches
from scenesweep.pipeline.labels import LabelSettings, read_objects
from scenesweep.pipeline.results.accuracy import PublishedDetections, compare_scene, open_published

Form = Literal["as they are", "16-bit reflectance", "without near infrared"]
RULE = Rule(iou=0.3)
WHITE = 4000
"""Reflectance times 10,000 that is 255 in the scenes of the data set."""
DARK, LAND_KM2, AWAY_M = 0.1, 0.2, 300.0
LOWEST = 0.05


@dataclass(frozen=True, slots=True)
class Port:
    """A scene that a fold left out: what was found there, and its open water."""

    comparison: Comparison
    water: NDArray[np.bool_]
    pixel_km2: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the --out of scenesweep train")
    parser.add_argument("--data", type=Path, required=True, help="folder of sentinel2_ships_nir")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    threshold = None
    for form in get_args(Form):
        with tempfile.TemporaryDirectory() as folder:
            ports = ports_of(arguments.run, arguments.data, form, Path(folder))
        curve = find_matches([port.comparison for port in ports], RULE).count().curve()
        threshold = threshold or curve.best().threshold
        figures += figures_of(form, ports, threshold)
    tell("ships", figures, threshold=threshold)


def ports_of(run: Path, data: Path, form: Form, folder: Path) -> list[Port]:
    """Sweep the scenes of all folds in one form with the models that never saw them."""
    ports = []
    for names in sorted(run.glob("fold-*.txt")):
        scenes = [
            in_form(data / "images" / f"{name}.tif", form, folder / "scenes")
            for name in names.read_text(encoding="utf-8").split()
        ]
        out = folder / names.stem
        sweep(scenes, names.with_suffix(".safetensors"), out, detect={"score_threshold": LOWEST})
        published = open_published(out, [str(scene) for scene in scenes])
        objects, _ = read_objects(
            data / "annotations_coco.json",
            [scene.scene for scene in published],
            ("ship",),
            LabelSettings(),
        )
        for scene in published:
            comparison = compare_scene(scene, objects[scene.scene.id], ("ship",), None)
            ports.append(port_of(scene, comparison, data / "images"))
    return ports


def in_form(path: Path, form: Form, folder: Path) -> Path:
    """Write a copy of a scene in another form, with the same name."""
    if form == "as they are":
        return path
    folder.mkdir(exist_ok=True)
    with rasterio.open(path) as scene:
        pixels, profile, names = scene.read(), scene.profile, scene.descriptions
    if form == "without near infrared":
        pixels, names = pixels[:3], names[:3]
    else:
        pixels = np.rint(pixels * np.float64(WHITE) / 255).astype(np.uint16)
    profile |= {"count": len(pixels), "dtype": pixels.dtype.name, "photometric": "MINISBLACK"}
    with rasterio.open(folder / path.name, "w", **profile) as copy:
        copy.write(pixels)
        copy.descriptions = names
    return folder / path.name


def port_of(scene: PublishedDetections, comparison: Comparison, images: Path) -> Port:
    """Return a swept scene with its open water."""
    with rasterio.open(images / f"{scene.scene.id}.tif") as raster:
        near_infrared = raster.read(4)
    assert scene.scene.gsd_m is not None, "the scenes of the data set have a georeference"
    gsd_m = sum(scene.scene.gsd_m) / 2
    pixel_km2 = (gsd_m / 1000) ** 2
    bright = near_infrared * (WHITE / 255 / 10_000) > DARK
    parts, count = ndimage.label(bright)
    large = ndimage.sum(bright, parts, np.arange(count + 1)) * pixel_km2 > LAND_KM2
    land = large[parts]
    away = (
        ndimage.distance_transform_edt(~land) * gsd_m if land.any() else np.full(land.shape, np.inf)
    )
    return Port(comparison, away > AWAY_M, pixel_km2)


def false_alarms(port: Port, threshold: float) -> int:
    """Count detections on open water that touch no ship."""
    boxes = port.comparison.predicted
    boxes = boxes.take(boxes.score >= threshold)
    found = 0
    for box, centre in zip(boxes.xyxy, boxes.centres().astype(int), strict=True):
        column, row = np.minimum(centre, np.array(port.water.shape[::-1]) - 1)
        ships = port.comparison.xyxy
        shared = np.minimum(box[2:], ships[:, 2:]) - np.maximum(box[:2], ships[:, :2])
        found += bool(port.water[row, column]) and not (shared > 0).all(axis=1).any()
    return found


def figures_of(form: Form, ports: Sequence[Port], threshold: float) -> list[Figure]:
    """Return the figures of all ports together, and F of each."""
    matches = find_matches([port.comparison for port in ports], RULE)
    thresholds = np.unique([threshold, *np.round(np.arange(0.06, 0.95, 0.02), 2)])
    counts = matches.count(thresholds)
    scores, interval = counts.curve().at(threshold), bootstrap(counts, threshold).f
    km2 = sum(float(port.water.sum()) * port.pixel_km2 for port in ports)
    alarms = sum(false_alarms(port, threshold) for port in ports)
    figures = [
        at_least(f"{form}: F at IoU 0.3", scores.f_score, "", 0.75),
        Figure(f"{form}: low end of its 95 % interval, by ports", interval.low, ""),
        Figure(f"{form}: high end", interval.high, ""),
        Figure(f"{form}: precision", scores.precision, ""),
        Figure(f"{form}: recall", scores.recall, ""),
        at_most(f"{form}: false alarms on open water", 100 * alarms / km2, "per 100 km2", 1),
        Figure(f"{form}: open water", km2, "km2"),
    ]
    for port in ports:
        own = find_matches([port.comparison], RULE).count(thresholds).curve().at(threshold)
        figures.append(Figure(f"{form}: F of {port.comparison.name}", own.f_score, ""))
    return figures


if __name__ == "__main__":
    main()
