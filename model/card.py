"""The model card: everything about a detector that is not its weights.

The card lies inside the model file, beside the weights. So a model always runs at the scale, with
the bands and with the thresholds that it was made for, unless the user overrides them.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from scenesweep.model.architecture import Architecture, Assignment, Frozen, Losses
from scenesweep.model.errors import ModelError
from scenesweep.model.settings import Views

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Scaling(Frozen):
    """How source values are mapped to the 0..255 that the network was trained on.

    uint8 values stay as they are. Other types are stretched linearly from `source_range`, or, if
    it is not given, from percentiles of the scene.
    """

    source_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (2.0, 98.0)
    mean: tuple[float, ...] = ()
    """Mean per band of values divided by 255. Empty: 0.5 for each band."""
    std: tuple[float, ...] = ()
    """Standard deviation per band of values divided by 255. Empty: 0.25 for each band."""


class Inference(Frozen):
    """Thresholds and limits. Chips that reach a limit are counted and reported."""

    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_iou: float = Field(0.5, gt=0, le=1)
    class_agnostic: bool = False
    """Let boxes suppress overlapping boxes of other classes too."""
    topk_per_level: int = Field(1000, ge=1)
    max_detections_per_chip: int = Field(1000, ge=1)


class Calibration(Frozen):
    """The probability that a detection is correct, by its score.

    It is linear between knots, and constant below the first and above the last of them.
    `scenesweep evaluate --calibrate` measures it.
    """

    score: tuple[float, ...] = Field(min_length=1)
    """Scores of the knots, ascending."""
    probability: tuple[float, ...] = Field(min_length=1)
    """Share of correct detections at each of them; it never falls from one knot to the next."""
    measured_in: Views = Views()
    """The views in which the scores were measured. The map holds only for runs in these views."""

    @model_validator(mode="after")
    def _is_monotone(self) -> Self:
        score, probability = np.array(self.score), np.array(self.probability)
        if len(score) != len(probability):
            raise ValueError(
                f"expected as many probabilities as scores, got {len(probability)} and {len(score)}"
            )
        for name, values, falls in (
            ("score", score, np.diff(score) <= 0),
            ("probability", probability, np.diff(probability) < 0),
        ):
            if falls.any() or not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{name}: expected ascending numbers between 0 and 1")
        return self

    def at(self, score: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probability (N,) of detections with these scores (N,)."""
        return np.interp(score, self.score, self.probability)


class ModelCard(Frozen):
    """What a model detects, the imagery it needs, and how it was built and trained."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = "1"
    description: str = ""
    licence: str = ""
    classes: tuple[str, ...] = Field(min_length=1)
    bands: tuple[str | int, ...] = Field(min_length=1)
    """Names (matched to band descriptions, then to colour interpretations) or 1-based indices."""
    gsd_m: float = Field(gt=0)
    """Ground sample distance that the network must see, in metres per pixel."""
    chip_px: int = Field(512, ge=64, le=4096)
    margin_px: int = Field(32, ge=0)
    """Overlap on each inner side of a chip, at least the size of the largest object."""
    missing_bands_ok: tuple[str, ...] = ()
    """Those of `bands` that a scene may miss. A missing band is filled with its mean."""
    architecture: Architecture = Architecture()
    assignment: Assignment = Assignment()
    losses: Losses = Losses()
    scaling: Scaling = Scaling()
    inference: Inference = Inference()
    class_thresholds: dict[str, float] = Field(default_factory=dict)
    """Lowest score of the detections of a class, at least `inference.score_threshold`, which holds
    for all other classes."""
    sizes_meaningful: bool = True
    """False if the size of a box says nothing about the object, for example because the labels were
    points. Pages then show no sizes."""
    calibration: dict[str, Calibration] = Field(default_factory=dict)
    """The probability that a detection of a class is correct, by its score. Detections of a class
    that is not named here have no probability."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How the model was trained and evaluated. Documentation only: the program does not read it."""

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self.scaling, name)) not in (0, len(self.bands)):
                raise ValueError(f"scaling.{name}: expected one number for each of {self.bands}")
        unknown = [name for name in self.missing_bands_ok if name not in self.bands]
        if unknown:
            raise ValueError(f"missing_bands_ok: expected names of bands, got {', '.join(unknown)}")
        if self.architecture.kind != "retinanet" and (self.assignment, self.losses) != (
            Assignment(),
            Losses(),
        ):
            raise ValueError(
                f"{self.architecture.kind} has targets and losses of its own: remove assignment "
                "and losses"
            )
        if isinstance(self.losses.alpha, tuple) and len(self.losses.alpha) != len(self.classes):
            raise ValueError(f"losses.alpha: expected one number for each of {self.classes}")
        if len(self.losses.class_counts) not in (0, len(self.classes)):
            raise ValueError(f"losses.class_counts: expected one number for each of {self.classes}")
        for name, score in self.class_thresholds.items():
            least = self.inference.score_threshold
            if name not in self.classes or not least <= score < 1:
                raise ValueError(
                    "class_thresholds: expected names of classes with scores from "
                    f"inference.score_threshold ({least:g}) to 1, got {name}: {score:g}"
                )
        unknown = [name for name in self.calibration if name not in self.classes]
        if unknown:
            raise ValueError(f"calibration: expected names of classes, got {', '.join(unknown)}")
        if self.chip_px % self.stride_px:
            raise ValueError(
                f"chip_px: expected a multiple of {self.stride_px}, got {self.chip_px}"
            )
        if 2 * self.margin_px >= self.chip_px:
            raise ValueError(
                f"margin_px: expected less than half of chip_px ({self.chip_px}), "
                f"got {self.margin_px}"
            )
        return self

    def probability(
        self, score: NDArray[np.floating], label: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Return the probability (N,) that detections with these scores (N,) are correct.

        `label` (N,) has the indices of their classes. NaN where a class has no calibration.
        """
        result = np.full(len(score), np.nan)
        for name, calibration in self.calibration.items():
            of_class = label == self.classes.index(name)
            result[of_class] = calibration.at(score[of_class])
        return result

    def calibrated_for(self, views: Views) -> ModelCard:
        """Return the card with those calibrations that hold for a run in these views."""
        holds = {n: c for n, c in self.calibration.items() if c.measured_in.same_scores(views)}
        return self if holds == self.calibration else self.model_copy(update={"calibration": holds})

    @property
    def stride_px(self) -> int:
        """Stride of the coarsest backbone level. The side of a chip is a multiple of it."""
        return int(2 ** min(self.architecture.levels[1], 5))


def parse_card(data: object, *, origin: str) -> ModelCard:
    """Validate `data`, the parsed YAML or JSON of a card, and return the card.

    Raises:
        ModelError: names `origin` and each wrong key.
    """
    try:
        return ModelCard.model_validate(data)
    except ValidationError as error:
        raise ModelError(f"{origin}: not a model card: {explain(error, ModelCard)}") from error


def read_card(path: Path) -> ModelCard:
    """Read a card from a YAML file.

    Raises:
        ModelError: when the file is missing, not YAML, or not a card.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: cannot read a model card: {error}") from error
    return parse_card(data, origin=str(path))


def noted(card: ModelCard, **notes: dict[str, Any]) -> ModelCard:
    """Return the card with figures under `training`, each under its own name."""
    return card.model_copy(update={"training": card.training | notes})


def explain(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """Return a pydantic error as one line: for each wrong key, what was expected and what came.

    `kind` is the expected model. With it, an unknown name is reported together with the most
    similar known name, or with all names of its group.
    """
    parts: dict[str, list[str]] = {}
    for item in error.errors():
        path = [str(step) for step in item["loc"] if str(step) not in _BRANCHES]
        key = ".".join(path) or "value"
        problem = _expected(item)
        if item["type"] == "extra_forbidden":
            problem = "there is no such name" + _known_names(kind, item["loc"])
        parts.setdefault(key, []).append(problem)
    return "; ".join(f"{key}: {' or '.join(dict.fromkeys(texts))}" for key, texts in parts.items())


_BRANCHES = ("str", "int", "float", "bool")
"""Steps that pydantic adds to a path when several types are allowed."""
_TYPE_NAMES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "a text",
    "datetime": "a time such as 2026-06-21T12:00:00Z",
    "tuple": "a list",
    "list": "a list",
    "dict": "names with values",
    "model": "a group of settings",
    "path": "a path",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _expected(item: ErrorDetails) -> str:
    """Describe one error: what was expected and what came."""
    kind, limits = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(limits.get("error", item["msg"]))
    expected = _TYPE_NAMES.get(kind.rsplit("_", 1)[0].split("_")[0])
    if kind == "literal_error":
        expected = f"one of {limits['expected']}".replace("'", "").replace(" or ", ", ")
    elif kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        expected = f"{word} {limits[name]:g}"
    elif kind == "too_short":
        expected = f"at least {limits['min_length']} values"
    elif kind == "too_long":
        expected = f"at most {limits['max_length']} values"
    elif kind == "string_too_short":
        expected = "a text that is not empty"
    elif kind == "string_pattern_mismatch":
        expected = f"a text of the form {limits['pattern']}"
    if expected is None:
        return item["msg"]
    return f"expected {expected}, got {_shown(item['input'])}"


def _shown(value: object) -> str:
    """Return a short text for a value. Addresses may hold credentials and are not shown."""
    if isinstance(value, str) and "://" in value:
        return "an address"
    if isinstance(value, dict | list | tuple):
        return f"{'names with values' if isinstance(value, dict) else 'a list'} ({len(value)})"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_LONGEST = 60


def _known_names(kind: Any, path: tuple[int | str, ...]) -> str:
    """Return a hint with the known names in the group of the last, unknown name of a path."""
    *groups, wrong = path
    for group in groups:
        field = getattr(kind, "model_fields", {}).get(group)
        kind = field.annotation if field else None
    names = list(getattr(kind, "model_fields", {}))
    near = get_close_matches(str(wrong), names, n=1)
    if near:
        return f" (is it {near[0]}?)"
    return f" (there are {', '.join(names)})" if names else ""
