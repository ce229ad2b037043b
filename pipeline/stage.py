"""Stage candidates: one part file a shard, written whole or not at all.

    OUT/.work/<scene_id>-<stage_id>/part-000123.parquet

A part exists even when nothing was found in its shard, so resuming is a set difference: the
shards of the plan minus the parts that are there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.detect import Candidates, ShardFound

PART_SCHEMA = pa.schema(
    [
        ("x_min", pa.float64()),
        ("y_min", pa.float64()),
        ("x_max", pa.float64()),
        ("y_max", pa.float64()),
        ("score", pa.float32()),
        ("label", pa.int16()),
        ("cut", pa.bool_()),
    ]
)
_COUNTS = ("windows", "capped_windows", "on_nodata")


@contextmanager
def written_aside(path: Path, folder: Path) -> Iterator[Path]:
    """Give a temporary path in `folder`; rename it to `path` when the block succeeds.

    A reader sees the old file or the whole new one, also after a crash. `folder` must be on
    the file system of `path`; published files use one under OUT/.work, so that nothing
    half-written ever lies among them.
    """
    for parent in (path.parent, folder):
        parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers choose their format by it.
    aside = folder / f".{path.stem}.{os.getpid()}.tmp{path.suffix}"
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def work_folder(out: str, scene_id: str, stage_id: str) -> Path:
    """Return the folder of a scene's parts."""
    return Path(out) / ".work" / f"{scene_id}-{stage_id}"


def write_part(folder: Path, number: int, found: ShardFound) -> None:
    """Stage what was found in shard `number`."""
    x0, y0, x1, y1 = found.candidates.xyxy.T
    columns = [x0, y0, x1, y1, found.candidates.score, found.candidates.label, found.candidates.cut]
    counts = {name: str(getattr(found, name)) for name in _COUNTS}
    schema = PART_SCHEMA.with_metadata(counts)
    table = pa.table([pa.array(column) for column in columns], schema=schema)
    with written_aside(_part(folder, number), folder) as path:
        pq.write_table(table, path, compression="zstd")


def read_part(folder: Path, number: int) -> ShardFound:
    """Read what was staged of shard `number`."""
    table = pq.read_table(_part(folder, number))
    columns = [table[name].to_numpy() for name in PART_SCHEMA.names]
    xyxy = np.stack(columns[:4], axis=1) if len(table) else np.zeros((0, 4))
    candidates = Candidates(xyxy, *columns[4:])
    metadata = table.schema.metadata
    return ShardFound(candidates, **{name: int(metadata[name.encode()]) for name in _COUNTS})


def staged_numbers(folder: Path) -> set[int]:
    """Return the numbers of the shards that have a part."""
    if not folder.is_dir():
        return set()
    names = (re.fullmatch(r"part-(\d+)\.parquet", path.name) for path in folder.iterdir())
    return {int(match[1]) for match in names if match}


def drop_other_work(out: str, scene_id: str, stage_id: str) -> None:
    """Remove the scene's parts of other models, settings or versions of the source."""
    kept = work_folder(out, scene_id, stage_id)
    for folder in (Path(out) / ".work").glob(f"{scene_id}-*"):
        if folder != kept and re.fullmatch(r"[0-9a-f]{16}", folder.name[len(scene_id) + 1 :]):
            shutil.rmtree(folder, ignore_errors=True)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"
