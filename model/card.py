"""The model card: everything about a detector that is not its weights.

The card travels inside the weights file (`model.files.checkpoint`), so a model cannot be run at a
scale, with bands or with thresholds other than those it was made for without saying so.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from scenesweep.model.architecture import Architecture, Assignment, Frozen, Losses
from scenesweep.model.errors import ModelError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Scaling(Frozen):
    """How source values become the 0..255 that the network was trained on.

    uint8 sources are taken as they are. Other types are stretched linearly from
    `source_range` when it is given, else from the percentiles of the whole scene.
    """

    source_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (2.0, 98.0)
    mean: tuple[float, ...] = ()
    """Per band, of values divided by 255; empty: 0.5 for each band."""
    std: tuple[float, ...] = ()
    """Per band, of values divided by 255; empty: 0.25 for each band."""


class Inference(Frozen):
    """Thresholds and caps. Reaching a cap is counted and reported."""

    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_iou: float = Field(0.5, gt=0, le=1)
    class_agnostic: bool = False
    """Suppress boxes of different classes against each other too."""
    topk_per_level: int = Field(1000, ge=1)
    max_detections_per_chip: int = Field(1000, ge=1)


class ModelCard(Frozen):
    """What a model finds, what it must be shown, and how it was built."""

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
    """Overlap on each inner side of a chip: at least the size of the largest object."""
    missing_bands_ok: tuple[str, ...] = ()
    """Bands of the above that the network has learnt to do without: where a scene lacks one,
    it is filled with the band's mean."""
    architecture: Architecture = Architecture()
    assignment: Assignment = Assignment()
    losses: Losses = Losses()
    scaling: Scaling = Scaling()
    inference: Inference = Inference()
    training: dict[str, Any] = Field(default_factory=dict)
    """How it was made and how good it was: for people, not read by the program."""

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self.scaling, name)) not in (0, len(self.bands)):
                raise ValueError(f"scaling.{name} needs one number for each of {self.bands}")
        strangers = [name for name in self.missing_bands_ok if name not in self.bands]
        if strangers:
            raise ValueError(f"missing_bands_ok: {', '.join(strangers)} not among bands")
        if self.architecture.kind != "retinanet" and (self.assignment, self.losses) != (
            Assignment(),
            Losses(),
        ):
            raise ValueError(
                f"{self.architecture.kind} brings its own targets: assignment and losses not used"
            )
        if isinstance(self.losses.alpha, tuple) and len(self.losses.alpha) != len(self.classes):
            raise ValueError(f"losses.alpha needs one number for each of {self.classes}")
        if len(self.losses.class_counts) not in (0, len(self.classes)):
            raise ValueError(f"losses.class_counts needs one number for each of {self.classes}")
        if self.chip_px % self.stride_px:
            raise ValueError(f"chip_px must be a multiple of {self.stride_px}, got {self.chip_px}")
        if 2 * self.margin_px >= self.chip_px:
            raise ValueError(f"margin_px must be under half of chip_px ({self.chip_px})")
        return self

    @property
    def stride_px(self) -> int:
        """Stride of the coarsest backbone level: chips are a multiple of it."""
        return int(2 ** min(self.architecture.levels[1], 5))


def parse_card(data: object, *, origin: str) -> ModelCard:
    """Check `data` (the parsed YAML or JSON of a card) and return the card.

    Raises:
        ModelError: naming `origin` and each key that is wrong.
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


def explain(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """Put a pydantic error on one line: each wrong key with what was expected and what came.

    With the `kind` that was expected, a name that it lacks is told with the one nearest to it,
    or with all of its group.
    """
    parts: dict[str, list[str]] = {}
    for item in error.errors():
        path = [str(step) for step in item["loc"] if str(step) not in _BRANCHES]
        key = ".".join(path) or "value"
        said = _expected(item)
        if item["type"] == "extra_forbidden":
            said = "there is no such name" + _others(kind, item["loc"])
        parts.setdefault(key, []).append(said)
    return "; ".join(f"{key}: {' or '.join(dict.fromkeys(said))}" for key, said in parts.items())


_BRANCHES = ("str", "int", "float", "bool")
"""What pydantic adds to a path where several types are allowed."""
_WANTED = {
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
    """Say of one error what was expected and what came."""
    kind, limits = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(limits.get("error", item["msg"]))
    wanted = _WANTED.get(kind.rsplit("_", 1)[0].split("_")[0])
    if kind == "literal_error":
        wanted = f"one of {limits['expected']}".replace("'", "").replace(" or ", ", ")
    elif kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        wanted = f"{word} {limits[name]:g}"
    elif kind == "too_short":
        wanted = f"at least {limits['min_length']} values"
    elif kind == "too_long":
        wanted = f"at most {limits['max_length']} values"
    elif kind == "string_too_short":
        wanted = "a text that is not empty"
    elif kind == "string_pattern_mismatch":
        wanted = f"a text of the form {limits['pattern']}"
    if wanted is None:
        return item["msg"]
    return f"expected {wanted}, got {_shown(item['input'])}"


def _shown(value: object) -> str:
    """Return a value of a file or a command line in a few words, and no address in full."""
    if isinstance(value, str) and "://" in value:
        return "an address"
    if isinstance(value, dict | list | tuple):
        return f"{'names with values' if isinstance(value, dict) else 'a list'} ({len(value)})"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_LONGEST = 60


def _others(kind: Any, path: tuple[int | str, ...]) -> str:
    """Return the names that are there in place of the last of a path."""
    *groups, wrong = path
    for group in groups:
        field = getattr(kind, "model_fields", {}).get(group)
        kind = field.annotation if field else None
    names = list(getattr(kind, "model_fields", {}))
    near = get_close_matches(str(wrong), names, n=1)
    if near:
        return f" (is it {near[0]}?)"
    return f" (there are {', '.join(names)})" if names else ""
