"""The results of a run: one per scene, and one report per run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal, get_args

import rasterio

from scenesweep.pipeline.engine.steps import DetectorUse
from scenesweep.pipeline.errors import Exit, printable
from scenesweep.pipeline.planning.area import area_report
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.runs.canary import Canary
from scenesweep.pipeline.runs.drift import Unusual, night_figures
from scenesweep.pipeline.runs.ending import CutShort
from scenesweep.pipeline.runs.expected import Expected
from scenesweep.pipeline.runs.freshness import Freshness, freshness_of
from scenesweep.pipeline.runs.spending import Spending, spent_by
from scenesweep.pipeline.settings import ResolvedSettings
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location
from scenesweep.pipeline.storage.paths import Output, is_undated
from scenesweep.pipeline.versions import versions

Status = Literal["done", "up-to-date", "failed", "quarantined", "in-use"]
"""`quarantined`: the run skipped a scene that had failed too often: `pipeline.runs.failures`.
`in-use`: it left the scene to another run that is working on it: `pipeline.runs.claims`."""


@dataclass(frozen=True, slots=True)
class SceneResult:
    """The result of one scene.

    `ran_on` is the device and precision of the detectors. `megapixels` counts the cores of the
    windows that this run looked at, on the model's grid. `windows` and `shards` count all of the
    scene. `seconds` are summed over workers, by stage. `bug` says that the failure is a bug in
    scenesweep, and not the scene's fault. A scene `outside_area` does not meet the area of
    interest, so nothing is published for it. `score_counts` counts its detections by score, in bins
    of equal width from 0 to 1. `age_hours` is the time from its acquisition to its publication by
    this run, if it has a date.
    """

    href: str
    scene_id: str
    status: Status
    reason: str = ""
    bug: bool = False
    detections: int = 0
    megapixels: float = 0.0
    windows: int = 0
    skipped_windows: int = 0
    shards: int = 0
    resumed_shards: int = 0
    on_nodata: int = 0
    warnings: tuple[str, ...] = ()
    ran_on: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    outside_area: bool = False
    score_counts: tuple[int, ...] = ()
    age_hours: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the main job. `seconds` is wall-clock time.

    `unfinished` counts the scenes without a result, because the run was `cut_short`. `warnings`
    concern the run; scenes have their own. Up to `allowed_failed` scenes may fail without making
    the run a failure. `use` is what all detectors did.

    `night` is the name of such runs. `unusual` are figures that differ from those of
    `compared_nights` earlier runs. `canary` and `expected` are None where they were not asked for.
    """

    run_id: str
    started_at: datetime
    seconds: float
    results: tuple[SceneResult, ...]
    unfinished: int = 0
    cut_short: CutShort | None = None
    warnings: tuple[str, ...] = ()
    allowed_failed: int = 0
    use: DetectorUse = field(default_factory=DetectorUse)
    night: str = ""
    unusual: tuple[Unusual, ...] = ()
    compared_nights: int = 0
    canary: Canary | None = None
    expected: Expected | None = None

    def count(self, status: Status) -> int:
        return sum(result.status == status for result in self.results)

    @property
    def detections(self) -> int:
        return sum(result.detections for result in self.results)

    @property
    def outside(self) -> int:
        """Number of scenes that do not meet the area of interest."""
        return sum(result.outside_area for result in self.results)

    @property
    def warned(self) -> int:
        """Number of warnings, of the run and of its scenes."""
        return len(self.warnings) + sum(len(result.warnings) for result in self.results)

    @property
    def megapixels(self) -> float:
        """Megapixels that this run looked at, without shards and scenes of earlier runs."""
        return sum(result.megapixels for result in self.results)

    @property
    def freshness(self) -> Freshness | None:
        """How old the scenes were that this run published; None if none has a date."""
        return freshness_of(result.age_hours for result in self.results)

    def spending(self, settings: ResolvedSettings) -> Spending:
        """GPU hours and core hours of this run."""
        seconds = [result.seconds for result in self.results]
        return spent_by(self.use, seconds, self.ran_on, settings)

    @property
    def ran_on(self) -> list[str]:
        """Devices and precisions of the detectors of all scenes, sorted."""
        return sorted({kind for result in self.results for kind in result.ran_on})

    @property
    def undated(self) -> int:
        """Number of scenes that this run published without a date."""
        tables = [r.files.get("detections", "") for r in self.results if r.status == "done"]
        return sum(is_undated(table) for table in tables)

    @property
    def all_failed(self) -> bool:
        """Say whether all scenes failed. Then `allowed_failed` does not count."""
        return _all_failed(self.results)

    @property
    def exit_code(self) -> Exit:
        """The exit code: from the results of the scenes, or from why the run was cut short."""
        if self.cut_short is not None and self.cut_short.code != Exit.DONE:
            return self.cut_short.code
        return _exit_code(self.results, self.allowed_failed)


def _exit_code(results: Sequence[SceneResult], allowed_failed: int) -> Exit:
    """Return the exit code of a run that was not cut short."""
    if any(result.bug for result in results):
        return Exit.BUG
    if _all_failed(results):
        return Exit.ALL_FAILED
    failed = sum(result.status == "failed" for result in results)
    if failed > allowed_failed:
        return Exit.SOME_FAILED
    in_use = any(result.status == "in-use" for result in results)
    return Exit.IN_USE if in_use else Exit.DONE


def _all_failed(results: Sequence[SceneResult]) -> bool:
    tried = [result for result in results if result.status not in ("quarantined", "in-use")]
    return bool(tried) and all(result.status == "failed" for result in tried)


def run_summary(run: Run, job: Job) -> dict[str, object]:
    """Return the run as values for JSON: the content of the report file and of `--json`."""
    gdal.keep_to(job.settings.scenes.drivers)
    drivers = " ".join(gdal.drivers())
    counts = {status: run.count(status) for status in get_args(Status)}
    return {
        "run_id": run.run_id,
        "name": run.night,
        "started_at": run.started_at.isoformat(),
        "seconds": round(run.seconds, 3),
        "exit_code": int(run.exit_code),
        "cut_short": run.cut_short.why if run.cut_short else "",
        "scenes": counts | {"unfinished": run.unfinished},
        "allowed_failed": run.allowed_failed,
        "detections": run.detections,
        "megapixels": round(run.megapixels, 3),
        "warnings": run.warned,
        "run_warnings": list(run.warnings),
        "ran_on": run.ran_on,
        "detectors": detector_figures(run.use),
        "spending": run.spending(job.settings).facts(job.settings.engine, run.megapixels),
        "freshness": None if run.freshness is None else asdict(run.freshness),
        "figures": night_figures(run.results, job.card.gsd_m),
        "compared_nights": run.compared_nights,
        "unusual": [asdict(one) for one in run.unusual],
        "canary": None if run.canary is None else asdict(run.canary),
        "expected": None if run.expected is None else asdict(run.expected),
        "model": {"id": job.card.name, "version": job.card.version, "sha256": job.model_sha256},
        "area": None if job.area is None else area_report(job.area),
        "settings": job.settings.model_dump(mode="json"),
        "versions": versions() | {"gdal": rasterio.__gdal_version__, "gdal_drivers": drivers},
        "results": [asdict(result) for result in run.results],
    }


def detector_figures(use: DetectorUse) -> dict[str, float]:
    """Return how detectors spent their time, their speed, and the memory that they needed.

    `computing` and `waiting` are shares of their time, from the start of each to its last chips.
    `staging` is a share of the same time, but on Ray other threads stage while a detector computes.
    `chips_per_second` is the mean of one detector, all its time counted.
    """
    seconds = use.computed_s + use.waited_s
    return {
        "computing": round(use.computed_s / seconds, 4) if seconds else 0.0,
        "waiting": round(use.waited_s / seconds, 4) if seconds else 0.0,
        "staging": round(use.staged_s / seconds, 4) if seconds else 0.0,
        "chips": use.chips,
        "chips_per_second": round(use.chips / seconds, 3) if seconds else 0.0,
        "peak_memory_bytes": use.peak_bytes,
    }


def write_report(run: Run, job: Job) -> Location:
    """Write OUT/runs/<run_id>.json and return its path.

    Raises:
        OutputError: if the file cannot be written.
    """
    output = Output(job.out)
    path = output.report(run.run_id)
    text = json.dumps(run_summary(run, job), indent=2)
    with atomic_write(path, output.aside) as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return path


def one_line(result: SceneResult) -> str:
    """Return the result of a scene as one line of text."""
    if result.status in ("failed", "quarantined", "in-use"):
        return f"{result.status}: {failure(result)}"
    return printable(f"{result.status}: {result.scene_id}: {_outcome(result)}")


def failure(result: SceneResult) -> str:
    """Return which scene failed and why. Some reasons name the scene already."""
    has_name = result.reason.startswith(result.href)
    return printable(result.reason if has_name else f"{result.href}: {result.reason}")


def _outcome(result: SceneResult) -> str:
    if result.status == "up-to-date":
        return f"nothing to do, {result.detections:,} detections"
    detections = f"{result.detections:,} detections" if result.detections else "nothing was found"
    if not result.windows:
        return f"nothing was looked at{no_pixels(0, result.skipped_windows)}"
    windows = counted(result.windows, "window")
    return f"{detections} in {windows}{no_pixels(result.windows, result.skipped_windows)}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 window`, `2,000 windows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def no_pixels(windows: int, skipped: int) -> str:
    """Return a note in brackets on the windows without valid pixels; empty if there are none."""
    if not skipped:
        return ""
    total = windows + skipped
    return f" ({skipped:,} of {counted(total, 'window')} have no valid pixels to look at)"
