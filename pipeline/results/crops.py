"""Cut a small picture of each published detection out of its scene, for people and classifiers.

A crop is a square around the centre of the box. Its side is `around` times the longer side of the
box, at least `least_px` scene pixels, and it is resized to `side_px` pixels (bilinear, with
antialiasing where it shrinks). Pixels outside the scene are black. It has the display bands of the
scene (red, green and blue, or the first ones), mapped to 8 bits as for the detector: by the range
of the run, or by the 2nd and 98th percentiles of the scene.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from scenesweep.pipeline.geometry.grid import Window
from scenesweep.pipeline.publish.quicklook import display_bands
from scenesweep.pipeline.raster.chips import Source, clip, read_window, scene_stretch, stretch_read
from scenesweep.pipeline.raster.pixels import open_scene
from scenesweep.pipeline.raster.stretch import to_uint8
from scenesweep.pipeline.results.view import PublishedScene
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.storage.commit import atomic_write

_PERCENTILES = (2.0, 98.0)
_ROWS_AT_ONCE = 1000
_KEPT = ("detection_id", "scene_id", "class_name", "score", "model_sha256")
_BOX = ("x_min", "y_min", "x_max", "y_max")
SCHEMA = pa.schema(
    [
        ("detection_id", pa.string()),
        ("scene_id", pa.string()),
        ("class_name", pa.string()),
        ("score", pa.float32()),
        ("model_sha256", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((f"crop_{name}", pa.float64()) for name in _BOX),
    ]
)
"""`image` is a PNG, in the form that Hugging Face `datasets` reads as `Image`. `crop_x_min` to
`crop_y_max` are the square in scene pixels."""


@dataclass(frozen=True, slots=True)
class CropSettings:
    """Which detections get a crop, and how it is cut."""

    side_px: int = 64
    around: float = 2.0
    least_px: float = 16.0
    min_score: float = 0.0


def write_crops(published: PublishedScene, scene: Scene, path: Path, settings: CropSettings) -> int:
    """Write the crops of a scene as Parquet, in the order of its table, and return their number."""
    source = _source(published, scene)
    written = 0
    with (
        atomic_write(path, path.parent) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="none") as writer,  # PNG is compressed
    ):
        table = pq.ParquetFile(published.table)
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[*_KEPT, *_BOX]):
            rows = batch.filter(pc.greater_equal(batch["score"], settings.min_score))
            writer.write_batch(_crops_of(rows, source, settings))
            written += len(rows)
    return written


def squares(boxes: NDArray[np.float64], settings: CropSettings) -> NDArray[np.float64]:
    """Return the square (N, 4) around each box (N, 4), in scene pixels."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    half = np.maximum(longer * settings.around, settings.least_px)[:, None] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _source(published: PublishedScene, scene: Scene) -> Source:
    bands = display_bands(scene)
    provenance = published.provenance
    reading = {} if provenance is None else provenance.settings.get("read", {})
    given = reading.get("source_range")
    stretch = scene_stretch(
        scene,
        bands,
        source_range=None if given is None else (float(given[0]), float(given[1])),
        percentiles=_PERCENTILES,
    )
    return Source(scene, bands, (1.0, 1.0), stretch, (0,) * len(bands))


def _crops_of(rows: pa.RecordBatch, source: Source, settings: CropSettings) -> pa.RecordBatch:
    boxes = np.column_stack([rows[name].to_numpy() for name in _BOX]).astype(np.float64)
    around = squares(boxes, settings)
    images = [
        {"bytes": picture, "path": f"{name}.png"}
        for picture, name in zip(
            _pictures(around, source, settings.side_px),
            rows["detection_id"].to_pylist(),
            strict=True,
        )
    ]
    columns = [rows[name] for name in _KEPT]
    return pa.RecordBatch.from_arrays(
        [
            *(
                column.cast(SCHEMA.field(name).type)
                for name, column in zip(_KEPT, columns, strict=True)
            ),
            pa.array(images, SCHEMA.field("image").type),
            *(pa.array(edge) for edge in around.T),
        ],
        schema=SCHEMA,
    )


def _pictures(around: NDArray[np.float64], source: Source, side_px: int) -> Iterator[bytes]:
    """Yield a PNG of each square (N, 4)."""
    with open_scene(source.scene, keep=True) as dataset:
        for square in around:
            left, top = np.floor(square[:2]).astype(int).tolist()
            right, bottom = np.ceil(square[2:]).astype(int).tolist()
            window = Window(left, top, right - left, bottom - top)
            inside = clip(window, dataset.width, dataset.height)
            pixels = np.zeros((window.height, window.width, 3), np.uint8)
            if inside.width > 0 and inside.height > 0:
                values, valid = read_window(dataset, source, inside)
                shown = to_uint8(values, stretch_read(source))
                if valid is not None:
                    shown = shown * valid
                rows = slice(inside.row_off - top, inside.bottom - top)
                columns = slice(inside.col_off - left, inside.right - left)
                pixels[rows, columns] = shown.transpose(1, 2, 0)
            place = (*(square[:2] - (left, top)), *(square[2:] - (left, top)))
            picture = Image.fromarray(pixels).resize(
                (side_px, side_px), Image.Resampling.BILINEAR, box=place
            )
            file = io.BytesIO()
            picture.save(file, "PNG")
            yield file.getvalue()
