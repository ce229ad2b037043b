"""The arguments that training and evaluation share."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from scenesweep.jobs.shared.label_arguments import (
    add_label_arguments,
    check_trainable,
    label_settings,
)
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.labels import LabelSettings


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_label_arguments(parser)
    return parser.parse_args(["--images", "a", "b", "--labels", "c.csv", *argv])


def test_arguments_become_settings() -> None:
    arguments = parse()
    assert arguments.images == ["a", "b"]
    assert label_settings(arguments) == LabelSettings()
    given = parse(
        *("--box-m", "7.2", "--labels-format", "points", "--chip-px", "256"),
        *("--min-side-px", "8", "--min-visible", "0.5", "--whole-boxes", "--drivers", "VRT"),
        *("--class-column", "kind", "--layer", "trees"),
    )
    assert label_settings(given) == LabelSettings(
        format="points",
        box_m=7.2,
        class_column="kind",
        layer="trees",
        min_side_px=8,
        min_visible=0.5,
        clip=False,
        chip_px=256,
        drivers=("VRT",),
    )


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(UsageError, match=r"labels: box_m: expected more than 0.*; min_visible: "):
        label_settings(parse("--box-m", "-1", "--min-visible", "2"))


def test_training_needs_boxes() -> None:
    chips = np.zeros((1, 1, 64, 64), np.uint8)
    box, label = np.ones((1, 4), np.float32), np.zeros(1, np.int64)
    points = LabelledChips(("a",), chips, (box,), (label,), points=True)
    check_trainable(points, LabelSettings(box_m=6))
    with pytest.raises(UsageError, match="expected --box-m"):
        check_trainable(points, LabelSettings())
    with pytest.raises(UsageError, match="found none on 1 chips"):
        check_trainable(LabelledChips(("a",), chips, (box[:0],), (label[:0],)), LabelSettings())
