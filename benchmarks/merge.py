"""P6: the merge, exact and on one core, against torchvision's `batched_nms`."""

from __future__ import annotations

import argparse
import resource

import numpy as np
import torch
from torchvision.ops import batched_nms

from benchmarks.figures import Figure, at_least, at_most, best_of, tell
from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.detection.merge import merge
from scenesweep.pipeline.settings import ResolvedMerge

SIDE_PX, APART_PX = 12.0, 20.0


def crowd(count: int, *, seed: int = 0) -> Candidates:
    """Return candidates of which each object has two, some pixels apart, as windows report them."""
    draw = np.random.default_rng(seed)
    extent = APART_PX * np.sqrt(count)
    centres = draw.random((count // 2, 2)) * extent
    halves = SIDE_PX * (0.35 + 0.3 * draw.random((count // 2, 2)))
    first = np.hstack([centres - halves, centres + halves])
    boxes = np.concatenate([first, first + draw.normal(0, 1, first.shape)])
    order = draw.permutation(len(boxes))
    return Candidates(
        boxes[order],
        draw.random(len(boxes)).astype(np.float32),
        np.zeros(len(boxes), np.int16),
        np.zeros(len(boxes), np.bool_),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ten-million", action="store_true", help="also 10 million boxes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = ResolvedMerge(iou=0.5)
    figures: list[Figure] = []
    for count in (10_000, 20_000, 50_000, 100_000):
        boxes = crowd(count)
        xyxy, score = torch.from_numpy(boxes.xyxy).float(), torch.from_numpy(boxes.score)
        label = torch.from_numpy(boxes.label).long()
        ours = best_of(3, lambda boxes=boxes: merge(boxes, settings))  # type: ignore[misc]
        theirs = best_of(
            1 if count > 50_000 else 2,
            lambda args=(xyxy, score, label): batched_nms(*args, 0.5),  # type: ignore[misc]
        )
        least = {20_000: 1.0, 50_000: 1.0, 100_000: 40.0}.get(count)
        what = f"times as fast as batched_nms at {count:,} boxes"
        ratio = theirs / ours
        figures.append(at_least(what, ratio, "x", least) if least else Figure(what, ratio, "x"))
    for count, least in ((1_000_000, 300_000.0), (10_000_000, 200_000.0)):
        if count > 1_000_000 and not arguments.ten_million:
            continue
        boxes = crowd(count)
        seconds = best_of(3 if count == 1_000_000 else 1, lambda: merge(boxes, settings))  # noqa: B023
        figures.append(at_least(f"rate at {count:,} boxes", count / seconds, "boxes/s", least))
        if count > 1_000_000:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            figures.append(at_most("peak memory, the boxes included", peak, "GiB", 4.0))
    tell("merge", figures)


if __name__ == "__main__":
    main()
