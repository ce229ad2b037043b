"""Stage candidates: one part file for each shard, written atomically.

    OUT/.work/<scene_id>-<stage_id>/part-000123.parquet

A part exists even if its shard has no candidates, so a resume is a set difference: the shards of
the plan minus the intact parts. Each part carries the SHA-256 of its content, which detects a
flipped bit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scenesweep.pipeline.detection.computing import Computing
from scenesweep.pipeline.detection.detect import Candidates, ShardDetections
from scenesweep.pipeline.errors import DamagedPart
from scenesweep.pipeline.storage.commit import atomic_write, drop_leftovers, remove, remove_folder
from scenesweep.pipeline.storage.location import Location, list_matching, map_at_once
from scenesweep.pipeline.storage.paths import Output

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
_NOTES = {"windows": int, "capped_windows": int, "on_nodata": int, "ran_on": str}
_DIGEST = b"sha256"
_PART = re.compile(r"part-(\d+)\.parquet")


def work_folder(out: Location, scene_id: str, stage_id: str) -> Location:
    """Return the folder of a scene's parts."""
    return Output(out).parts(scene_id, stage_id)


def write_part(folder: Location, number: int, part: ShardDetections) -> None:
    """Stage the candidates of shard `number`."""
    notes = {name: str(getattr(part, name)) for name in _NOTES}
    schema = PART_SCHEMA.with_metadata(notes | {_DIGEST.decode(): _digest(part)})
    table = pa.table(columns_of(part.candidates), schema=schema)
    with atomic_write(_part(folder, number), folder, lasting=False) as path:
        # A part is small and always read completely, so dictionaries and statistics do not help.
        pq.write_table(
            table, path, compression="zstd", use_dictionary=False, write_statistics=False
        )


def columns_of(candidates: Candidates) -> list[pa.Array]:
    """Return the columns of `PART_SCHEMA`."""
    columns = [*candidates.xyxy.T, candidates.score, candidates.label, candidates.cut]
    return [pa.array(column) for column in columns]


def from_columns(table: pa.Table) -> Candidates:
    """Return the candidates in a table with the columns of `PART_SCHEMA`."""
    columns = [table[name].to_numpy() for name in PART_SCHEMA.names]
    xyxy = np.stack(columns[:4], axis=1) if len(table) else np.zeros((0, 4))
    return Candidates(xyxy, *columns[4:])


def read_part(folder: Location, number: int) -> ShardDetections:
    """Read the part of shard `number`.

    Raises:
        DamagedPart: when it is missing or its bytes changed.
    """
    path = _part(folder, number)
    try:
        # A part is read completely, so one request fetches it from an object store.
        with pq.ParquetFile(path if isinstance(path, Path) else BytesIO(path.read_bytes())) as file:
            table, metadata = file.read(), file.schema_arrow.metadata
        part = _from_table(table, metadata)
        digest = metadata[_DIGEST].decode()
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedPart(f"{path}: expected a part as it was staged, found none") from error
    if digest != _digest(part):
        raise DamagedPart(f"{path}: expected a part with SHA-256 {digest}, found another")
    return part


def read_parts(folder: Location, numbers: Iterable[int]) -> list[ShardDetections]:
    """Read the parts of shards, in order.

    Raises:
        DamagedPart: when a part is missing or its bytes changed.
    """
    return map_at_once(lambda number: read_part(folder, number), numbers, where=folder)


def staged_numbers(folder: Location) -> set[int]:
    """Return the numbers of the shards that have a part."""
    names = (_PART.fullmatch(path.name) for path in list_matching(folder, "part-*"))
    return {int(match[1]) for match in names if match}


@dataclass(frozen=True, slots=True)
class UselessParts:
    """The numbers of the shards whose part cannot be used.

    `damaged` ones are unreadable, and `foreign` ones were computed in another way.
    """

    damaged: set[int]
    foreign: set[int]


def useless_parts(folder: Location, is_foreign: Callable[[str], bool]) -> UselessParts:
    """Return the parts that cannot be used, given which `ran_on` are foreign. Reads all parts."""

    def ran_on(number: int) -> str | None:
        try:
            return read_part(folder, number).ran_on
        except DamagedPart:
            return None

    numbers = sorted(staged_numbers(folder))
    staged = dict(zip(numbers, map_at_once(ran_on, numbers, where=folder), strict=True))
    return UselessParts(
        {number for number, kind in staged.items() if kind is None},
        {number for number, kind in staged.items() if kind is not None and is_foreign(kind)},
    )


def damaged_numbers(folder: Location) -> set[int]:
    """Return the numbers of the shards whose part is damaged. It reads all parts."""
    return useless_parts(folder, lambda _: False).damaged


def computing_of_parts(folder: Location) -> Computing | None:
    """Return how the first intact part that says so was computed; None if there is none."""
    for number in sorted(staged_numbers(folder)):
        try:
            if computing := Computing.of(read_part(folder, number).ran_on):
                return computing
        except DamagedPart:
            continue
    return None


def drop_parts(folder: Location, numbers: Iterable[int]) -> None:
    """Remove parts, so that their shards are done again, and half-written files."""
    drop_leftovers(folder)
    for number in numbers:
        remove(_part(folder, number))


def drop_other_work(out: Location, scene_id: str, stage_id: str) -> None:
    """Remove the scene's parts from other models, settings or versions of the source."""
    kept = work_folder(out, scene_id, stage_id)
    for folder in Output(out).part_folders(scene_id):
        if folder != kept and re.fullmatch(r"[0-9a-f]{16}", folder.name[len(scene_id) + 1 :]):
            remove_folder(folder)


def _part(folder: Location, number: int) -> Location:
    return folder / f"part-{number:06d}.parquet"


def _from_table(table: pa.Table, metadata: Mapping[bytes, bytes]) -> ShardDetections:
    if not table.schema.equals(PART_SCHEMA):
        raise ValueError("another schema")
    notes = {name: kind(metadata[name.encode()].decode()) for name, kind in _NOTES.items()}
    return ShardDetections(from_columns(table), **notes)


def _digest(part: ShardDetections) -> str:
    """Hash candidates and notes: everything that is read from a part."""
    digest = hashlib.sha256(repr([getattr(part, name) for name in _NOTES]).encode())
    candidates = part.candidates
    for column in (candidates.xyxy, candidates.score, candidates.label, candidates.cut):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
