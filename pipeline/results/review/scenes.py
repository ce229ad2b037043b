"""The published detections of a scene on the model's grid, and how its pixels are read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.planning.plan import fill_of
from scenesweep.pipeline.publish.provenance import ModelRecord, Provenance
from scenesweep.pipeline.raster.chips import Source, band_indexes
from scenesweep.pipeline.raster.stretch import Stretch
from scenesweep.pipeline.results.view.published import PublishedScene
from scenesweep.pipeline.scene import Scene

_CORNERS = ("x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True, slots=True)
class SceneBoxes:
    """The published detections of one scene.

    `size` is width and height of the grid, which is the scene at the model's GSD. `xyxy` is
    (N, 4) float64 in pixels of the grid, `score` (N,), and `probability` (N,) is NaN where it is
    not known. `label` (N,) indexes the classes of the card, `least` (N,) is the lowest score that
    was published for the class, and `ids` (N,) are texts, those of the table.
    """

    scene_id: str
    size: tuple[int, int]
    xyxy: NDArray[np.float64]
    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    label: NDArray[np.int64]
    least: NDArray[np.float64]
    ids: pa.Array

    def __len__(self) -> int:
        return len(self.score)


def model_of(published: Iterable[PublishedScene]) -> ModelRecord:
    """Return the model that made the tables of these scenes.

    Raises:
        UnreadableOutput: when several models made them, or one is not a table of a swept scene.
    """
    made = {scene.table: provenance_of(scene).model for scene in published}
    models = {model.sha256: (model, table) for table, model in made.items()}
    if len(models) > 1:
        first, second, *_ = (f"{describe_model(m)} made {table}" for m, table in models.values())
        raise UnreadableOutput(
            f"expected detections of one model, but {first}, and {second}: "
            "name scenes of one model with --scene"
        )
    ((model, _),) = models.values()
    return model


def describe_model(model: ModelRecord) -> str:
    """Return a model in one word: name, version and the beginning of the file's SHA-256."""
    return f"{model.id}@{model.version} ({model.sha256[:12]})"


def open_scene_boxes(published: PublishedScene, card: ModelCard) -> SceneBoxes:
    """Read the table of a scene.

    Raises:
        UnreadableOutput: when it is not a table of a swept scene, or not of this model.
    """
    made = provenance_of(published)
    if made.model.id != card.name or made.model.classes != card.classes:
        raise UnreadableOutput(
            f"{published.table}: was made with the model {made.model.id} "
            f"({', '.join(made.model.classes)}), got {card.name} ({', '.join(card.classes)}): "
            "name the model with --model"
        )
    with pq.ParquetFile(published.table) as file:
        names = {"detection_id", "class_name", "score", "probability", *_CORNERS}
        table = file.read([n for n in file.schema_arrow.names if n in names])
    scale = np.array([*made.grid_scale, *made.grid_scale])
    number = pc.index_in(table["class_name"].combine_chunks(), pa.array(card.classes, pa.string()))
    label = number.to_numpy().astype(np.int64)
    unknown = np.full(len(table), np.nan)
    known = "probability" in table.column_names
    return SceneBoxes(
        published.scene_id,
        made.grid_size,
        np.stack([table[name].to_numpy() for name in _CORNERS], axis=1) / scale,
        table["score"].to_numpy().astype(np.float64),
        table["probability"].to_numpy().astype(np.float64) if known else unknown,
        label,
        _least_scores(made, card)[label],
        table["detection_id"].combine_chunks(),
    )


def source_for(published: PublishedScene, scene: Scene, card: ModelCard) -> Source:
    """Return how the pixels of a scene are read as they were for its detections.

    The georeference is that of the table.

    Raises:
        UnreadableOutput: when the table does not say so.
        WrongBands: when the scene has not the bands of the model.
    """
    made = provenance_of(published)
    placed = made.source
    if placed.transform is not None and placed.crs is not None:
        crs, transform = CRS.from_user_input(placed.crs).to_wkt(), Affine(*placed.transform)
        scene = replace(scene, crs=crs, transform=transform)
    bands = tuple(_setting(made, "read", "bands", list(card.bands)))
    return Source(
        scene,
        band_indexes(scene, bands, missing_ok=card.missing_bands_ok),
        made.grid_scale,
        None if made.stretch is None else Stretch(made.stretch),
        fill_of(card),
    )


def provenance_of(published: PublishedScene) -> Provenance:
    """Return the record of what the table of a scene was made from.

    Raises:
        UnreadableOutput: when it has none.
    """
    if published.provenance is None:
        raise UnreadableOutput(
            f"{published.table}: expected a table that scenesweep detect published"
        )
    return published.provenance


def _least_scores(made: Provenance, card: ModelCard) -> NDArray[np.float64]:
    """Return (C,) the lowest published score of each class."""
    threshold = _setting(made, "detect", "score_threshold", card.inference.score_threshold)
    of_class = _setting(made, "merge", "min_scores", {})
    return np.array([float(of_class.get(name, threshold)) for name in card.classes])


def _setting(made: Provenance, group: str, name: str, otherwise: Any) -> Any:
    return made.settings.get(group, {}).get(name, otherwise)
