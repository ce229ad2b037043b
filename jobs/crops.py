"""`scenesweep crops`: a small picture of each published detection, as Parquet."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import SceneError, UsageError
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.results.crops import CropSettings, write_crops
from scenesweep.pipeline.results.view import (
    PublishedScene,
    find_published,
    last_results,
    source_of,
)
from scenesweep.pipeline.storage.location import location_of, output_here
from scenesweep.pipeline.storage.paths import PAGE_PATTERNS

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    defaults = CropSettings()
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "scenes", nargs="*", metavar="SCENE", help="only these scenes, by id; default: all"
    )
    parser.add_argument(
        "--to", type=Path, required=True, help="folder for the files: one SCENE.parquet per scene"
    )
    parser.add_argument(
        "--px",
        type=int,
        default=defaults.side_px,
        metavar="N",
        help="side of a picture in pixels; default: %(default)s",
    )
    parser.add_argument(
        "--around",
        type=float,
        default=defaults.around,
        metavar="X",
        help="side of the square, in longer sides of the box; default: %(default)g",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=defaults.min_score,
        metavar="X",
        help="lowest score, from 0 to 1; default: %(default)g",
    )
    parser.add_argument(
        "--driver",
        action="append",
        default=[],
        metavar="NAME",
        help="also open this GDAL format; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and print the path of each."""
    settings = _settings(arguments)
    drivers = tuple(dict.fromkeys([*DRIVERS, *arguments.driver]))
    arguments.to.mkdir(parents=True, exist_ok=True)
    failed = 0
    with output_here(location_of(arguments.out), PAGE_PATTERNS) as here:
        reported = last_results(here)
        for published in _chosen(here, arguments.scenes):
            href = reported.get(published.scene_id, {}).get("href")
            path = arguments.to / f"{published.scene_id}.parquet"
            failed += not _write(published, href, path, settings, drivers)
    return 3 if failed else 0


def _settings(arguments: argparse.Namespace) -> CropSettings:
    if not 8 <= arguments.px <= 2048:
        raise UsageError(f"--px: expected 8 to 2048, got {arguments.px}")
    if not 0.5 <= arguments.around <= 20:
        raise UsageError(f"--around: expected 0.5 to 20, got {arguments.around:g}")
    return CropSettings(
        side_px=arguments.px, around=arguments.around, min_score=arguments.min_score
    )


def _chosen(out: Path, named: list[str]) -> list[PublishedScene]:
    published = find_published(out)
    unknown = sorted(set(named) - set(published))
    if not published or unknown:
        what = f"no scene {', '.join(unknown)}" if unknown else "none"
        raise UsageError(f"{out}: expected published scenes, found {what}")
    return [published[name] for name in (dict.fromkeys(named) or published)]


def _write(
    published: PublishedScene,
    href: str | None,
    path: Path,
    settings: CropSettings,
    drivers: tuple[str, ...],
) -> bool:
    """Write the crops of a scene; return False, and log why, when it cannot be read."""
    try:
        scene = source_of(published, href, drivers=drivers)
        if scene is None:
            raise SceneError(
                f"{published.scene_id}: expected the scene as it was swept, at "
                f"{href or 'an unknown place'}; it is missing, changed or unreadable"
            )
        count = write_crops(published, scene, path, settings)
    except SceneError as error:
        log.error("failed: %s", error)
        return False
    print(f"{path}: {count:,} crops")
    return True


if __name__ == "__main__":
    sys.exit(run_job("crops"))
