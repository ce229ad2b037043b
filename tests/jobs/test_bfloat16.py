"""The shipped models in bfloat16 are as accurate as in float32: F and AP50 within 0.003.

On a CPU without instructions for bfloat16, the test rounds weights and the result of each layer to
bfloat16, and computes in float32. That is what such instructions do, and it is faster there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from scenesweep.model.card import ModelCard
from scenesweep.model.evaluate import (
    Comparison,
    Evaluation,
    Rule,
    compare_chips,
    evaluate_comparisons,
)
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.inference.detector import Detector, load_detector
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.private_apis.torch import cpu_computes_bfloat16
from scenesweep.model.settings import DetectorSettings
from scenesweep.pipeline.labels import LabelSettings, read_chips
from tests.rasters import SHARED, needs_data

LOWEST_SCORE = 0.05
TOLERANCE = 0.003


@needs_data
def test_naip_trees() -> None:
    """On its 86 validation chips. Their labels are points, so there is no AP."""
    model, folder = open_model("naip-trees"), SHARED / "naip_trees"
    chips, _ = read_chips(
        [str(folder / "images")],
        folder / "trees.csv",
        model.card,
        LabelSettings(),
        names=folder / "val.txt",
    )
    assert len(chips) == 86
    exact, rounded = compared(model, [chips], Rule(radius=6 / model.card.gsd_m))
    assert exact.own.f_score > 0.745
    assert abs(rounded.own.f_score - exact.own.f_score) <= TOLERANCE
    assert abs(rounded.best.f_score - exact.best.f_score) <= TOLERANCE


@needs_data
def test_overhead_buildings(tmp_path: Path) -> None:
    """On its 8 held-out chips, in all eight symmetries of the square.

    These chips have 353 objects, so one object more or less changes F by 0.003. With the flipped
    and turned chips, rounding has 2,824 objects to change.
    """
    model, folder = open_model("overhead-buildings"), SHARED / "banepa_buildings"
    names = sorted(path.stem for path in (folder / "chips").glob("*386693*.tif"))
    (tmp_path / "held-out.txt").write_text("\n".join(names))
    chips, _ = read_chips(
        [str(folder / "chips")],
        folder / "annotations_coco.json",
        model.card,
        LabelSettings(min_side_px=4),
        names=tmp_path / "held-out.txt",
    )
    assert len(chips) == 8
    exact, rounded = compared(model, symmetries(chips), Rule(0.5))
    assert abs(rounded.own.f_score - exact.own.f_score) <= TOLERANCE
    assert np.abs(precisions(rounded) - precisions(exact)).max() <= TOLERANCE


def compared(
    model: ModelFile, sets: list[LabelledChips] | Iterator[LabelledChips], rule: Rule
) -> tuple[Evaluation, Evaluation]:
    """Evaluate a model on all sets together, in float32 and in bfloat16."""
    exact, rounded = detector(model, "float32"), in_bfloat16(model)
    found: tuple[list[Comparison], list[Comparison]] = ([], [])
    for chips in sets:
        found[0].extend(compare_chips(exact, chips))
        found[1].extend(compare_chips(rounded, chips))
    first, second = (evaluated(comparisons, model.card, rule) for comparisons in found)
    return first, second


def precisions(evaluation: Evaluation) -> NDArray[np.float64]:
    """Return AP and AP50."""
    assert evaluation.average is not None
    return np.array([evaluation.average.ap, evaluation.average.ap50], np.float64)


def evaluated(comparisons: list[Comparison], card: ModelCard, rule: Rule) -> Evaluation:
    threshold = card.inference.score_threshold
    return evaluate_comparisons(comparisons, rule, classes=card.classes, threshold=threshold)


def detector(model: ModelFile, precision: str) -> Detector:
    settings = DetectorSettings.model_validate({"device": "cpu", "precision": precision})
    low = model.card.inference.model_copy(update={"score_threshold": LOWEST_SCORE})
    return load_detector(model, settings, inference=low)


def in_bfloat16(model: ModelFile) -> Detector:
    """Return a detector that computes in bfloat16, or that rounds to it."""
    if cpu_computes_bfloat16():
        return detector(model, "bfloat16")
    rounding = detector(model, "float32")
    round_to_bfloat16(rounding.network)
    return rounding


def round_to_bfloat16(network: nn.Module) -> None:
    """Round the weights of a network, and from now on its chips and the results of its layers."""
    for weight in network.parameters():
        weight.data.copy_(weight.bfloat16())
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs)))
            layer.register_forward_hook(lambda _, __, output: rounded(output))


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


def symmetries(chips: LabelledChips) -> Iterator[LabelledChips]:
    """Yield the chips in the eight symmetries of the square, with their boxes."""
    for columns, rows, turned in product((False, True), repeat=3):
        pixels, boxes = chips.chips, [box.copy() for box in chips.boxes]
        if columns:
            pixels, boxes = pixels[..., ::-1], [mirrored(box, 0, chips.chip_px) for box in boxes]
        if rows:
            pixels, boxes = pixels[..., ::-1, :], [mirrored(box, 1, chips.chip_px) for box in boxes]
        if turned:
            pixels, boxes = pixels.swapaxes(2, 3), [box[:, [1, 0, 3, 2]] for box in boxes]
        yield replace(chips, chips=np.ascontiguousarray(pixels), boxes=tuple(boxes))


def mirrored(boxes: NDArray[np.float32], axis: int, side: int) -> NDArray[np.float32]:
    result = boxes.copy()
    result[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    return result


@pytest.mark.parametrize("name", ["naip-trees", "overhead-buildings"])
def test_emulated_bfloat16_is_near_the_instructions(name: str) -> None:
    """Logits of both ways differ no more from each other than from float32."""
    if not cpu_computes_bfloat16():
        pytest.skip("this CPU has no instructions for bfloat16")
    model = open_model(name)
    exact, real = detector(model, "float32"), detector(model, "bfloat16")
    emulated = detector(model, "float32")
    round_to_bfloat16(emulated.network)
    shape = (1, len(model.card.bands), 128, 128)
    chips = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    with torch.inference_mode():
        a, b, c = (one.network(one.prepare(chips))[0].logits for one in (exact, real, emulated))
    error = float((b.float() - a).square().mean().sqrt())
    assert 0 < error < 0.1
    assert float((c - b.float()).square().mean().sqrt()) < 1.5 * error
