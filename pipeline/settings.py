"""Settings: one frozen tree, from a YAML file and `--set a.b=c`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from scenesweep.model.architecture import Frozen
from scenesweep.model.card import Inference, ModelCard, explain
from scenesweep.model.settings import DetectorSettings, Views
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.geometry.layers import LayerSettings
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.mask_settings import MaskSettings
from scenesweep.pipeline.storage.remote import local_file, shown

_FIT_PX = 64
T = TypeVar("T", bound=Frozen)


class SceneSettings(Frozen):
    """How scenes are opened and named."""

    drivers: tuple[str, ...] = DRIVERS
    """GDAL formats that a scene may have. `--driver NAME` adds one."""
    ids: Literal["stem", "path"] = "stem"
    """`stem`: the id of a scene is its file name without the suffix. `path`: the name of the folder
    comes before it, for files of equal names, and a hash where that may not be unique either."""
    checksums: Literal["ignore", "given", "record"] = "given"
    """`given`: compare a scene with `<scene>.sha256` in its folder, if there is one. `record`: also
    record a checksum in OUT/checksums at the first run, and compare with it in later runs.
    `ignore`: compare with neither."""
    pixel_coordinates: bool = False
    """Treat scenes as plain pictures: boxes are in pixels, and there is no GeoJSON."""
    acquired_at: datetime | None = None
    """Acquisition time of the scenes that have none in their tags, such as 2026-06-21."""


class TilingSettings(Frozen):
    """How scenes are cut into windows, in pixels of the model's grid."""

    chip: int | None = Field(None, ge=64, le=8192)
    """Side of a window. Empty: the card's `chip_px`."""
    margin: int | None = Field(None, ge=0)
    """Overlap of windows on each inner side. Empty: the card's `margin_px`."""
    slack: float = Field(2.0, ge=0)
    """How far outside its core a window may report the centre of a box. Two windows place one
    object slightly differently; without slack, neither of them might report it."""
    shard: int | None = Field(None, ge=1, le=64)
    """Windows along each side of a shard. Empty: 8; 4 in scenes of under 16,384 windows, 2
    under 1,024 and 1 under 64."""
    fit: int | None = Field(None, ge=1)
    """A scene or an island of valid pixels that is shorter than a chip gets windows of the next
    multiple of this. Empty: 64, or the network's stride if that is more."""

    def resolved(self, card: ModelCard) -> ResolvedTiling:
        """Return these settings with chip, margin and fit decided.

        Raises:
            UsageError: when chip and margin do not go together, or do not fit the network.
        """
        chip = self.chip or card.chip_px
        margin = card.margin_px if self.margin is None else self.margin
        if chip % card.stride_px or 2 * margin >= chip:
            raise UsageError(
                f"tiling: chip must be a multiple of {card.stride_px} and more than twice the "
                f"margin, got chip {chip} and margin {margin}"
            )
        fit = self.fit or max(_FIT_PX, card.stride_px)
        if fit % card.stride_px:
            raise UsageError(
                f"tiling.fit: expected a multiple of {card.stride_px} for this model, got {fit}"
            )
        decided = {"chip": chip, "margin": margin, "fit": fit}
        return ResolvedTiling(**(self.model_dump() | decided))


class ReadSettings(Frozen):
    """How pixels become chips."""

    bands: tuple[str | int, ...] | None = None
    """Names or 1-based indices of the bands to read, in the model's order. Empty: the card's
    `bands`."""
    source_range: tuple[float, float] | None = None
    """Values of 16-bit and float scenes that become the darkest and the brightest. Empty: the
    card's range, or percentiles of the scene where the card has none."""
    gsd_tolerance: float = Field(0.1, ge=0, lt=1)
    """Relative difference from the card's GSD up to which pixels are not resampled."""
    max_coarser: float = Field(4.0, ge=1)
    """A scene is refused if its pixels are more than so many times as large as the card's GSD: the
    model's objects cannot be seen in it. Finer scenes are always resampled."""

    def resolved(self, card: ModelCard) -> ResolvedRead:
        """Return these settings with the bands, and the card's range of values if it has one.

        Raises:
            UsageError: when the number of bands is not the model's.
        """
        bands = self.bands or card.bands
        if len(bands) != len(card.bands):
            raise UsageError(
                f"read.bands: the model takes {len(card.bands)} bands, got {len(bands)}"
            )
        source_range = self.source_range or card.scaling.source_range
        return ResolvedRead(**(self.model_dump() | {"bands": bands, "source_range": source_range}))


class DetectSettings(DetectorSettings, Views):
    """Device, precision, views, and values that replace the card's thresholds and limits."""

    score_threshold: float | None = Field(None, ge=0, lt=1)
    """Lowest score of a detection. Empty: the card's."""
    nms_iou: float | None = Field(None, gt=0, le=1)
    """Overlap (IoU) above which the box with the lower score is dropped. Empty: the card's."""
    class_agnostic: bool | None = None
    """Whether boxes of different classes suppress each other too. Empty: the card's."""
    topk_per_level: int | None = Field(None, ge=1)
    """Candidates kept for each level of the pyramid. Empty: the card's."""
    max_detections_per_chip: int | None = Field(None, ge=1)
    """Detections kept for each chip. Empty: the card's."""

    def identity(self) -> dict[str, Any]:
        """Return all that the boxes depend on; the rule of views only if there are several."""
        return self.model_dump(exclude=set(Views.model_fields) if self.is_plain else None)

    def inference(self, card: ModelCard) -> Inference:
        """Return the card's inference values, replaced by those that are set here."""
        set_here = self.model_dump(include=set(Inference.model_fields), exclude_none=True)
        return Inference(**(card.inference.model_dump() | set_here))

    def resolved(self, card: ModelCard) -> ResolvedDetect:
        """Return these settings with all thresholds and caps decided."""
        return ResolvedDetect(**(self.model_dump() | self.inference(card).model_dump()))


class MergeSettings(Frozen):
    """When two detections are one object."""

    iou: float | None = Field(None, gt=0, le=1)
    """Boxes that overlap (IoU) more than this are one object. Empty: `detect.nms_iou`."""
    containment: float = Field(0.5, gt=0, le=1)
    """A box that a window edge cuts is dropped when more than this share of it lies inside a box
    that no edge cuts."""
    class_agnostic: bool = False
    """Whether boxes of different classes can be one object."""
    stitch: bool = False
    """Join the pieces of objects that are larger than the margin."""
    min_scores: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Lowest score for each class, such as `{ship: 0.5}`; at least `detect.score_threshold`.
    Empty: the card's `class_thresholds`, unless `detect.score_threshold` differs from the card."""

    def resolved(self, card: ModelCard, inference: Inference) -> ResolvedMerge:
        """Return these settings with the IoU decided, and the least scores checked.

        Raises:
            UsageError: when a least score does not fit the model.
        """
        iou = self.iou or inference.nms_iou
        least = self.least_scores(card, detected_from=inference.score_threshold)
        return ResolvedMerge(**(self.model_dump() | {"iou": iou, "min_scores": least}))

    def least_scores(self, card: ModelCard, *, detected_from: float) -> dict[str, float]:
        """Return the least score of each class that has one, checked against the model.

        Without any, it is the card's, unless the run has another threshold of the detector.

        Raises:
            UsageError: when the model does not have a class, or a score lies below the
                detector's threshold.
        """
        if not self.min_scores and detected_from == card.inference.score_threshold:
            return dict(sorted(card.class_thresholds.items()))
        for name, score in self.min_scores.items():
            if name not in card.classes:
                raise UsageError(
                    f"merge.min_scores: expected classes of the model ({', '.join(card.classes)}), "
                    f"got {name!r}"
                )
            if score < detected_from:
                raise UsageError(
                    f"merge.min_scores.{name}: expected at least detect.score_threshold "
                    f"({detected_from:g}), got {score:g}"
                )
        return dict(sorted(self.min_scores.items()))


class PublishSettings(Frozen):
    """The files that are written for each scene besides GeoParquet."""

    formats: tuple[Literal["geojson", "flatgeobuf", "gpkg", "pmtiles", "coco"], ...] = ("geojson",)
    """Formats to write besides GeoParquet, each in its own folder. GeoJSON, FlatGeobuf and
    GeoPackage come with a QGIS style (`.qml`). `pmtiles` are vector tiles for web maps."""
    geojson_max_rows: int = Field(250_000, ge=0)
    """A scene with more detections gets no GeoJSON but a warning: 250,000 are 200 MB of text."""
    stac: bool = True
    """Write a STAC item for each scene, and a catalog at the end of a run."""
    quicklook: bool = True
    """Write a small picture of each scene."""
    quicklook_px: int = Field(2048, ge=64, le=16384)
    """Longer side of that picture. It also limits the picture of a page whose scene is not
    available."""


class EngineSettings(Frozen):
    """How work is spread over workers. Nothing here changes the detections."""

    detectors: int | None = Field(None, ge=1)
    """Largest number of detector actors. Empty: one for each GPU; without GPUs, one for every
    `detect.threads` CPUs. If it is empty, nodes that join during a run get detectors too."""
    detectors_per_gpu: int = Field(1, ge=1, le=16)
    """Detectors that share a GPU, each with its share of the memory. For a small network on a
    large GPU."""
    batch_windows: int | None = Field(None, ge=1)
    """A worker gets small shards together, also of several scenes, up to so many windows. Empty:
    16, or more on a fast detector: as many as take it 50 ms, at most 256."""
    max_windows: int = Field(1_000_000, ge=1)
    """A scene of more windows is refused before it is read: its header is wrong, or its pixel size
    does not fit the model. A million windows of 512 px are 200 Gpx of the model's grid."""
    attempts: int = Field(2, ge=1)
    """A scene fails after so many crashes or timeouts of a worker on one of its shards."""
    plan_timeout_s: float = Field(600, gt=0)
    """Timeout of planning a scene, on Ray. Planning reads few pixels, but all bytes of a file that
    has a checksum. Like the other timeouts, it counts from the moment a worker begins; time in the
    queue does not count."""
    read_timeout_s: float = Field(600, gt=0)
    """Timeout of reading a batch of shards."""
    detect_timeout_s: float = Field(1800, gt=0)
    """Timeout of detection on a batch of shards."""
    publish_timeout_s: float = Field(3600, gt=0)
    """Timeout of merging and publishing a scene, or a piece of a large one."""
    pieces_from_windows: int = Field(4096, ge=1)
    """A scene of so many windows is published in pieces by several workers: merged in strips, its
    formats written at the same time. Each piece has the time limit `publish_timeout_s`."""
    price_per_gpu_hour: float | None = Field(None, ge=0)
    """Price of a GPU for an hour, in any currency: then the dry run and the report have a cost."""
    price_per_core_hour: float | None = Field(None, ge=0)
    """Price of a CPU core for an hour, in the same currency."""
    stop_grace_s: float | None = Field(None, gt=0)
    """Seconds that the current piece may take when the run is asked to stop. Empty: 60 after
    Ctrl-C; after SIGTERM, half of the environment's RAY_JOB_STOP_WAIT_TIME_S (default 3)."""


class ResolvedTiling(TilingSettings):
    """How scenes are cut, with the values that the card decided. `shard` depends on the scene."""

    chip: int
    margin: int
    fit: int


class ResolvedRead(ReadSettings):
    """How pixels become chips. Without a `source_range` the card's percentiles apply."""

    bands: tuple[str | int, ...]


class ResolvedDetect(DetectSettings):
    """Device and precision, and all thresholds and caps."""

    score_threshold: float
    nms_iou: float
    class_agnostic: bool
    topk_per_level: int
    max_detections_per_chip: int


class ResolvedMerge(MergeSettings):
    """What makes two detections one object, with the IoU that applies."""

    iou: float


class ResolvedSettings(Frozen):
    """Settings after `Settings.resolved`: nothing is left to the model card.

    It has the groups of `Settings`, in the same order: fingerprints and reports hold its dump.
    """

    scenes: SceneSettings
    tiling: ResolvedTiling
    read: ResolvedRead
    detect: ResolvedDetect
    merge: ResolvedMerge
    mask: MaskSettings
    layers: LayerSettings
    publish: PublishSettings
    engine: EngineSettings


class Settings(Frozen):
    """All settings of a run, each with a default. `resolved` fits them to a model."""

    scenes: SceneSettings = SceneSettings()
    tiling: TilingSettings = TilingSettings()
    read: ReadSettings = ReadSettings()
    detect: DetectSettings = DetectSettings()
    merge: MergeSettings = MergeSettings()
    mask: MaskSettings = MaskSettings()
    layers: LayerSettings = LayerSettings()
    publish: PublishSettings = PublishSettings()
    engine: EngineSettings = EngineSettings()

    def resolved(self, card: ModelCard) -> ResolvedSettings:
        """Take values that are not set from the model card; the result describes a run completely.

        Raises:
            UsageError: when the settings do not fit the model.
        """
        return ResolvedSettings(
            scenes=self.scenes,
            tiling=self.tiling.resolved(card),
            read=self.read.resolved(card),
            detect=self.detect.resolved(card),
            merge=self.merge.resolved(card, self.detect.inference(card)),
            mask=self.mask.resolved(),
            layers=self.layers.names_only(),
            publish=self.publish,
            engine=self.engine,
        )


def load_settings(config: Path | None = None, assignments: Sequence[str] = ()) -> Settings:
    """Read settings from YAML and apply `a.b=c` assignments; the last one wins.

    Raises:
        UsageError: for a missing file, an unknown key or a value of the wrong kind.
    """
    return validated(Settings, settings_tree(config, assignments))


def settings_tree(config: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Return the file's tree with the assignments applied, before validation."""
    tree = read_yaml(config) if config else {}
    for assignment in assignments:
        assign(tree, assignment)
    return tree


def validated(kind: type[T], tree: Mapping[str, Any]) -> T:
    """Validate a tree of settings and return it as `kind`: `Settings` or a subclass.

    Raises:
        UsageError: for an unknown key or a value of the wrong kind.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"settings: {explain(error, kind)}") from error


def fingerprint(*parts: object) -> str:
    """Hash JSON-able values to 16 hex digits. Equal values give equal digits on any machine."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of settings; an empty file is an empty mapping. A remote one is copied first.

    Raises:
        UsageError: when the file cannot be read or is not a mapping.
    """
    name = shown(path)
    try:
        tree = yaml.safe_load(local_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"{name}: cannot read settings: {why}") from error
    if not isinstance(tree, dict | None):
        raise UsageError(
            f"{name}: expected a YAML mapping of settings, found {type(tree).__name__}"
        )
    return tree or {}


def assign(tree: dict[str, Any], assignment: str) -> None:
    """Apply an assignment `a.b=value` to a tree of settings. The value is YAML.

    Raises:
        UsageError: when the assignment has another form.
    """
    key, sign, text = assignment.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"--set {assignment}: expected the form a.b=value")
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(f"--set {assignment}: {parent} is a value, not a group of settings")
    try:
        tree[last] = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"--set {assignment}: {text!r} is not a YAML value") from error
