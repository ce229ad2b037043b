"""Make the map of all scenes that the index shows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.errors import ScenesweepError
from scenesweep.pipeline.publish.formats.layer import PALETTE
from scenesweep.pipeline.results.view.night.frame import BITS, Frame
from scenesweep.pipeline.results.view.night.ground import (
    Ground,
    axes_of,
    ground_of,
    observed_km2,
    rings_of,
)
from scenesweep.pipeline.results.view.night.points import (
    SIDE_STEPS,
    Points,
    classes_in,
    read_points,
)
from scenesweep.pipeline.results.view.pack import packed
from scenesweep.pipeline.results.view.published import PublishedScene
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import date_of

log = logging.getLogger(__name__)

MOST_POINTS = 1_000_000
"""Detections in the page: about 10 MB of it, and what a browser draws without a graphics card."""
_MARGIN = 0.02
Placed = tuple[PublishedScene, Ground]
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class NightMap:
    """The map: `scenes` by their number with facts for the page, and their detections."""

    frame: Frame
    classes: tuple[str, ...]
    scenes: tuple[dict[str, Any], ...]
    rings: tuple[tuple[NDArray[np.int32], ...], ...]
    points: Points

    def packed(self, pages: Collection[str]) -> dict[str, object]:
        """Return JSON-able values; `pages` are the ids of the scenes that have a page.

        All rings are in one array of vertices. `rings` has their lengths, `rings_of` the number
        of rings of each scene.
        """
        lines = [ring for rings in self.rings for ring in rings]
        lengths = np.array([len(line) for line in lines], np.int32)
        counts = np.array([len(rings) for rings in self.rings], np.int32)
        return {
            "bits": BITS,
            "west": self.frame.west,
            "side_steps": SIDE_STEPS,
            "bounds": self._bounds(lines),
            "classes": list(self.classes),
            "palette": list(PALETTE),
            "scenes": [scene | {"page": scene["id"] in pages} for scene in self.scenes],
            "vertices": packed(np.concatenate(lines)),
            "rings": packed(lengths),
            "rings_of": packed(counts),
            "points": self.points.packed(),
        }

    def _bounds(self, lines: Sequence[NDArray[np.int32]]) -> list[int]:
        """Return left, top, right, bottom of all scenes with a margin."""
        corners = np.concatenate(lines).astype(np.int64)
        low, high = corners.min(axis=0), corners.max(axis=0)
        margin = int(max((high - low).max() * _MARGIN, 100))
        return [*(low - margin).tolist(), *(high + margin).tolist()]


def make_night(
    out: Location, scenes: Sequence[PublishedScene], results: Results, *, most: int = MOST_POINTS
) -> NightMap | None:
    """Return the map of the scenes with georeference; None when no scene has one.

    `results` are the latest results of scenes in the run reports, by id. A scene that cannot be
    read is left out, and the log says so.
    """
    placed = [(scene, ground) for scene in scenes if (ground := _ground(scene, out)) is not None]
    if not placed:
        return None
    frame = Frame.around([ground.longitudes for _, ground in placed])
    on_map = [scene for scene, _ in placed]
    models = [scene.provenance.model.classes for scene in on_map if scene.provenance]
    classes = classes_in(on_map, list(dict.fromkeys(name for names in models for name in names)))
    points = read_points(on_map, classes, frame, most=most)
    areas = observed_km2([ground for _, ground in placed])
    facts = [_facts(scene, ground, frame, results) for scene, ground in placed]
    for number, fact in enumerate(facts):
        fact["detections"] = points.by_scene[number]
    return NightMap(
        frame,
        classes,
        tuple(f | {"km2": float(f"{km2:.6g}")} for f, km2 in zip(facts, areas, strict=True)),
        tuple(tuple(rings_of(ground, frame)) for _, ground in placed),
        points,
    )


def state_of(result: Mapping[str, Any] | None) -> str:
    """Return what the run reports say about a scene: a key of `STATES` in the page's script."""
    if result is None:
        return "unknown"
    if result.get("status") in ("failed", "quarantined"):
        return "failed"
    return "warned" if result.get("warnings") else "complete"


def _ground(scene: PublishedScene, out: Location) -> Ground | None:
    try:
        return ground_of(scene, date_of(scene.table), out)
    except ScenesweepError as error:
        log.error("left out of the map: %s", error)
        return None


def _facts(scene: PublishedScene, ground: Ground, frame: Frame, results: Results) -> dict[str, Any]:
    result = results.get(scene.scene_id)
    return {
        "id": scene.scene_id,
        "date": date_of(scene.table),
        "state": state_of(result),
        "reason": str(result.get("reason", "")) if result else "",
        "estimated": ground.estimated,
        "axes": axes_of(ground, scene.size or (1, 1), frame),
    }
