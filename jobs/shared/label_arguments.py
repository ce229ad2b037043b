"""Arguments of both training and evaluation: labels, chips, and when a prediction matches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from scenesweep.model.card import explain
from scenesweep.model.evaluate import Rule
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.labels import LabelSettings
from scenesweep.pipeline.labels.settings import Format

_DEFAULTS = LabelSettings()
_IOU = 0.5
_RADIUS_M = 6.0


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for rasters, labels and chips."""
    group = parser.add_argument_group("labels")
    group.add_argument(
        "--images", nargs="+", required=True, metavar="RASTER", help="rasters, folders or globs"
    )
    group.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO JSON; CSV with boxes (DeepForest) or points; GeoJSON, GeoParquet, GPKG, ...",
    )
    group.add_argument(
        "--labels-format",
        choices=get_args(Format),
        default=_DEFAULTS.format,
        help="default: by suffix and content",
    )
    group.add_argument(
        "--box-m", type=float, metavar="M", help="side of the square around a point, in metres"
    )
    group.add_argument("--class-column", metavar="NAME", help="column with the class")
    group.add_argument(
        "--layer", metavar="NAME", help="layer to read, of a label file with several"
    )
    group.add_argument(
        "--min-side-px",
        type=float,
        default=_DEFAULTS.min_side_px,
        metavar="PX",
        help="leave out boxes with a shorter side (default: %(default)g)",
    )
    group.add_argument(
        "--min-visible",
        type=float,
        default=_DEFAULTS.min_visible,
        metavar="SHARE",
        help="least share of a box's area that must lie in a chip (default: %(default)g)",
    )
    group.add_argument(
        "--whole-boxes", action="store_true", help="do not cut boxes at the edges of chips"
    )
    group.add_argument(
        "--chip-px", type=int, metavar="PX", help="side of the chips (default: that of the card)"
    )
    group.add_argument(
        "--drivers",
        nargs="+",
        default=list(_DEFAULTS.drivers),
        metavar="NAME",
        help="GDAL drivers for opening rasters; add VRT only for files that you trust",
    )


def label_settings(arguments: argparse.Namespace) -> LabelSettings:
    """Return the label settings of the arguments.

    Raises:
        UsageError: when a value is out of range; it names all of these.
    """
    given = {
        name: getattr(arguments, name)
        for name in ("box_m", "class_column", "layer", "min_side_px", "min_visible", "chip_px")
    }
    try:
        return LabelSettings(
            format=arguments.labels_format,
            clip=not arguments.whole_boxes,
            drivers=tuple(arguments.drivers),
            **given,
        )
    except ValidationError as error:
        raise UsageError(f"labels: {explain(error)}") from error


def check_trainable(chips: LabelledChips, settings: LabelSettings) -> None:
    """Check that the chips can be used for training.

    Raises:
        UsageError: when the labels are points without a size, or no chip has an object.
    """
    if chips.points and settings.box_m is None:
        raise UsageError(
            "expected --box-m, the side in metres of a box around a point: the labels are points"
        )
    if not chips.objects:
        raise UsageError(f"expected objects to train on, found none on {len(chips):,} chips")


def add_rule_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say when a prediction matches an object."""
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--iou", type=float, help=f"least IoU of a match (default: {_IOU})")
    rule.add_argument(
        "--radius-m",
        type=float,
        help="match centres instead, up to this distance in metres; always used for points "
        f"(default: {_RADIUS_M:g})",
    )


def check_rule(arguments: argparse.Namespace) -> None:
    """Check the IoU or the radius of a match, before anything is read.

    Raises:
        UsageError: when nothing could match.
    """
    if arguments.iou is not None and not 0 < arguments.iou <= 1:
        raise UsageError(f"--iou: expected more than 0 and up to 1, got {arguments.iou:g}")
    if arguments.radius_m is not None and not arguments.radius_m > 0:
        raise UsageError(f"--radius-m: expected metres above 0, got {arguments.radius_m:g}")


def rule_for(
    arguments: argparse.Namespace, *, points: bool, px_m: float
) -> tuple[Rule, dict[str, Any]]:
    """Return the rule, its radius in units of `px_m` metres, and its description as JSON.

    Raises:
        UsageError: when --iou is given for points.
    """
    if points and arguments.iou is not None:
        raise UsageError("--iou: expected --radius-m instead, because the labels are points")
    radius_m = arguments.radius_m or (_RADIUS_M if points else None)
    if radius_m is None:
        iou = arguments.iou or _IOU
        return Rule(iou), {"kind": "boxes", "iou": iou}
    return Rule(radius=radius_m / px_m), {"kind": "centres", "radius_m": radius_m, "px_m": px_m}
