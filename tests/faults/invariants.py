"""What must hold of every output, whatever was done to the runs that made it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scenesweep.pipeline.detection.parts import read_part, staged_numbers, work_folder
from scenesweep.pipeline.planning.plan import Job, Plan, plan_scene
from scenesweep.pipeline.publish.files import files_for
from scenesweep.pipeline.publish.publish import merged
from scenesweep.pipeline.results.verify import verify
from tests.rasters import ref_of


def check_output(sources: list[str], job: Job) -> None:
    """Each window is in one part, each detection in one table, and every file is whole."""
    ids: list[str] = []
    for source in sources:
        plan = plan_scene(ref_of(source), job)
        _check_parts(plan, job)
        ids += _check_table(plan, job)
    assert len(set(ids)) == len(ids)
    assert verify(job.out).problems == ()
    assert leftovers(Path(str(job.out))) == []


def _check_parts(plan: Plan, job: Job) -> None:
    folder = work_folder(job.out, plan.scene.id, plan.stage_id)
    numbers = [int(number) for number in plan.layout.numbers]
    assert staged_numbers(folder) == set(numbers)
    cores = [tile.core for number in numbers for tile in plan.layout.shard(number).tiles]
    assert len({(core.col_off, core.row_off) for core in cores}) == len(cores)
    assert sum(core.width * core.height for core in cores) == plan.layout.core_px_of(
        np.array(plan.layout.numbers, np.int64)
    )
    parts = [read_part(folder, number) for number in numbers]
    assert sum(part.windows for part in parts) == len(cores) == plan.layout.windows


def _check_table(plan: Plan, job: Job) -> list[str]:
    table = pq.read_table(files_for(plan, job).table, partitioning=None)
    xyxy = np.stack([table[name].to_numpy() for name in ("x_min", "y_min", "x_max", "y_max")], 1)
    for name in set(table["class_name"].to_pylist()):
        of_class = np.array(table["class_name"]) == name
        overlap = iou(xyxy[of_class])
        np.fill_diagonal(overlap, 0)
        assert overlap.max(initial=0) <= (job.settings.merge.iou or 0)
    folder = work_folder(job.out, plan.scene.id, plan.stage_id)
    again = merged([read_part(folder, int(n)) for n in plan.layout.numbers], plan, job)
    assert sorted(map(tuple, again.xyxy.tolist())) == sorted(map(tuple, xyxy.tolist()))
    ids: list[str] = table["detection_id"].to_pylist()
    return ids


def iou(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, N) intersection over union, the slow and obvious way."""
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    return shared / (area[:, None] + area[None] - shared)


def leftovers(out: Path) -> list[str]:
    """Return what was left half-written where it could be taken for a result."""
    return [
        str(path)
        for path in out.rglob("*")
        if ".tmp" in path.name and ".work" not in path.relative_to(out).parts
    ]


def check_report(out: Path, code: int, log: str, sources: list[str]) -> dict[str, Any]:
    """Exit code, newest report, log and files say the same; return the report."""
    report: dict[str, Any] = json.loads(newest_report(out).read_text())
    results, counts = report["results"], report["scenes"]
    assert report["exit_code"] == code
    assert sum(counts.values()) == len(sources)
    assert {result["href"] for result in results} <= set(sources)
    assert len(results) == len(sources) - counts["unfinished"]
    assert bool(report["cut_short"]) == (counts["unfinished"] > 0)
    for result in results:
        failed = result["status"] == "failed"
        assert failed == bool(result["reason"])
        assert failed != all(map(_is_file, result["files"].values())) or not result["files"]
        up_to_date = result["status"] == "up-to-date"  # these have one line in all
        assert ("up to date, nothing to do: " if up_to_date else f"{result['status']}: ") in log
        if failed:
            assert result["reason"] in log
        else:
            rows = pq.read_metadata(result["files"]["detections"]).num_rows
            assert rows == result["detections"]
    assert report["detections"] == sum(result["detections"] for result in results)
    warned = [*report["run_warnings"], *(w for result in results for w in result["warnings"])]
    assert report["warnings"] == len(warned) == len(re.findall(r" WARNING ", log))
    assert all(warning in log for warning in warned)
    return report


def newest_report(out: Path) -> Path:
    """Return the report that was written last."""
    return max((out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def _is_file(path: str) -> bool:
    return Path(path).is_file()
