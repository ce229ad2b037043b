"""Figures of the last run of each schedule, in Prometheus's text format; they stay in OUT."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import get_args

from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.runs.drift import FIGURES
from scenesweep.pipeline.runs.metrics import ACTIVITIES
from scenesweep.pipeline.runs.report import Run, Status, detector_figures
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, list_matching
from scenesweep.pipeline.storage.objects import ObjectLocation
from scenesweep.pipeline.storage.paths import Output

_PREFIX = "scenesweep_"
_NOTHING: Mapping[str, float] = {}


def metrics_file(out: Location, night: str) -> Location:
    """Return the path of the file with the figures of the last run of this name."""
    return Output(out).metrics(night)


def write_metrics(
    run: Run, night: str, out: Location, spending: Mapping[str, float] = _NOTHING
) -> None:
    """Write the figures of a run in Prometheus's text format.

    If the run did not succeed, the file keeps the time of the last success from before. `spending`
    are the figures of `Spending.facts`.

    Raises:
        OutputError: if the file cannot be written.
    """
    path, before = metrics_file(out, night), ""
    with suppress(OSError, ValueError):
        before = path.read_text(encoding="utf-8")
    text = metrics_text(run, night, before, spending)
    with atomic_write(path, Output(out).aside) as aside:
        aside.write_text(text, encoding="utf-8")


def _detector_values(run: Run) -> list[tuple[str, str, float]]:
    """Return name, tags and value of the figures of a run's detectors."""
    figures = detector_figures(run.use)
    shares = [
        ("last_run_detector_share", f',activity="{activity}"', figures[activity])
        for activity in ACTIVITIES
    ]
    return [
        *shares,
        ("last_run_detector_chips_per_second", "", figures["chips_per_second"]),
        ("last_run_detector_peak_bytes", "", figures["peak_memory_bytes"]),
    ]


def metrics_text(
    run: Run, night: str, before: str = "", spending: Mapping[str, float] = _NOTHING
) -> str:
    """Return what `write_metrics` writes, given the text of the file from the run before."""
    ended = round(run.started_at.timestamp() + run.seconds)
    success = re.search(r"^scenesweep_last_success_timestamp_seconds\{.*\} (\d+)$", before, re.M)
    values: list[tuple[str, str, float]] = [
        ("last_run_timestamp_seconds", "", ended),
        ("last_run_exit_code", "", int(run.exit_code)),
        ("last_run_seconds", "", round(run.seconds, 3)),
        ("last_run_detections", "", run.detections),
        ("last_run_megapixels", "", round(run.megapixels, 3)),
    ]
    for status in get_args(Status):
        values.append(("last_run_scenes", f',status="{status}"', run.count(status)))
    values.append(("last_run_scenes", ',status="unfinished"', run.unfinished))
    values += [*_detector_values(run), *_check_values(run), *_freshness_values(run)]
    values += [(f"last_run_{name}", "", value) for name, value in spending.items()]
    if run.exit_code == Exit.DONE:
        values.append(("last_success_timestamp_seconds", "", ended))
    elif success:
        values.append(("last_success_timestamp_seconds", "", int(success[1])))
    lines: list[str] = []
    for name, tags, value in values:
        kind = f"# TYPE scenesweep_{name} gauge"
        lines += [] if kind in lines else [kind]
        lines.append(f'scenesweep_{name}{{night="{night}"{tags}}} {value}')
    return "\n".join(lines) + "\n"


def _check_values(run: Run) -> Iterator[tuple[str, str, float]]:
    """Yield name, tags and value of what the run's checks say; nothing of checks not made."""
    if run.compared_nights:
        named = {one.figure for one in run.unusual}
        for figure in FIGURES:
            yield "last_run_unusual", f',figure="{figure}"', int(figure in named)
    if run.canary is not None and run.canary.is_checked:
        yield "last_run_canary", "", int(run.canary.is_good)
    if run.expected is not None:
        for state, count in run.expected.counts().items():
            yield "last_run_expected", f',state="{state}"', count


def _freshness_values(run: Run) -> Iterator[tuple[str, str, float]]:
    """Yield a histogram of the hours from acquisition to publication, in Prometheus's form."""
    fresh = run.freshness
    if fresh is None:
        return
    for end, count in fresh.cumulative():
        yield "last_run_freshness_hours_bucket", f',le="{end}"', count
    yield "last_run_freshness_hours_sum", "", round(fresh.mean_hours * fresh.scenes, 3)
    yield "last_run_freshness_hours_count", "", fresh.scenes


def figures_of(out: Location) -> str:
    """Return the figures of all schedules of an output, and the room on its disk.

    Raises:
        OSError: if a file cannot be read.
    """
    files = list_matching(Output(out).reports, "*.prom")
    samples: dict[str, list[str]] = {}
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                samples.setdefault(line.partition("{")[0], []).append(line)
    for name, value in _room(out):
        samples[name] = [f"{name} {value}"]
    lines = [line for name, values in samples.items() for line in (f"# TYPE {name} gauge", *values)]
    return "\n".join(lines) + "\n" if lines else ""


def _room(out: Location) -> Iterator[tuple[str, int]]:
    """Yield the free bytes and the size of the disk of a folder; nothing for an object store."""
    if isinstance(out, ObjectLocation) or not out.is_dir():
        return
    disk = os.statvfs(out)
    yield f"{_PREFIX}out_free_bytes", disk.f_bavail * disk.f_frsize
    yield f"{_PREFIX}out_size_bytes", disk.f_blocks * disk.f_frsize
