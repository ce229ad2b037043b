"""Small rasters made for tests, and a detector whose truth is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage

from scenesweep.model.architecture import Architecture
from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.model.card import ModelCard
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import load_settings
from scenesweep.pipeline.storage.location import Location

UTM = "EPSG:32611"
TRANSFORM = from_origin(430_000, 3_775_000, 0.6, 0.6)
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")

SMALL = Architecture(
    backbone="resnet18",
    levels=(2, 3),
    channels=32,
    anchor_sizes_px=((12.0,), ()),
    aspect_ratios=(1.0,),
    head_convs=1,
    head_norm="group",
)


def ref_of(path: Path | str) -> SceneRef:
    """Return the scene of one file."""
    return SceneRef.of_file(str(path))


def write_raster(
    path: Path,
    pixels: NDArray[Any],
    *,
    crs: str | None = UTM,
    transform: Affine | None = TRANSFORM,
    **profile: Any,
) -> Path:
    """Write (bands, H, W) as a GeoTIFF."""
    descriptions = profile.pop("descriptions", None)
    tags = profile.pop("tags", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=pixels.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**tags)
        if descriptions:
            dataset.descriptions = descriptions
    return path


def make_card(**changes: Any) -> ModelCard:
    """Return the card of a one-band square finder."""
    values: dict[str, Any] = {
        "name": "squares",
        "classes": ("square",),
        "bands": (1,),
        "gsd_m": 0.6,
        "chip_px": 64,
        "margin_px": 16,
        "architecture": SMALL,
    }
    return ModelCard.model_validate(values | changes)


def make_job(out: Location, *assignments: str, card: ModelCard | None = None, **more: Any) -> Job:
    """Return a job for `SquareDetector` with some settings."""
    card = card or make_card()
    settings = load_settings(None, ["publish.quicklook=false", *assignments]).resolved(card)
    return Job(card, "0" * 64, settings, out=out, **more)


class SquareDetector:
    """Finds painted squares: 4-connected bright pixels of the first band, to their edges."""

    runs_on = ""

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        found = []
        for number, chip in enumerate(chips):
            regions, _ = ndimage.label(chip[0] > 150)
            for rows, columns in ndimage.find_objects(regions):
                xyxy = [[columns.start, rows.start, columns.stop, rows.stop]]
                found.append(
                    Boxes(
                        np.array(xyxy, np.float32),
                        np.ones(1, np.float32),
                        np.zeros(1, np.int16),
                        np.full(1, number, np.int32),
                    )
                )
        return DetectorOutput(Boxes.join(Boxes.none(), *found), np.zeros(len(chips), np.bool_))


def paint_squares(
    width: int, height: int, *, largest: int, seed: int, count: int = 60
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Paint squares that do not touch; return (1, H, W) pixels and their boxes (N, 4)."""
    rng = np.random.default_rng(seed)
    pixels = np.full((1, height, width), 1, np.uint8)
    taken = np.zeros((height, width), np.bool_)
    boxes = []
    for _ in range(count):
        side = int(rng.integers(2, largest + 1))
        if side > min(width, height):
            continue
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        around = slice(max(0, y - 1), y + side + 1), slice(max(0, x - 1), x + side + 1)
        if taken[around].any():
            continue
        taken[y : y + side, x : x + side] = True
        pixels[0, y : y + side, x : x + side] = 200
        boxes.append((x, y, x + side, y + side))
    return pixels, np.array(boxes, np.float64).reshape(-1, 4)
