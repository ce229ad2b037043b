"""What lies where in OUT: the only file that spells the names of its folders and files.

    OUT/catalog.json  collection.json  items.parquet      the STAC catalog over all scenes
    OUT/detections/date=YYYY-MM-DD/<scene_id>.parquet     one table per scene
    OUT/<format>/date=YYYY-MM-DD/<scene_id>.<suffix>      one folder per format, as geojson
    OUT/quicklooks/<scene_id>.png
    OUT/items/<scene_id>.json                             the STAC item of a scene
    OUT/models/<model>.json                               the STAC item of a model
    OUT/checksums/<scene_id>.sha256                       the manifest of a scene
    OUT/checksums/<scene_id>.json                         the recorded checksum of a source file
    OUT/compact/date=YYYY-MM-DD/detections.parquet        one table per date
    OUT/compact/date=YYYY-MM-DD/detections.pmtiles        the same as vector tiles
    OUT/coverage/date=YYYY-MM-DD/<scene_id>.parquet       the ground that was observed
    OUT/tracks/objects.parquet  observed.parquet          objects over all dates
    OUT/tracks/date=YYYY-MM-DD/sightings.parquet          the sightings of one date
    OUT/runs/<run_id>.json  <name>.prom                   run reports and metrics
    OUT/view/                                             HTML pages
    OUT/review/                                           a page to review detections, its images
    OUT/.work/<scene_id>-<stage_id>/part-000123.parquet   one part per shard
    OUT/.work/aside/                                      temporary files before their rename
    OUT/.work/known/<scene_id>.json                       lets the next run skip the scene
    OUT/.work/catalog.parquet                             lets the next run skip items
    OUT/.work/canary/<writer>/  canary.json               the canary's own output; known answers
    OUT/.work/writers/<writer>                            one file for each run in progress
    OUT/.work/claims/<scene_id>                           the run that works on a scene
    OUT/.work/lock  failures.json

`date=unknown` holds the scenes without a date of acquisition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar, cast

from scenesweep.pipeline.storage.location import Location, list_matching, location_of

L = TypeVar("L", bound=Location)

CATALOG = "catalog.json"
COLLECTION = "collection.json"
ITEM_TABLE = "items.parquet"
ITEMS = "items"
MODELS = "models"
TABLES = "detections"
COVERAGE = "coverage"
TRACKS = "tracks"

SIGHTINGS_PATTERN = "tracks/date=*/sightings.parquet"
COMPACT_PATTERN = "compact/date=*/detections.parquet"
COMPACT_MAPS = "compact/date=*/detections.pmtiles"
TABLE_PATTERN = "detections/date=*/*.parquet"
PAGE_PATTERNS = (
    *(TABLE_PATTERN, "coverage/date=*/*.parquet"),
    *("quicklooks/*.png", "runs/*.json", "models/*.json"),
)
"""The files that the HTML pages are made from."""

UNKNOWN_DATE = "unknown"  # Hive's own word for null keeps GeoPandas from reading the folder

_WRITTEN_BY_A_RUN = (
    "checksums/*.sha256",
    TABLE_PATTERN,
    "runs/*.json",
    ".work/lock",
    ".work/*-*",
)


@dataclass(frozen=True, slots=True)
class Output(Generic[L]):
    """An output: the folder or prefix OUT, and where each of its files lies.

    The files of a folder are `Path`s, those of a prefix in a cloud are `ObjectLocation`s.
    """

    root: L

    @staticmethod
    def of(out: str) -> Output[Location]:
        """Return the output that a user names.

        Raises:
            UsageError: when it is neither a folder nor a prefix such as s3://BUCKET/PREFIX.
        """
        return Output(location_of(out))

    @property
    def catalog(self) -> L:
        return self._at(CATALOG)

    @property
    def collection(self) -> L:
        return self._at(COLLECTION)

    @property
    def item_table(self) -> L:
        return self._at(ITEM_TABLE)

    @property
    def reports(self) -> L:
        """The folder of run reports and metrics."""
        return self._at("runs")

    @property
    def pages(self) -> L:
        return self._at("view")

    @property
    def review(self) -> L:
        return self._at("review")

    @property
    def work(self) -> L:
        """The folder of the parts and of all that only the runs themselves need."""
        return self._at(".work")

    @property
    def aside(self) -> L:
        """The folder of temporary files; it is on the file system of the published files."""
        return self._at(".work/aside")

    @property
    def lock(self) -> L:
        return self._at(".work/lock")

    @property
    def writers(self) -> L:
        """The folder with a file for each run in progress: `pipeline.runs.writers`."""
        return self._at(".work/writers")

    def claim(self, scene_id: str) -> L:
        """Return the file that names the run that works on a scene: `pipeline.runs.claims`."""
        return self._at(f".work/claims/{scene_id}")

    @property
    def failures(self) -> L:
        return self._at(".work/failures.json")

    @property
    def canary(self) -> L:
        """The folder of the canary scenes; what a run publishes for its own goes there too."""
        return self._at(".work/canary")

    @property
    def canary_answers(self) -> L:
        return self._at(".work/canary.json")

    def known(self, scene_id: str) -> L:
        """Return the file that lets the next run skip a scene: `pipeline.runs.known`."""
        return self._at(f".work/known/{scene_id}.json")

    @property
    def known_items(self) -> L:
        """Return the file that lets the next run skip items: `pipeline.publish.stac.items`."""
        return self._at(".work/catalog.parquet")

    def parts(self, scene_id: str, stage_id: str) -> L:
        """Return the folder of a scene's parts."""
        return self._at(f".work/{scene_id}-{stage_id}")

    def part_folders(self, scene_id: str = "*") -> list[L]:
        """Return the folders of parts: of all scenes, or of those whose id begins like this."""
        return self._list(f".work/{scene_id}-*")

    def dated(self, folder: str, date: str, name: str) -> L:
        """Return a file of one date, in the folder of the tables or of a format."""
        return self._at(f"{folder}/date={date}/{name}")

    def dated_files(self, folder: str, scene_id: str) -> list[L]:
        """Return the files of a scene, with any suffix, on all dates, in one such folder."""
        return self._list(f"{folder}/date=*/{scene_id}.*")

    def table(self, scene_id: str, date: str) -> L:
        return self.dated(TABLES, date, f"{scene_id}.parquet")

    def tables(self, scene_id: str = "*") -> list[L]:
        """Return the tables of all scenes or of one, on all dates, sorted."""
        return self._list(TABLE_PATTERN.replace("*.", f"{scene_id}."))

    def compacted(self, date: str) -> L:
        return self._at(COMPACT_PATTERN.replace("*", date))

    def compacted_tables(self) -> list[L]:
        return self._list(COMPACT_PATTERN)

    def compacted_map(self, date: str) -> L:
        return self._at(COMPACT_MAPS.replace("*", date))

    def compacted_maps(self) -> list[L]:
        return self._list(COMPACT_MAPS)

    def coverage(self, scene_id: str, date: str) -> L:
        """Return the file with the ground that was observed in a scene."""
        return self.dated(COVERAGE, date, f"{scene_id}.parquet")

    @property
    def tracked_objects(self) -> L:
        """The table of objects over all dates, which `scenesweep track` writes last."""
        return self._at(f"{TRACKS}/objects.parquet")

    @property
    def tracked_ground(self) -> L:
        """The table of the ground that was observed on each tracked date."""
        return self._at(f"{TRACKS}/observed.parquet")

    def sightings(self, date: str) -> L:
        return self._at(SIGHTINGS_PATTERN.replace("*", date))

    def sightings_tables(self) -> list[L]:
        return self._list(SIGHTINGS_PATTERN)

    def quicklook(self, scene_id: str) -> L:
        return self._at(f"quicklooks/{scene_id}.png")

    def item(self, scene_id: str) -> L:
        return self._at(f"{ITEMS}/{scene_id}.json")

    @property
    def item_folder(self) -> L:
        return self._at(ITEMS)

    def items(self) -> list[L]:
        return self._list(f"{ITEMS}/*.json")

    def model(self, file_name: str) -> L:
        return self._at(f"{MODELS}/{file_name}")

    def models(self, pattern: str = "*.json") -> list[L]:
        return self._list(f"{MODELS}/{pattern}")

    def manifest(self, scene_id: str) -> L:
        return self._at(f"checksums/{scene_id}.sha256")

    def manifests(self) -> list[L]:
        return self._list("checksums/*.sha256")

    def source_checksum(self, name: str) -> L:
        """Return the file with the recorded checksum of a source file."""
        return self._at(f"checksums/{name}.json")

    def report(self, run_id: str) -> L:
        return self._at(f"runs/{run_id}.json")

    def run_reports(self) -> list[L]:
        """Return the run reports, the oldest first: their names begin with the time."""
        return self._list("runs/*.json")

    def metrics(self, name: str) -> L:
        return self._at(f"runs/{name}.prom")

    def is_written(self) -> bool:
        """Say whether a run ever wrote here: an empty folder, or any other, is no output."""
        return any(self._list(pattern) for pattern in _WRITTEN_BY_A_RUN)

    def _at(self, name: str) -> L:
        return cast("L", self.root / name)  # both kinds of location join to their own kind

    def _list(self, pattern: str) -> list[L]:
        return cast("list[L]", list_matching(self.root, pattern))


def date_name(acquired_at: datetime | None) -> str:
    """Return the date that a scene's files go to: YYYY-MM-DD, or `unknown`."""
    return acquired_at.date().isoformat() if acquired_at else UNKNOWN_DATE


def date_of(path: Location) -> str:
    """Return the date in the name of a table's folder: YYYY-MM-DD, or `unknown`."""
    return path.parent.name.removeprefix("date=")


def is_undated(path: str) -> bool:
    """Say whether a published file, given as text, is of a scene without a date."""
    return f"/date={UNKNOWN_DATE}/" in path


def is_day(text: str) -> bool:
    """Say whether a folder's date is a day, and not `unknown`."""
    return re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None
