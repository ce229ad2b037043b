"""Verify an output: files against their checksums, tables against their schema, and parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scenesweep.pipeline.detection.parts import damaged_numbers, staged_numbers
from scenesweep.pipeline.publish.manifest import read_manifest
from scenesweep.pipeline.storage.location import (
    Location,
    name_in,
    parquet,
    sizes_under,
)
from scenesweep.pipeline.storage.paths import TABLES, Output


@dataclass(frozen=True, slots=True)
class Problem:
    """A file under OUT and what is wrong with it."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The numbers of checked things, and the problems. `bytes` are those of published files."""

    scenes: int
    files: int
    parts: int
    bytes: int
    problems: tuple[Problem, ...]

    def facts(self) -> dict[str, object]:
        """Return JSON-able values."""
        return asdict(self)


def verify(out: Location) -> Verified:
    """Check all published files and all parts under `out`. Reads every byte, and writes nothing."""
    problems: list[Problem] = []
    listed: set[str] = set()
    output = Output(out)
    manifests = output.manifests()
    for path in manifests:
        names, wrong = _scene(out, path)
        listed |= names
        problems += wrong
    folders = {TABLES} | {name.split("/")[0] for name in listed}
    sizes = {
        name_in(out, path): size for folder in folders for path, size in sizes_under(out / folder)
    }
    problems += [
        Problem(name, "in no manifest: its run did not end, or another program wrote it")
        for name in sorted(sizes.keys() - listed)
    ]
    parts = 0
    for folder in output.part_folders():
        parts += len(staged_numbers(folder))
        problems += [
            Problem(f"{name_in(out, folder)}/part-{number:06d}.parquet", "damaged")
            for number in sorted(damaged_numbers(folder))
        ]
    complete = sizes.keys() & listed
    size = sum(sizes[name] for name in complete)
    return Verified(len(manifests), len(complete), parts, size, tuple(problems))


def _scene(out: Location, path: Location) -> tuple[set[str], list[Problem]]:
    """Check the files of one manifest; return their names and the problems."""
    listed = read_manifest(path)
    if listed is None:
        return set(), [Problem(name_in(out, path), "not a manifest: its content is damaged")]
    wrong = [Problem(name, what) for name, what in listed.damage(out).items()]
    broken = {problem.path for problem in wrong}
    for name in listed.digests:
        if name.startswith(f"{TABLES}/") and name not in broken:
            wrong += [Problem(name, what) for what in _table(out / name)]
    return set(listed.digests), wrong


def _table(path: Location) -> Iterator[str]:
    """Yield what is wrong with the content of a table."""
    try:
        file = parquet(path)
        ids = pq.read_table(file, columns=["detection_id"], partitioning=None)["detection_id"]
    except (pa.ArrowException, OSError, KeyError) as error:
        yield f"not a table of detections: {' '.join(str(error).split())}"
        return
    if pc.count_distinct(ids).as_py() != len(ids):
        yield "detection_id is not unique"
