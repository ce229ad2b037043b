"""A scene published in pieces has the bytes of one published at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.planning.plan import Job, Plan, plan_scene
from scenesweep.pipeline.publish import pieces
from scenesweep.pipeline.publish.strips import reach_of_others, strips_of
from tests.rasters import SquareDetector, make_card, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import digests, sweep

ALL = "publish.formats=[geojson,flatgeobuf,gpkg,coco]"
CUT = ("tiling.chip=64", "tiling.margin=12", "tiling.shard=1", "publish.quicklook=true")
SMALL = "publish.quicklook_px=100"


class Crowded(SquareDetector):
    """Reports many boxes on each chip, with gaps and overlaps that depend on its pixels only."""

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        found = []
        for number, chip in enumerate(chips):
            draw = np.random.default_rng(int(chip.astype(np.int64).sum()))
            corner = draw.integers(0, 56, (40, 2))
            far = np.minimum(corner + draw.integers(4, 30, (40, 2)), 64)
            found.append(
                Boxes(
                    np.hstack([corner, far]).astype(np.float32),
                    (draw.integers(1, 20, 40) / 20).astype(np.float32),
                    draw.integers(0, 2, 40).astype(np.int16),
                    np.full(40, number, np.int32),
                )
            )
        return DetectorOutput(Boxes.join(Boxes.none(), *found), np.zeros(len(chips), np.bool_))


def scene_in(folder: Path, *, sparse: bool = False) -> Path:
    pixels, _ = paint_squares(311, 421, largest=12, seed=4, count=300)
    pixels = np.concatenate([pixels, pixels[:, ::-1], pixels[:, :, ::-1]])
    if sparse:
        valid = np.zeros(pixels.shape[1:], np.bool_)
        for top, left in ((10, 20), (150, 200), (155, 30), (330, 250)):
            valid[top : top + 30, left : left + 40] = True
        valid[60:200, 100:180] = True
        pixels[:, ~valid] = 0
    return write_raster(folder / "s.tif", pixels, nodata=0 if sparse else None)


def job_for(out: Path, *settings: str, pieces: bool) -> Job:
    cut = (*CUT, SMALL, f"engine.pieces_from_windows={1 if pieces else 1_000_000}", *settings)
    return make_job(out, *cut, card=make_card(classes=("square", "other")))


@pytest.mark.parametrize(
    "settings",
    [
        (ALL,),
        ("merge.stitch=true", "tiling.slack=12"),
        ("merge.min_scores={square: 0.6}", "merge.class_agnostic=true", "tiling.shard=3"),
        ("publish.formats=[geojson]", "publish.geojson_max_rows=10", "publish.stac=false"),
        ("publish.quicklook_px=2048",),
    ],
    ids=["all formats", "stitched", "classes", "no geojson", "large quicklook"],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_bytes_are_those_of_one_call(
    tmp_path: Path, settings: Sequence[str], sparse: bool
) -> None:
    scene = scene_in(tmp_path, sparse=sparse)
    once, many = (job_for(tmp_path / n, *settings, pieces=n == "many") for n in ("once", "many"))
    (expected,) = sweep([scene], once, Crowded())
    (result,) = sweep([scene], many, Crowded())
    assert expected.status == "done", expected.reason
    assert digests(tmp_path / "many") == digests(tmp_path / "once")
    assert result.detections == expected.detections > 100
    for name in ("windows", "on_nodata", "shards", "ran_on", "warnings"):
        assert getattr(result, name) == getattr(expected, name), name
    assert not left_over(tmp_path / "many")


def test_a_scene_without_detections(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 300, 300), np.uint8))
    for name in ("once", "many"):
        (result,) = sweep([scene], job_for(tmp_path / name, ALL, pieces=name == "many"))
        assert (result.status, result.detections) == ("done", 0)
    assert digests(tmp_path / "many") == digests(tmp_path / "once")


@pytest.mark.parametrize("done", [0, 3, 9, 40, 55, 80])
@pytest.mark.parametrize("damage", [None, "missing", "flipped"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, done: int, damage: str | None
) -> None:
    """Some pieces exist; of these, some are missing or damaged."""
    scene = scene_in(tmp_path)
    sweep([scene], job_for(tmp_path / "once", ALL, pieces=False), Crowded())
    job = job_for(tmp_path / "many", ALL, pieces=True)
    plan = staged(scene, job)
    names = [name for of_round in pieces.rounds_of(plan, job) for name in of_round]
    for name in names[:done]:
        pieces.make_piece(plan, job, name)
    for path in left_over(tmp_path / "many")[::3]:
        if damage == "missing":
            path.unlink()
        elif damage == "flipped" and "file-" not in path.name:
            content = bytearray(path.read_bytes())
            content[len(content) // 3] ^= 1
            path.write_bytes(content)
    (result,) = sweep([scene], job, Crowded())
    assert result.status == "done", result.reason
    assert result.resumed_shards == result.shards
    assert digests(tmp_path / "many") == digests(tmp_path / "once")
    assert not left_over(tmp_path / "many")


def test_pieces_of_other_parts_are_not_used(tmp_path: Path) -> None:
    """When a shard is detected again, what was made of the old parts is dropped."""
    scene = scene_in(tmp_path)
    job = job_for(tmp_path / "many", pieces=True)
    plan = staged(scene, job, SquareDetector())
    for name in pieces.rounds_of(plan, job)[0]:
        pieces.make_piece(plan, job, name)
    for part in (tmp_path / "many" / ".work").rglob("part-*"):
        part.unlink()
    sweep([scene], job, Crowded())
    sweep([scene], job_for(tmp_path / "once", pieces=False), Crowded())
    assert digests(tmp_path / "many") == digests(tmp_path / "once")


def test_a_damaged_file_is_not_published_again_from_its_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece and the published file are one file on disk if the run was killed in between."""
    scene, job = scene_in(tmp_path), job_for(tmp_path / "many", ALL, pieces=True)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "drop_pieces", lambda _: None)
        sweep([scene], job, Crowded())
    before = digests(tmp_path / "many")
    (file,) = (tmp_path / "many").glob("geojson/*/*.geojson")
    with file.open("r+b") as content:
        content.write(b"XXXX")
    assert digests(tmp_path / "many") != before
    (result,) = sweep([scene], job, Crowded())
    assert "damaged files were published again" in " ".join(result.warnings)
    assert digests(tmp_path / "many") == before


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "no digest"])
def test_a_damaged_file_that_was_ready_is_written_again(tmp_path: Path, how: str) -> None:
    """A bit that flipped between the piece and its publication must not be published."""
    scene, job = scene_in(tmp_path), job_for(tmp_path / "many", ALL, pieces=True)
    plan = staged(scene, job)
    for of_round in pieces.rounds_of(plan, job):
        for name in of_round:
            pieces.make_piece(plan, job, name)
    files = [path for path in left_over(tmp_path / "many") if "-file-" in path.name]
    ready = [path for path in files if path.suffix != ".sha256"]
    assert {path.suffix for path in ready} >= {".parquet", ".geojson", ".png"}
    for path in ready:
        if how == "flipped":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif how == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            (path if how == "gone" else path.with_name(f"{path.name}.sha256")).unlink()
    (result,) = sweep([scene], job, Crowded())
    assert result.status == "done", result.reason
    sweep([scene], job_for(tmp_path / "once", ALL, pieces=False), Crowded())
    assert digests(tmp_path / "many") == digests(tmp_path / "once")
    assert not left_over(tmp_path / "many")


@pytest.mark.parametrize("sparse", [False, True])
def test_strips_hold_each_shard_once_and_all_its_windows(tmp_path: Path, sparse: bool) -> None:
    job = job_for(tmp_path / "out", pieces=True)
    plan = plan_scene(ref_of(scene_in(tmp_path, sparse=sparse)), job)
    strips = strips_of(plan.layout)
    assert sorted(n for strip in strips for n in strip.numbers) == plan.layout.numbers
    assert len(strips) > 3
    assert not sparse or len(plan.layout.islands)
    for number, strip in enumerate(strips):
        bounds = [plan.layout.shard(n).bounds for n in strip.numbers]
        assert strip.top == min(b.row_off for b in bounds)
        assert strip.bottom == max(b.bottom for b in bounds)
        above, below = reach_of_others(strips, number)
        assert all(other.bottom < above for other in strips[:number])
        assert all(other.top > below for other in strips[number + 1 :])


def staged(scene: Path, job: Job, detector: Any = None) -> Plan:
    """Detect on all shards of a scene, and do not publish."""
    steps = replace(scene_steps(job), finish=_stop)
    planned = steps.plan(ref_of(scene))
    assert planned.state is not None
    for task in planned.work:
        steps.detect(detector or Crowded(), [task], steps.read([task]))
    return planned.state.plan


def _stop(*_: object) -> Any:
    raise AssertionError("nothing is published")


def left_over(out: Path) -> list[Path]:
    return sorted((out / ".work").rglob("publish-*"))
