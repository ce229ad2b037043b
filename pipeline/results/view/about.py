"""What a page shows besides detections: the location of the scene and the model's figures.

All of it comes from published files: the table's provenance and the model's STAC item.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import ProjError

from scenesweep.pipeline.geometry.georef import to_lonlat, to_map
from scenesweep.pipeline.results.view.pack import Detections
from scenesweep.pipeline.results.view.published import PublishedScene

LATTICE = 17
"""Points along each side; a page interpolates between them."""
_COARSE_PX = 4.0
"""Boxes of fewer pixels of the picture are too small for a person to check."""


def lattice(published: PublishedScene) -> NDArray[np.float64] | None:
    """Return longitude and latitude (17, 17, 2) of points spread evenly over the scene, by rows.

    The first point is the scene's top left corner, the last one its bottom right corner.
    Longitudes continue beyond 180 degrees. None without georeference, or where the scene extends
    beyond the Earth.
    """
    size = published.size
    try:
        georeference = _georeference(published)
        if georeference is None or size is None:
            return None
        x, y = (np.linspace(0, side, LATTICE) for side in size)
        grid = np.stack(np.meshgrid(x, y), axis=-1)
        transform, crs = georeference
        points = to_lonlat(to_map(grid, transform), crs)
    except ProjError:
        return None
    if not np.isfinite(points).all():
        return None
    middle = points[LATTICE // 2, LATTICE // 2, 0]
    points[..., 0] -= 360 * np.round((points[..., 0] - middle) / 360)
    return points


def thresholds(published: PublishedScene) -> tuple[float | None, float | None]:
    """Return the lowest score that the run kept, and the model's own threshold.

    None where the table or the model's item does not record it.
    """
    provenance = published.provenance
    settings = {} if provenance is None else provenance.settings
    kept = _number(settings.get("detect", {}).get("score_threshold"))
    least = settings.get("merge", {}).get("min_scores", {})
    names = () if provenance is None else provenance.model.classes
    if kept is not None and names:
        kept = min(max(kept, _number(least.get(name)) or 0.0) for name in names)
    inference = published.model.get("mlm:hyperparameters", {}).get("inference", {})
    return kept, _number(inference.get("score_threshold"))


def model_facts(published: PublishedScene) -> dict[str, str]:
    """Return the model's description and its figures on its own validation data, as text."""
    facts = {"description": str(published.model.get("description", ""))}
    training = published.model.get("mlm:hyperparameters", {}).get("training", {})
    figures = training.get("validation") if isinstance(training, Mapping) else None
    facts["figures"] = _figures(figures) if isinstance(figures, Mapping) else ""
    return {name: text for name, text in facts.items() if text}


def coarse_picture(
    published: PublishedScene,
    detections: Detections,
    picture: Sequence[int] | None,
    *,
    limit: Sequence[int] | None,
) -> str | None:
    """Say how to get a finer picture where the boxes are too small to check in this one.

    `picture` is the width and height of its finest level. `limit` is the size that the scene
    would give without a limit of megabytes, None when the picture is the quicklook.
    """
    size = published.size
    if picture is None or size is None or not len(detections):
        return None
    shrunk = picture[0] / size[0]
    sides = (detections.xyxy[:, 2:] - detections.xyxy[:, :2]).max(axis=1)
    side = float(np.median(sides)) * shrunk
    if side >= _COARSE_PX or shrunk > 0.99:
        return None
    return (
        f"The picture is too coarse for these boxes, which are {side:.1f} of its pixels wide: "
        + (
            finer_picture(published)
            if limit is None
            else "add --page-mb to scenesweep view."
            if picture[0] < limit[0]
            else "a page cannot show a finer one; look at the scene in QGIS."
        )
    )


def finer_picture(published: PublishedScene) -> str:
    """Return the command that makes the page with the scene itself as its picture."""
    source = published.provenance.source if published.provenance else None
    name = source.name if source else "SCENE"
    if source and source.files:  # `view` opens only scenes of one file
        return "sweep again with --set publish.quicklook_px=8192."
    driver = " --driver VRT" if PurePath(name).suffix.lower() == ".vrt" else ""
    return f"run scenesweep view OUT {shlex.quote(name)}{driver}"


def _georeference(published: PublishedScene) -> tuple[Affine, str] | None:
    source = published.provenance.source if published.provenance else None
    if not source or not source.transform or not source.crs:
        return None
    return Affine(*source.transform), CRS.from_user_input(source.crs).to_wkt()


def _figures(validation: Mapping[str, Any]) -> str:
    """Return precision, recall and F of the validation in a model's card, as text."""
    names = ("true_positives", "false_positives", "false_negatives")
    right, wrong, missed = (_number(validation.get(name)) for name in names)
    if not right or wrong is None or missed is None:
        return ""
    text = (
        f"precision {right / (right + wrong):.2f}, recall {right / (right + missed):.2f}, "
        f"F {2 * right / (2 * right + wrong + missed):.2f}"
    )
    threshold, chips = (_number(validation.get(name)) for name in ("threshold", "chips"))
    text += f" at score {threshold:g} and above" if threshold is not None else ""
    chips_text = f"{chips:,.0f} " if chips else "its "
    return f"{text}, on {chips_text}validation chips; results elsewhere may be worse"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
