"""Options of `detect` for masks of clouds and for vector layers."""

from __future__ import annotations

import argparse
from typing import get_args

from scenesweep.pipeline.raster.mask_settings import Preset

MASK_OPTIONS = {
    "preset": "mask",
    "asset": "mask_asset",
    "file": "mask_file",
    "values": "mask_values",
    "policy": "mask_policy",
}
"""The option of each of these settings of the group `mask`."""
LAYER_OPTIONS = {"exclude": "exclude", "near": "near"}
"""The same for the group `layers`."""


def add_ground_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of masks and layers."""
    group = parser.add_argument_group("masks of clouds (docs/inputs.md)")
    group.add_argument(
        "--mask",
        choices=get_args(Preset),
        help="a preset for a sensor: where the mask of each scene is and which values are masked; "
        "the other options replace parts of it",
    )
    group.add_argument(
        "--mask-asset", metavar="KEY", help="key or role of the STAC asset with the mask"
    )
    group.add_argument(
        "--mask-file",
        metavar="NAME",
        help="name of the mask beside each scene; `*` stands for the beginning of the scene's name",
    )
    group.add_argument(
        "--mask-values", type=_numbers, metavar="3,8,9,10", help="values of masked pixels"
    )
    group.add_argument(
        "--mask-policy",
        choices=("flag", "drop"),
        help="flag (default): publish all detections, with the share of each that is masked; "
        "drop: skip masked windows and drop masked detections",
    )
    group = parser.add_argument_group("layers (docs/inputs.md)")
    group.add_argument(
        "--exclude",
        action="append",
        metavar="FILE",
        help="vector file with polygons; the column `excluded` marks detections in them; may be "
        "repeated",
    )
    group.add_argument(
        "--near",
        metavar="FILE:METRES",
        help="vector file with known objects; the columns `near_id` and `near_m` name the nearest "
        "one within so many metres",
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers such as 3,8,9, got {text}"
        ) from error
