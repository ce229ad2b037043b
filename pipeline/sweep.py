"""A whole run: scenes, a model and a place for results in; what became of each scene out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_in
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from shapely import Geometry

from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine.steps import Progress, Stop, never
from scenesweep.pipeline.errors import Exit, UsageError
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.planning.area import checked_area, meets_nothing, read_area
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.publish.stac.catalog import write_catalog
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.runs.ending import cut_short, exit_after
from scenesweep.pipeline.runs.lock import output_lock
from scenesweep.pipeline.runs.metrics import Metrics
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, SceneResult, exit_with, write_report
from scenesweep.pipeline.scene import identified
from scenesweep.pipeline.settings import Settings, validated
from scenesweep.pipeline.sources import Named, check_ids, find_scenes
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.paths import Output

NO_RAY = "none"


OnResult = Callable[[SceneResult], None]


OnProgress = Callable[[Progress], None]


OnWarning = Callable[[str], None]


Pathlike = str | os.PathLike[str]


def sweep(
    scenes: Pathlike | Sequence[Pathlike],
    model: Pathlike | ModelFile,
    out: Pathlike,
    *,
    area: Pathlike | Geometry | None = None,
    address: str | None = NO_RAY,
    replace: bool = False,
    **settings: Mapping[str, Any],
) -> Run:
    """Detect on scenes, publish what is found under `out`, and return what became of each.

    The same as `scenesweep detect`: what is published already is left alone, a killed run goes
    on where it was, and a scene that cannot be swept has the status `failed` with its reason.

        run = sweep("scenes/", "naip-trees", "OUT", merge={"stitch": True})
        geopandas.read_parquet(run.results[0].files["detections"])

    Args:
        scenes: files, folders, globs, addresses, lists, STAC: docs/inputs.md; one or several.
        model: the name of a built-in model, or a model file.
        out: folder for everything that is written, or `s3://BUCKET/PREFIX`.
        area: look only inside these polygons: a vector file, or a geometry in OGC:CRS84.
        address: `none` is a plain loop in this process. `local` starts Ray on this machine,
            `auto` and `ray://HOST:PORT` take a cluster that is there, and None the cluster of the
            environment, else `local`.
        replace: with an area, replace published results of scenes that cover more ground than
            it; else such scenes fail.
        settings: groups of docs/settings.md, such as `tiling={"margin": 64}`.

    While it runs, GDAL has only the drivers that scenes are opened with, in the whole process: see
    docs/security.md. The others are back when it returns. A Ray that is initialised in this
    process already is used, and left running.

    Raises:
        UsageError: when arguments or settings are wrong: nothing was run.
        ModelError: when the model cannot be used.
        OutputInUse: when another run is writing there.
        KeyboardInterrupt: as it came. As after any error of ours, the run report is written
            first, and the same call goes on from what is staged.
    """
    named = [scenes] if isinstance(scenes, str | os.PathLike) else scenes
    with gdal.drivers_restored():
        order = take_order(
            [os.fspath(name) for name in named],
            model if isinstance(model, ModelFile) else open_model(os.fspath(model)),
            os.fspath(out),
            _area_of(area),
            validated(Settings, settings),
        )
        order = order.replacing() if replace else order
        with output_lock(order.job.out):
            done = carry_out(order, address=address)
            write_report(done, order.job)
    if done.cut_short is not None and done.cut_short.error is not None:
        raise done.cut_short.error
    return done


def _area_of(area: Pathlike | Geometry | None) -> Geometry | None:
    if area is None:
        return None
    return checked_area(area, "area") if isinstance(area, Geometry) else read_area(Path(area))


def take_order(
    named: Named | Sequence[str],
    model: ModelFile,
    out: str,
    area: Geometry | None,
    settings: Settings,
) -> Order:
    """Find the scenes and fit the settings to the model.

    Raises:
        UsageError: when there are no such scenes, two of one id, settings that do not fit, or
            `out` is neither a folder nor a prefix on S3.
    """
    location_of(out)
    named = named if isinstance(named, Named) else Named(tuple(named))
    bands = settings.read.bands or model.card.bands
    found = find_scenes(named, settings.scenes.drivers, card_bands=bands)
    sources = [identified(source, settings.scenes.ids) for source in found]
    check_ids(sources)
    job = Job(model.card, model.sha256, settings.resolved(model.card), out, area)
    return Order(tuple(sources), model, job)


def carry_out(
    order: Order,
    *,
    address: str | None,
    on_result: OnResult = lambda _: None,
    on_progress: OnProgress = lambda _: None,
    on_warning: OnWarning = lambda _: None,
    stop: Stop = never,
) -> Run:
    """Sweep all scenes, on Ray or in a plain loop; results are in the order of the scenes.

    Raises:
        UsageError: when the area of interest meets none of the scenes: nothing is published.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid4().hex[:6]}"
    results: list[SceneResult] = []
    warnings: list[str] = []

    def keep(result: SceneResult) -> None:
        results.append(result)
        on_result(result)

    def note(warning: str) -> None:
        warnings.append(warning)
        on_warning(warning)

    def go() -> None:
        if address == NO_RAY:
            local.sweep(
                order.sources,
                scene_steps(order.job),
                order.model,
                on_result=keep,
                on_progress=on_progress,
                stop=stop,
            )
        else:
            _on_ray(order, address, run_id, keep, on_progress, note, stop)

    ended = cut_short(go, stop, results=lambda: len(results))
    unfinished = len(order.sources) - len(results)
    if results and not unfinished and all(result.outside_area for result in results):
        assert order.job.area is not None
        raise UsageError(meets_nothing(order.job.area, len(results)))
    if order.job.settings.publish.stac and not unfinished:
        write_catalog(location_of(order.job.out), order.model)
    order_of = {source.scene_id: i for i, source in enumerate(order.sources)}
    results.sort(key=lambda result: order_of[result.scene_id])
    return Run(
        run_id,
        started,
        time.monotonic() - clock,
        tuple(results),
        unfinished,
        ended if unfinished else None,
        tuple(warnings),
        order.allowed_failed,
    )


def _on_ray(
    order: Order,
    address: str | None,
    run_id: str,
    on_result: OnResult,
    on_progress: OnProgress,
    on_warning: OnWarning,
    stop: Stop,
) -> None:
    try:
        from scenesweep.pipeline.engine import ray as engine
    except ImportError as error:
        raise UsageError(f"Ray is not installed ({error}); use --address {NO_RAY}") from error
    settings = order.job.settings
    results: list[SceneResult] = []

    def counted(result: SceneResult) -> None:
        results.append(result)
        meters.count(result)
        on_result(result)

    def shown(progress: Progress) -> None:
        meters.show(progress)
        on_progress(progress)

    with engine.ray_session(address):
        meters = Metrics(engine.metrics, run_id=run_id, night=order.night)
        resources = engine.resources_for(
            settings.engine, threads=settings.detect.threads, device=settings.detect.device
        )
        resources = replace_in(resources, expect_work=_expects_work(order))
        try:
            engine.sweep(
                order.sources,
                scene_steps(order.job),
                order.model,
                settings.engine,
                resources,
                on_result=counted,
                on_progress=shown,
                on_warning=on_warning,
                stop=stop,
            )
        except BaseException as error:
            meters.end(exit_after(error))
            raise
        cut = len(results) < len(order.sources) and stop()
        meters.end(Exit.STOPPED if cut else exit_with(results, order.allowed_failed))


def _expects_work(order: Order) -> bool:
    """Guess whether a scene is not up to date, from the names of the lists of published files.

    It costs one listing. A wrong guess costs time and changes no result.
    """
    published = {path.stem for path in Output.of(order.job.out).manifests()}
    return any(source.scene_id not in published for source in order.sources)
