"""The merge equals its definition, whatever the order and the grouping."""

from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scenesweep.pipeline.detection import merge as merging
from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.detection.merge import in_order, merge, settle, touching
from scenesweep.pipeline.settings import ResolvedMerge


def reference(boxes: Candidates, settings: ResolvedMerge) -> list[tuple[float, ...]]:
    """The definition in `pipeline.detection.merge`, as a slow and obvious loop."""
    assert settings.iou is not None
    rows = sorted(
        zip(
            boxes.cut.tolist(),
            (-boxes.score).tolist(),
            boxes.xyxy.tolist(),
            boxes.label.tolist(),
            strict=True,
        )
    )
    kept: list[tuple[bool, float, list[float], int]] = []
    for cut, score, box, label in rows:
        for kept_cut, _, other, kept_label in kept:
            if label != kept_label and not settings.class_agnostic:
                continue
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            shared = max(width, 0) * max(height, 0)
            own = (box[2] - box[0]) * (box[3] - box[1])
            union = own + (other[2] - other[0]) * (other[3] - other[1]) - shared
            if box == other or shared > settings.iou * union:
                break
            if cut and not kept_cut and shared > settings.containment * own:
                break
        else:
            kept.append((cut, score, box, label))
    return [(*box, -score, label, cut) for cut, score, box, label in kept]


def rows(boxes: Candidates) -> list[tuple[float, ...]]:
    return [
        (*box, score, label, cut)
        for box, score, label, cut in zip(
            boxes.xyxy.tolist(),
            boxes.score.tolist(),
            boxes.label.tolist(),
            boxes.cut.tolist(),
            strict=True,
        )
    ]


def crowd(count: int, seed: int, *, classes: int = 2) -> Candidates:
    """Boxes on a coarse lattice, so that ties, equal boxes and long chains are common."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 2 + count // 2, (count, 2)).astype(np.float64)
    side = rng.integers(0, 8, (count, 2))
    return Candidates(
        np.hstack([corner, corner + side]),
        (rng.integers(1, 6, count) / 8).astype(np.float32),
        rng.integers(0, classes, count).astype(np.int16),
        rng.random(count) < 0.3,
    )


SETTINGS = st.builds(
    ResolvedMerge,
    iou=st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]),
    containment=st.sampled_from([0.3, 0.5, 0.8]),
    class_agnostic=st.booleans(),
)


@given(st.integers(0, 60), st.integers(0, 2**32 - 1), SETTINGS)
def test_merge_equals_the_definition(count: int, seed: int, settings: ResolvedMerge) -> None:
    boxes = crowd(count, seed)
    assert rows(merge(boxes, settings)) == reference(boxes, settings)


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), SETTINGS)
def test_order_and_grouping_do_not_matter(count: int, seed: int, settings: ResolvedMerge) -> None:
    boxes = crowd(count, seed)
    shuffled = boxes.take(np.random.default_rng(seed).permutation(count))
    halves = [shuffled.take(np.arange(count) % 2 == i) for i in (1, 0)]
    assert rows(merge(Candidates.join(*halves), settings)) == rows(merge(boxes, settings))


@given(
    count=st.integers(0, 80),
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from([1, 7, 1000]),
    large=st.sampled_from([1.0, 50.0, 3000.0]),
)
def test_all_pairs_that_touch_are_found_once(
    count: int, seed: int, block: int, large: float
) -> None:
    rng = np.random.default_rng(seed)
    corner = np.round(rng.uniform(-300, 300, (count, 2)))
    side = np.round(
        rng.uniform(0, 40, (count, 2)) * np.where(rng.random((count, 2)) < 0.1, large, 1)
    )
    boxes, group = np.hstack([corner, corner + side]), rng.integers(0, 3, count).astype(np.int16)
    with patch.object(merging, "_BLOCK", block):
        found = [pair for i, j in touching(boxes, group) for pair in zip(i, j, strict=True)]
    meet = (boxes[:, None, :2] <= boxes[None, :, 2:]).all(axis=2)
    meet &= meet.T & (group[:, None] == group[None, :])
    expected = set(zip(*np.nonzero(np.triu(meet, 1)), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_a_cut_box_never_beats_the_whole_one() -> None:
    boxes = Candidates(
        np.array([[0.0, 0, 10, 10], [0, 0, 9, 10], [0, 0, 3, 10]]),
        np.array([0.3, 0.9, 0.99], np.float32),
        np.zeros(3, np.int16),
        np.array([False, True, True]),
    )
    kept = merge(boxes, ResolvedMerge(iou=0.5))
    assert kept.xyxy.tolist() == [[0, 0, 10, 10]]
    assert kept.score.tolist() == [np.float32(0.3)]


def test_fragments_of_a_large_object_are_stitched() -> None:
    boxes = Candidates(
        np.array([[0.0, 0, 60, 20], [40, 0, 100, 20], [200, 0, 230, 20]]),
        np.array([0.5, 0.7, 0.6], np.float32),
        np.zeros(3, np.int16),
        np.array([True, True, True]),
    )
    assert len(merge(boxes, ResolvedMerge(iou=0.5))) == 3
    stitched = merge(boxes, ResolvedMerge(iou=0.5, stitch=True))
    assert stitched.xyxy.tolist() == [[0, 0, 100, 20], [200, 0, 230, 20]]
    assert stitched.score.tolist() == [np.float32(0.7), np.float32(0.6)]
    assert stitched.cut.all()


def test_boxes_of_two_classes_stand_on_one_another() -> None:
    boxes = Candidates(
        np.array([[0.0, 0, 9, 9]] * 2),
        np.array([0.5, 0.7], np.float32),
        np.array([0, 1], np.int16),
        np.zeros(2, np.bool_),
    )
    assert len(merge(boxes, ResolvedMerge(iou=0.5))) == 2
    assert len(merge(boxes, ResolvedMerge(iou=0.5, class_agnostic=True))) == 1


@given(
    count=st.integers(0, 120),
    seed=st.integers(0, 2**32 - 1),
    strips=st.integers(1, 5),
    class_agnostic=st.booleans(),
    stitch=st.booleans(),
)
def test_strips_merge_to_what_one_merge_gives(
    count: int, seed: int, strips: int, class_agnostic: bool, stitch: bool
) -> None:
    """Also with long chains of overlaps, and with strips that reach far into each other."""
    boxes = crowd(count, seed)
    settings = ResolvedMerge(iou=0.3, class_agnostic=class_agnostic, stitch=stitch)
    strip_of = np.random.default_rng(seed).normal(boxes.xyxy[:, 1], 3) * strips // (2 + count // 2)
    parts = [boxes.take(strip_of == strip) for strip in np.unique(strip_of)]
    settled = []
    for number, part in enumerate(parts):
        above = max((other.xyxy[:, 3].max() for other in parts[:number]), default=-np.inf)
        below = min((other.xyxy[:, 1].min() for other in parts[number + 1 :]), default=np.inf)
        settled.append(settle(part, settings, above=above, below=below))
    left_open = Candidates.join(Candidates.none(), *(each.open for each in settled))
    merged = [merge(left_open, settings), *(each.detections for each in settled)]
    assert rows(in_order(Candidates.join(*merged))) == rows(merge(boxes, settings))


def test_most_of_a_strip_is_settled() -> None:
    boxes = crowd(4000, 0)
    settled = settle(boxes, ResolvedMerge(iou=0.3), above=10, below=1990)
    assert len(settled.open) < 0.05 * len(boxes)
