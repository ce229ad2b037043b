"""`scenesweep view`: HTML pages that show what was published, without a network."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import SceneError, UsageError
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.results.view import (
    IndexEntry,
    PageSettings,
    PublishedScene,
    find_published,
    last_results,
    make_entry,
    make_night,
    source_of,
    write_index,
    write_page,
)
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.sources import expand
from scenesweep.pipeline.sources.ids import identified
from scenesweep.pipeline.storage.location import location_of, output_here
from scenesweep.pipeline.storage.paths import PAGE_PATTERNS, TABLES, Output

log = logging.getLogger(__name__)

INDEX = "index.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "scenes",
        nargs="*",
        metavar="SCENE",
        help="only these scenes: ids, or rasters (file, folder, glob) to read the picture from; "
        "default: all, with the rasters that the run reports name",
    )
    parser.add_argument("--to", type=Path, help="folder for the pages; default: OUT/view")
    parser.add_argument(
        "--page-mb",
        type=float,
        default=PageSettings().megabytes,
        help="size limit of a page in MB; the picture is as fine as fits; default: %(default)g",
    )
    parser.add_argument(
        "--quicklooks", action="store_true", help="use the quicklooks as pictures; read no raster"
    )
    parser.add_argument(
        "--driver",
        action="append",
        default=[],
        metavar="NAME",
        help="also open this GDAL format; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the pages and the index, and print the path of the index."""
    settings = PageSettings(
        megabytes=arguments.page_mb,
        drivers=tuple(dict.fromkeys([*DRIVERS, *arguments.driver])),
        read_scenes=not arguments.quicklooks,
    )
    out = location_of(arguments.out)
    folder = arguments.to or (Output(out).pages if isinstance(out, Path) else None)
    if folder is None:
        raise UsageError(f"{out}: expected --to FOLDER: pages are written to a local folder only")
    with output_here(out, PAGE_PATTERNS) as here:
        index, failed = view(here, arguments.scenes, folder, settings)
    print(f"view: {index}")
    return 3 if failed else 0


def view(out: Path, named: Sequence[str], folder: Path, settings: PageSettings) -> tuple[Path, int]:
    """Write pages of all or of the named scenes, and the index of all scenes.

    Returns the path of the index and the number of scenes whose page failed.

    Raises:
        UsageError: when nothing is published under `out`, or a named scene is not.
    """
    published = find_published(out)
    if not published:
        raise UsageError(
            f"{out}: expected published scenes in {out / TABLES}, found none; "
            "run scenesweep detect first"
        )
    results = last_results(out)
    sources = _sources(named, published, results, settings)
    failed = sum(
        not _show(published[scene_id], sources[scene_id], folder, settings) for scene_id in sources
    )
    entries = [entry for scene in published.values() if (entry := _entry(scene)) is not None]
    night = make_night(out, [published[entry.scene_id] for entry in entries], results)
    pages = {scene_id for scene_id in published if (folder / f"{scene_id}.html").is_file()}
    failures = [
        _failure(result)
        for _, result in sorted(results.items())
        if result.get("status") == "failed"
    ]
    write_index(folder / INDEX, entries, failures, pages=pages, night=night)
    return folder / INDEX, failed


def _sources(
    named: Sequence[str],
    published: Mapping[str, PublishedScene],
    results: Mapping[str, Mapping[str, Any]],
    settings: PageSettings,
) -> dict[str, str | None]:
    """Return the ids of the scenes to show, and the addresses of their rasters where known."""
    sources: dict[str, str | None] = {}
    reported = {scene_id: results.get(scene_id, {}).get("href") for scene_id in published}
    if not named:
        return reported
    for name in named:
        if name in published:
            sources.setdefault(name, reported[name])
            continue
        for href in expand([name], settings.drivers):
            sources[_published_id(href, published)] = href
    return sources


def _published_id(href: str, published: Mapping[str, PublishedScene]) -> str:
    """Return the published id of a raster, in either form of `scenes.ids`."""
    ids: tuple[Literal["stem", "path"], ...] = ("stem", "path")
    for form in ids:
        scene_id = identified(SceneRef.of_file(href), form).scene_id
        if scene_id in published:
            return scene_id
    known = ", ".join(list(published)[:5]) + (", …" if len(published) > 5 else "")
    raise UsageError(f"{href}: expected a published scene ({known}) or its raster")


def _show(
    published: PublishedScene, href: str | None, folder: Path, settings: PageSettings
) -> bool:
    """Write one page; return False, and log why, when the scene cannot be shown."""
    path = folder / f"{published.scene_id}.html"
    try:
        scene = None
        if settings.read_scenes:
            scene = source_of(published, href, drivers=settings.drivers)
        written = write_page(published, scene, path, settings)
    except SceneError as error:
        log.error("failed: %s", error)
        return False
    state = f"{path.stat().st_size / 1e6:.1f} MB" if written else "up to date"
    base = "of the scene" if scene else "of the quicklook" if published.quicklook else "none"
    why = "" if scene or not settings.read_scenes else why_no_scene(href, settings.drivers)
    log.info("page: %s: %s, picture %s%s", published.scene_id, state, base, why)
    return True


def why_no_scene(href: str | None, drivers: tuple[str, ...]) -> str:
    """Return the reason why a page shows the quicklook instead of the scene itself."""
    if href is None:
        return ": no run report names the scene's file"
    if Path(href).suffix.lower() == ".vrt" and "VRT" not in drivers:
        return ": the scene is a VRT; add --driver VRT if you trust it"
    return f": the scene {href} is missing, changed or unreadable"


def _failure(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the source that failed, and the reason without the name of the source."""
    href, reason = str(result.get("href", "")), str(result.get("reason", ""))
    return href, reason.removeprefix(f"{href}: ")


def _entry(published: PublishedScene) -> IndexEntry | None:
    try:
        return make_entry(published)
    except SceneError as error:
        log.error("left out of the index: %s", error)
        return None


if __name__ == "__main__":
    sys.exit(run_job("view"))
