"""The canary: a scene with known detections that is swept before all others.

If the model file, the GPU, its driver, GDAL or torch change what is detected, the detections of
this scene change too. `jobs.shared.canary` paints and sweeps it; this module compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output

State = Literal["good", "recorded", "changed", "failed", "nothing"]
"""`recorded`: there was no answer to compare with, so this one is for later runs. `nothing`: the
model detects nothing on the painted scene, so it says nothing."""

MATCH_IOU = 0.5
MAX_UNMATCHED = 0.02
MEAN_SCORE = 0.008
MAX_SCORE = 0.03
MEAN_EDGE_PX = 0.02
"""Limits: the share of detections without a counterpart, differences of scores, and the mean
difference of edges in pixels of the scene. Measured with naip-trees, float32 against bfloat16 is
the largest of what processors may differ by: 0.4 %, 0.003, 0.005 and 0.003 px."""


@dataclass(frozen=True, slots=True)
class Canary:
    """What the canary of a run says. `differences` are for people; `seconds` is wall-clock time."""

    state: State
    differences: tuple[str, ...] = ()
    detections: int = 0
    seconds: float = 0.0

    @property
    def is_checked(self) -> bool:
        return self.state in ("good", "changed", "failed")

    @property
    def is_good(self) -> bool:
        return self.state not in ("changed", "failed")


@dataclass(frozen=True, slots=True)
class Answer:
    """Detections of the canary scene.

    `boxes` are x_min, y_min, x_max, y_max in scene pixels, `scores` and `classes` in the same
    order. `pixel_m` is the pixel size that the scene was given.
    """

    pixel_m: float
    boxes: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    @property
    def xyxy(self) -> NDArray[np.float64]:
        """The boxes as an (N, 4) array."""
        return np.asarray(self.boxes, np.float64).reshape(-1, 4)


def compare(expected: Answer, found: Answer) -> tuple[str, ...]:
    """Return how the detections differ by more than processors and precisions may differ.

    The limits lie between the largest difference of the ways in which a processor can compute and
    the smallest of the faults in tests/jobs/test_canary.py.
    """
    pairs, mean_edge = _pairs(expected, found)
    missing, added = len(expected.scores) - len(pairs), len(found.scores) - len(pairs)
    differences = []
    total = len(expected.scores) + len(found.scores)
    if missing + added > max(1.0, MAX_UNMATCHED * total):
        differences.append(
            f"{missing} of {len(expected.scores)} expected detections are missing, and "
            f"{added} others are there"
        )
    if not len(pairs):
        return tuple(differences)
    scores = np.abs(
        np.asarray(expected.scores)[pairs[:, 0]] - np.asarray(found.scores)[pairs[:, 1]]
    )
    if scores.mean() > MEAN_SCORE or scores.max() > MAX_SCORE:
        differences.append(
            f"scores differ by {scores.mean():.3g} on average and by up to {scores.max():.3g}; "
            f"up to {MEAN_SCORE:g} and {MAX_SCORE:g} are expected"
        )
    if mean_edge > MEAN_EDGE_PX:
        differences.append(
            f"edges of boxes differ by {mean_edge:.3g} pixels on average; up to "
            f"{MEAN_EDGE_PX:g} are expected"
        )
    return tuple(differences)


def _pairs(expected: Answer, found: Answer) -> tuple[NDArray[np.intp], float]:
    """Return the rows of detections that are one object, (N, 2), and the mean distance of edges.

    The distance is in pixels of the model's grid or of the scene, whichever the boxes have.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import

    a, b = expected.xyxy, found.xyxy
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.intp), 0.0
    overlap = _iou(a, b)
    same = np.asarray(expected.classes)[:, None] == np.asarray(found.classes)[None, :]
    overlap = np.where(same, overlap, 0.0)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    kept = overlap[rows, columns] >= MATCH_IOU
    pairs = np.stack([rows[kept], columns[kept]], axis=1)
    edges = np.abs(a[pairs[:, 0]] - b[pairs[:, 1]])
    return pairs, float(edges.mean()) if len(pairs) else 0.0


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each of (N, 4) with each of (M, 4), as (N, M)."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    size = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = size.prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None, :] - shared))


def judge(expected: Answer | None, found: Answer, *, seconds: float = 0.0) -> Canary:
    """Compare the detections with the known answer, if there is one."""
    count = len(found.scores)
    if expected is None:
        return Canary("recorded" if count else "nothing", (), count, seconds)
    differences = compare(expected, found)
    return Canary("changed" if differences else "good", differences, count, seconds)


def known_answer(out: Location, key: str) -> Answer | None:
    """Return the answer of this key: the package's, or what an earlier run into `out` recorded."""
    for known in (_shipped(), _recorded(out)):
        if key in known:
            try:
                return Answer(**known[key])
            except TypeError:
                continue
    return None


def record_answer(out: Location, key: str, answer: Answer) -> None:
    """Keep an answer for later runs.

    Raises:
        OutputError: if the file cannot be written.
    """
    known = _recorded(out) | {key: asdict(answer)}
    with atomic_write(Output(out).canary_answers, Output(out).aside) as aside:
        aside.write_text(json.dumps(known) + "\n", encoding="utf-8")


def _recorded(out: Location) -> dict[str, Any]:
    try:
        known = json.loads(Output(out).canary_answers.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _shipped() -> Mapping[str, Any]:
    """Return the answers of built-in models with default settings."""
    path = resources.files("scenesweep.pipeline.runs") / "canary_answers.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return known
