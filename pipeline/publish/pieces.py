"""Publish a large scene in pieces that several workers can do, with the bytes of a small scene.

Pieces come in rounds; those of a round can run at the same time:

1. `strip-<n>` merges a strip as far as no other strip matters; `picture-<n>` reads some rows of
   the quicklook.
2. `seams` merges what the strips left open.
3. `rows-<n>` makes the rows of a stretch of the table's order.
4. `file-<kind>` writes the table, another format, or the quicklook.

`publish_scene` copies these files to their places and writes the item and the manifest. Each
piece is a file beside the parts of the scene. A piece that exists is not made again, so a killed
run goes on where it was. A piece that is missing or damaged when another one needs it is made
there, so `publish_scene` alone does everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from scenesweep.pipeline.detection.detect import Candidates
from scenesweep.pipeline.detection.merge import Settled, in_order, merge, settle
from scenesweep.pipeline.detection.parts import read_parts, work_folder
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.files import QUICKLOOK_KIND, SceneFiles, files_for, skipped_formats
from scenesweep.pipeline.publish.manifest import sha256
from scenesweep.pipeline.publish.publish import (
    ReadyFile,
    candidates_of,
    merged,
    origin_of,
    publish,
    publish_rows,
    to_publish,
    write_file,
)
from scenesweep.pipeline.publish.quicklook import (
    is_read_in_strips,
    picture_rows,
    shrunk,
    write_picture,
)
from scenesweep.pipeline.publish.rows import (
    SCORE_BINS,
    Rows,
    bounds_around,
    count_scores,
    counts_of,
)
from scenesweep.pipeline.publish.strips import (
    PartsSummary,
    Strip,
    reach_of_others,
    read_chunk,
    read_open,
    read_summary,
    strips_of,
    write_settled,
)
from scenesweep.pipeline.publish.table import (
    REPEATED_COLUMNS,
    SCHEMA,
    bounds_of,
    in_row_order,
    row_tables,
)
from scenesweep.pipeline.storage.commit import atomic_write, atomic_write_group, remove
from scenesweep.pipeline.storage.location import Location, list_matching, parquet, version_in

T = TypeVar("T")
Rounds = tuple[tuple[str, ...], ...]

_WINDOWS_PER_CHUNK = 2_048
_LEAST_CHUNKS, _PICTURE_STRIPS, _BLOCKS_PER_STRIP = 32, 16, 4
_SUFFIX = {"strip": ".parquet", "seams": ".parquet", "rows": ".parquet", "picture": ".png"}
_UNREADABLE = (pa.ArrowException, OSError, KeyError, ValueError, SyntaxError)  # Pillow's on PNG


@dataclass(frozen=True, slots=True)
class Published:
    """What was published for a scene: its files, its rows, and what its parts say besides.

    `score_counts` has the rows of each bin of scores.
    """

    files: SceneFiles
    rows: int
    score_counts: tuple[int, ...]
    summary: PartsSummary


def rounds_of(plan: Plan, job: Job) -> Rounds:
    """Return the names of the pieces of a scene in rounds; none for a small scene."""
    if plan.layout.windows < job.settings.engine.pieces_from_windows:
        return ()
    return _Pieces(plan, job).rounds()


def make_piece(plan: Plan, job: Job, name: str) -> None:
    """Make a piece of a scene, unless it exists."""
    _Pieces(plan, job).make(name)


def publish_scene(plan: Plan, job: Job) -> Published:
    """Merge the parts of a scene and publish it: at once, or in pieces if it is large."""
    if rounds_of(plan, job):
        return publish_in_pieces(plan, job)
    folder = work_folder(job.out, plan.scene.id, plan.stage_id)
    parts = read_parts(folder, plan.layout.numbers)
    detections = merged(parts, plan, job)
    summary = PartsSummary.of(parts)
    files = publish(detections, plan, job, windows=summary.windows)
    return Published(files, len(detections), count_scores(detections.score), summary)


def publish_in_pieces(plan: Plan, job: Job) -> Published:
    """Make all pieces that are missing, then publish the scene and drop its pieces."""
    pieces = _Pieces(plan, job)
    for name in (name for of_round in pieces.rounds() for name in of_round):
        pieces.make(name)
    rows, summary = pieces.table_rows(), pieces.summary()
    ready = pieces.ready(rows.count)
    files = publish_rows(rows, plan, job, windows=summary.windows, ready=ready)
    drop_pieces(pieces.folder)
    return Published(files, rows.count, rows.score_counts, summary)


def drop_pieces(folder: Location) -> None:
    """Remove the pieces of a scene, given the folder of its parts."""
    for path in list_matching(folder, "publish-*"):
        remove(path)


@dataclass(frozen=True)
class _Pieces:
    plan: Plan
    job: Job

    @cached_property
    def folder(self) -> Location:
        return work_folder(self.job.out, self.plan.scene.id, self.plan.stage_id)

    @cached_property
    def strips(self) -> list[Strip]:
        return strips_of(self.plan.layout)

    @property
    def chunks(self) -> int:
        return max(_LEAST_CHUNKS, self.plan.layout.windows // _WINDOWS_PER_CHUNK)

    @property
    def size(self) -> tuple[int, int]:
        return self.plan.scene.width, self.plan.scene.height

    def rounds(self) -> Rounds:
        strips, pictures, chunks = (
            tuple(f"{kind}-{number:04d}" for number in range(count))
            for kind, count in (
                ("strip", len(self.strips)),
                ("picture", len(self.picture_strips())),
                ("rows", self.chunks),
            )
        )
        return (*strips, *pictures), ("seams",), chunks, tuple(f"file-{k}" for k in self.kinds())

    def kinds(self) -> list[str]:
        """Return the kinds of files that a piece writes: all but styles, coverage and the item."""
        files = files_for(self.plan, self.job)
        paths = files.by_kind()
        small = {files.item, files.coverage, *files.styles.values()}
        return [kind for kind, path in paths.items() if path not in small]

    def picture_strips(self) -> list[slice]:
        """Return the rows of the quicklook that are read together; none if it is read at once."""
        if files_for(self.plan, self.job).quicklook is None:
            return []
        scene, (_, height) = self.plan.scene, self.picture_size()
        if not is_read_in_strips(scene, self.picture_size()):
            return []
        # A strip decodes the blocks at its ends too, so it has several rows of blocks.
        most = max(1, scene.height // (_BLOCKS_PER_STRIP * scene.block[0]))
        count = min(_PICTURE_STRIPS, height, most)
        edges = np.linspace(0, height, count + 1).astype(int).tolist()
        return [slice(first, last) for first, last in pairwise(edges)]

    def picture_size(self) -> tuple[int, int]:
        return shrunk(self.plan.scene, self.job.settings.publish.quicklook_px)

    def path(self, name: str) -> Location:
        kind, _, what = name.partition("-")
        suffix = _SUFFIX.get(kind)
        if suffix is None:
            suffix = files_for(self.plan, self.job).by_kind()[what].suffix
        return self.folder / f"publish-{self.plan.fingerprint}-{name}{suffix}"

    def make(self, name: str) -> None:
        if version_in(self.path(name)):
            return
        kind, _, what = name.partition("-")
        match kind:
            case "strip":
                self._make_strip(int(what))
            case "seams":
                self._make_seams()
            case "rows":
                self._make_rows(int(what))
            case "picture":
                self._make_picture(int(what))
            case _:
                self._make_file(what)

    def _make_strip(self, number: int) -> None:
        strip = self.strips[number]
        parts = read_parts(self.folder, strip.numbers)
        above, below = (
            row * self.plan.source.scale[1] for row in reach_of_others(self.strips, number)
        )
        candidates, settings = candidates_of(parts, self.job), self.job.settings.merge
        settled = settle(candidates, settings, above=above, below=below)
        inside = Settled(to_publish(settled.detections, self.plan, self.job), settled.open)
        self._write_settled(f"strip-{number:04d}", inside, PartsSummary.of(parts))

    def _make_seams(self) -> None:
        candidates = [self._read(name, read_open) for name in self.rounds()[0] if "strip" in name]
        joined = Candidates.join(Candidates.none(), *candidates)
        merged = to_publish(merge(joined, self.job.settings.merge), self.plan, self.job)
        self._write_settled("seams", Settled(merged, Candidates.none()), PartsSummary())

    def _write_settled(self, name: str, settled: Settled, summary: PartsSummary) -> None:
        with atomic_write(self.path(name), self.folder, lasting=False) as path:
            write_settled(settled, self.size, self.chunks, path, summary)

    def _make_rows(self, chunk: int) -> None:
        detections = Candidates.join(
            *(self._read(name, lambda path: read_chunk(path, chunk)) for name in self._merged())
        )
        ordered = in_row_order(in_order(detections), self.plan.scene)
        classes = self.job.card.classes
        counts, scores = dict.fromkeys(classes, 0), np.zeros(SCORE_BINS, np.int64)
        bounds = None
        with (
            atomic_write(self.path(f"rows-{chunk:04d}"), self.folder, lasting=False) as path,
            pq.ParquetWriter(
                path,
                SCHEMA,
                compression="lz4",
                use_dictionary=REPEATED_COLUMNS,
                write_page_checksum=True,
            ) as writer,
        ):
            for table in row_tables(ordered, origin_of(self.plan, self.job)):
                writer.write_table(table)
                found = counts_of(table, classes)
                counts = {name: counts[name] + found[name] for name in classes}
                scores += count_scores(table["score"].to_numpy())
                bounds = bounds_around([bounds, bounds_of(table)])
            notes = {"counts": counts, "scores": scores.tolist(), "bounds": bounds}
            writer.add_key_value_metadata({name: json.dumps(each) for name, each in notes.items()})

    def _merged(self) -> list[str]:
        return [*(n for n in self.rounds()[0] if n.startswith("strip")), "seams"]

    def _make_picture(self, number: int) -> None:
        rows = self.picture_strips()[number]
        picture = picture_rows(self.plan.scene, self.picture_size(), rows)
        with atomic_write(self.path(f"picture-{number:04d}"), self.folder, lasting=False) as path:
            write_picture(picture, path)

    def _make_file(self, kind: str) -> None:
        rows = self.table_rows()
        if kind in skipped_formats(self.plan, self.job, rows=rows.count):
            return
        file = self.path(f"file-{kind}")
        digest = _digest_of(file)
        with atomic_write_group([digest, file], self.folder, lasting=False) as temporary:
            path, strips = temporary[file], self.picture_strips()
            if kind == QUICKLOOK_KIND and strips:
                parts = [
                    self._read(f"picture-{number:04d}", _read_picture)
                    for number in range(len(strips))
                ]
                write_picture(np.concatenate(parts), path)
            else:
                write_file(kind, rows, self.plan, self.job, path)
            temporary[digest].write_text(sha256(path), encoding="ascii")

    def table_rows(self) -> Rows:
        """Return the rows of the table, which are read chunk by chunk."""
        names = self.rounds()[2]
        notes = [self._read(name, _read_notes) for name in names]
        counts = {
            name: sum(note["counts"][name] for note in notes) for name in self.job.card.classes
        }
        scores = tuple(map(sum, zip(*(note["scores"] for note in notes), strict=True)))

        def tables() -> Iterator[pa.Table]:
            return (self._read(name, _read_table) for name in names)

        return Rows(counts, scores, bounds_around(note["bounds"] for note in notes), tables)

    def summary(self) -> PartsSummary:
        """Return what all parts of the scene say besides their candidates."""
        total = PartsSummary()
        for name in self._merged():
            total += self._read(name, read_summary)
        return total

    def ready(self, rows: int) -> dict[str, ReadyFile]:
        """Return the files that are written, by kind."""
        skipped = skipped_formats(self.plan, self.job, rows=rows)
        paths = {kind: self.path(f"file-{kind}") for kind in self.kinds() if kind not in skipped}
        return {kind: ReadyFile(path, _recorded_digest(path)) for kind, path in paths.items()}

    def _read(self, name: str, read: Callable[[Location], T]) -> T:
        """Read a piece; one that is missing or damaged is made (again) first."""
        try:
            return read(self.path(name))
        except _UNREADABLE:
            remove(self.path(name))
            self.make(name)
        return read(self.path(name))


def _digest_of(file: Location) -> Location:
    """Return the path of the SHA-256 of a file that is ready. If the file exists, so does this."""
    return file.with_name(f"{file.name}.sha256")


def _recorded_digest(file: Location) -> str:
    with suppress(FileNotFoundError):
        return _digest_of(file).read_text(encoding="ascii")
    return ""


def _read_table(path: Location) -> pa.Table:
    with pq.ParquetFile(parquet(path), page_checksum_verification=True) as file:
        return file.read().replace_schema_metadata(None)


def _read_notes(path: Location) -> dict[str, Any]:
    """Return what `_make_rows` counted in a chunk."""
    with pq.ParquetFile(parquet(path)) as file:
        notes = file.metadata.metadata
    return {name: json.loads(notes[name.encode()]) for name in ("counts", "scores", "bounds")}


def _read_picture(path: Location) -> NDArray[np.uint8]:
    with path.open("rb") as file, Image.open(file, formats=("PNG",)) as image:
        return np.asarray(image)
