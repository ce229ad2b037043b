"""The pixels of chips: as GeoTIFF for training, and as a small picture for the page."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.geometry.grid import Shard, Tile
from scenesweep.pipeline.raster.chips import Chips, Source, read_shard
from scenesweep.pipeline.results.review.chips import ReviewChip
from scenesweep.pipeline.storage.commit import atomic_write

_COLOURS = ("red", "green", "blue")
_PERCENTILES = (1, 99)
_QUALITY = 90


def image_name(chip: ReviewChip) -> str:
    """Return the file name of a chip: the scene's id, and the chip's column and row."""
    return f"{chip.scene_id}-{chip.window.col_off}-{chip.window.row_off}.tif"


def read_chip(source: Source, chip: ReviewChip) -> Chips:
    """Read the pixels of a chip as the model saw them: its bands in uint8, at its GSD.

    Raises:
        UnreadableScene: when the scene is truncated or corrupt there.
    """
    return read_shard(source, Shard(0, (Tile(chip.window, chip.window),)))


def write_image(path: Path, pixels: Chips, source: Source, card: ModelCard) -> None:
    """Write a chip as GeoTIFF with the model's bands, and with a mask if it has invalid pixels.

    It has the georeference of its scene, so that chips can be divided by location for validation.
    """
    bands, height, width = pixels.pixels.shape
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": bands,
        "width": width,
        "height": height,
        "compress": "deflate",
        **_georeference(pixels, source),
    }
    with (
        atomic_write(path, path.parent) as temporary,
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_PAM_ENABLED=False),
        rasterio.open(temporary, "w", **profile) as dataset,
    ):
        dataset.write(pixels.pixels)
        dataset.descriptions = [str(band) for band in card.bands]
        if pixels.valid is not None:
            dataset.write_mask(pixels.valid)


def picture(pixels: Chips, card: ModelCard) -> bytes:
    """Return a chip as a WebP file in red, green and blue, or its first bands, stretched."""
    names = [str(band).lower() for band in card.bands]
    shown = [names.index(colour) for colour in _COLOURS if colour in names]
    if len(shown) < len(_COLOURS):
        shown = [0, 1, 2] if len(names) >= len(_COLOURS) else [0, 0, 0]
    chosen = pixels.pixels[shown]
    valid = np.ones(chosen.shape[1:], np.bool_) if pixels.valid is None else pixels.valid
    low, high = np.percentile(chosen[:, valid], _PERCENTILES) if valid.any() else (0.0, 255.0)
    bright = (chosen.astype(np.float32) - low) / max(1.0, high - low)
    colours: NDArray[np.uint8] = (bright.clip(0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(np.where(valid, colours, 0).transpose(1, 2, 0)))
    image.save(file, format="WEBP", quality=_QUALITY)
    return file.getvalue()


def _georeference(pixels: Chips, source: Source) -> dict[str, object]:
    scene = source.scene
    if scene.transform is None or scene.crs is None:
        return {}
    a, b, c, d, e, f = scene.transform[:6]
    (sx, sy), (left, top) = source.scale, pixels.bounds.origin.tolist()
    x, y = left * sx, top * sy
    moved = Affine(a * sx, b * sy, a * x + b * y + c, d * sx, e * sy, d * x + e * y + f)
    return {"crs": scene.crs, "transform": moved}
