"""One definition of a chip's detections: by chip, in a batch, and candidate by candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scenesweep.model.boxes import ChipBoxes
from scenesweep.model.card import Inference
from scenesweep.model.losses.criterion import RawOutputs, coder
from scenesweep.model.networks.batched_decode import (
    OVERFLOW,
    UNSETTLED,
    Packed,
    Room,
    decode_batch,
    needs_more,
    unpack,
)
from scenesweep.model.networks.decode import decode, decode_boxes, float_below, logistic
from tests.model.networks.decode_reference import Level, reference

SHAPE = (48, 64)


@dataclass(frozen=True)
class Case:
    """Raw outputs of some chips, their anchors, and settings."""

    outputs: list[RawOutputs]
    anchors: list[Tensor]
    inference: Inference

    @property
    def chips(self) -> int:
        return len(self.outputs[0].logits)

    def by_chip(self) -> list[ChipBoxes]:
        return [self.again(chip) for chip in range(self.chips)]

    def again(self, chip: int) -> ChipBoxes:
        return decode([raw.of(chip) for raw in self.outputs], self.anchors, self.inference, SHAPE)

    def packed(self, room: Room) -> Packed:
        return decode_batch(self.outputs, self.anchors, self.inference, SHAPE, room=room)

    def batched(self, room: Room) -> list[ChipBoxes]:
        return unpack(self.packed(room), self.again)

    def levels(self, chip: int) -> list[Level]:
        return [
            Level(
                raw.logits[chip].float().numpy(),
                raw.deltas[chip].float().numpy(),
                None if raw.quality is None else raw.quality[chip].float().numpy(),
                anchors.numpy(),
            )
            for raw, anchors in zip(self.outputs, self.anchors, strict=True)
        ]

    def alone(self, chip: int) -> Case:
        one = slice(chip, chip + 1)
        outputs = [
            RawOutputs(
                raw.logits[one], raw.deltas[one], None if raw.quality is None else raw.quality[one]
            )
            for raw in self.outputs
        ]
        return Case(outputs, self.anchors, self.inference)


INFERENCES = st.builds(
    Inference,
    score_threshold=st.sampled_from([0.0, 0.05, 0.3, 0.5]),
    nms_iou=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    class_agnostic=st.booleans(),
    topk_per_level=st.sampled_from([1, 3, 10, 1000]),
    max_detections_per_chip=st.sampled_from([1, 4, 1000]),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw few anchors with many ties; the first chip may be empty or have NaN."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    chips, classes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    branch, dtype = draw(st.booleans()), draw(st.sampled_from([torch.float32, torch.bfloat16]))
    strange = draw(st.sampled_from(["", "empty", "nan logits", "nan deltas", "infinite"]))
    steps = draw(st.sampled_from([1.0, 8.0, 1000.0]))
    outputs, anchors = [], []
    for side in draw(st.sampled_from([(8.0,), (8.0, 16.0), (4.0, 8.0, 32.0)])):
        n = draw(st.integers(1, 12))
        corner = torch.rand(n, 2, generator=generator) * torch.tensor([56.0, 40.0])
        anchors.append(torch.cat([corner, corner + side], 1))
        logits = torch.randn(chips, n, classes, generator=generator)
        logits = (logits * steps).round() / steps - draw(st.sampled_from([0.0, 2.0]))
        deltas = torch.randn(chips, n, 4, generator=generator) * 0.3
        quality = torch.randn(chips, n, generator=generator) if branch else None
        _make_strange(logits[0], deltas[0], strange)
        outputs.append(
            RawOutputs(
                logits.to(dtype), deltas.to(dtype), None if quality is None else quality.to(dtype)
            )
        )
    return Case(outputs, anchors, draw(INFERENCES))


def _make_strange(logits: Tensor, deltas: Tensor, strange: str) -> None:
    if strange == "empty":
        logits.fill_(-100)
    elif strange == "nan logits":
        logits[::2] = torch.nan
    elif strange == "nan deltas":
        deltas[::2, 1] = torch.nan
    elif strange == "infinite":
        logits[::2] = torch.inf
        deltas[::2, 3] = torch.inf


def rows_of(chip: ChipBoxes) -> tuple[list[tuple[float, ...]], bool]:
    columns = [chip.boxes, chip.scores[:, None], chip.labels[:, None].float()]
    return [tuple(row) for row in torch.cat(columns, 1).tolist()], chip.capped


@given(cases())
def test_a_chip_is_decoded_as_defined(case: Case) -> None:
    for chip, found in enumerate(case.by_chip()):
        assert rows_of(found) == reference(case.levels(chip), case.inference, SHAPE)


ROOMS = st.builds(
    Room,
    capacity=st.sampled_from([1, 3, 8, 100]),
    rounds=st.sampled_from([1, 2, 50]),
    band=st.sampled_from([None, 1, 2, 5, 20]),
)


@given(cases(), ROOMS)
def test_a_batch_is_decoded_as_its_chips(case: Case, room: Room) -> None:
    batched = case.batched(room)
    assert list(map(rows_of, batched)) == list(map(rows_of, case.by_chip()))


@given(cases())
def test_a_chip_alone_is_decoded_as_in_company(case: Case) -> None:
    together = list(map(rows_of, case.batched(Room(100, 50))))
    for chip in range(case.chips):
        (alone,) = case.alone(chip).batched(Room(100, 50))
        assert rows_of(alone) == together[chip]


def many(chips: int = 2, *, spread: float = 40.0) -> Case:
    """Return chips with 300 candidates each, in a chain of overlaps if they are spread little."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(300, 2, generator=generator) * spread
    raw = RawOutputs(
        torch.randn(chips, 300, 1, generator=generator), torch.zeros(chips, 300, 4), None
    )
    inference = Inference(score_threshold=0.01, nms_iou=0.3)
    return Case([raw], [torch.cat([corner, corner + 8], 1)], inference)


@pytest.mark.parametrize(
    ("room", "flag"),
    [
        (Room(299, 50), OVERFLOW),
        (Room(300, 1), UNSETTLED),
        (Room(300, 50), None),
        (Room(300, 50, band=30), UNSETTLED),
        (Room(300, 50, band=100), None),
    ],
)
def test_a_chip_that_needs_more_is_marked(room: Room, flag: int | None) -> None:
    case = many()
    packed = case.packed(room)
    wanted = [number == flag for number in range(1, 3)]
    assert packed.flags[:, 1:].tolist() == [wanted] * 2
    assert needs_more(packed) == ([] if flag is None else [0, 1])
    assert list(map(rows_of, case.batched(room))) == list(map(rows_of, case.by_chip()))


def test_scores_do_not_depend_on_the_position_in_the_tensor() -> None:
    logits = torch.randn(1003, generator=torch.Generator().manual_seed(0)) * 5
    one_by_one = torch.cat([logistic(logit[None]) for logit in logits])
    assert torch.equal(logistic(logits), one_by_one)


def test_boxes_are_those_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(1000, 4, generator=generator) * 2
    corner = torch.rand(1000, 2, generator=generator) * 500
    anchors = torch.cat([corner, corner + 32], 1)
    ours, theirs = decode_boxes(deltas, anchors), coder.decode_single(deltas, anchors)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-4)


@given(st.floats(0, 1), st.floats(0, 1, width=32))
def test_float_below_compares_as_the_double_does(setting: float, value: float) -> None:
    below = np.float32(float_below(setting))
    assert float(below) == float_below(setting)
    assert bool(np.float32(value) > below) is (value > setting)
