"""A whole run: from scenes, a model and an output to one result for each scene."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as replace_in
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from shapely import Geometry

from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.inference.process import callers_process
from scenesweep.pipeline.detection.computing import IN_THIS_PROCESS, DetectorHost, computing_here
from scenesweep.pipeline.detection.parts import computing_of_parts
from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine.resources import Resources
from scenesweep.pipeline.engine.steps import DetectorUse, Listener, Progress, Stop, never
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.geometry.layers import open_layers
from scenesweep.pipeline.planning.area import checked_area, meets_nothing, read_area
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.publish.stac.catalog import write_catalog
from scenesweep.pipeline.raster import gdal
from scenesweep.pipeline.runs.claims import release
from scenesweep.pipeline.runs.ending import cut_short
from scenesweep.pipeline.runs.failures import without
from scenesweep.pipeline.runs.known import recognised
from scenesweep.pipeline.runs.metrics import Metrics
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.report import Run, SceneResult, write_report
from scenesweep.pipeline.runs.writers import shared_files, writing
from scenesweep.pipeline.settings import Settings, validated
from scenesweep.pipeline.sources import Named, check_ids, find_scenes
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.storage.remote import local_name

NO_RAY = "none"
_SHOW_USE_EVERY_S = 5.0  # calls of detectors end hundreds of times a second


Pathlike = str | os.PathLike[str]


def sweep(
    scenes: Pathlike | Sequence[Pathlike],
    model: Pathlike | ModelFile,
    out: Pathlike,
    *,
    area: Pathlike | Geometry | None = None,
    address: str | None = NO_RAY,
    replace: bool = False,
    settings: Settings | Mapping[str, Any] | None = None,
    **groups: Mapping[str, Any],
) -> Run:
    """Detect on scenes, publish the detections under `out`, and return a result for each scene.

    This is `scenesweep detect`: it skips scenes that are up to date, resumes a killed run, and
    gives a scene that cannot be swept the status `failed` with the reason.

        run = sweep("scenes/", "naip-trees", "OUT", merge={"stitch": True})
        geopandas.read_parquet(run.results[0].files["detections"])

    Args:
        scenes: one or several files, folders, globs, addresses, lists or STAC: docs/inputs.md.
        model: the name of a built-in model, or a model file.
        out: the output folder, or a prefix in a cloud, such as `s3://BUCKET/PREFIX`.
        area: look only inside these polygons: a vector file, or a geometry in OGC:CRS84.
        address: `none` runs a plain loop in this process. `local` starts Ray on this machine.
            `auto` and `ray://HOST:PORT` connect to a running cluster. None connects to the cluster
            of the environment, or starts Ray on this machine if there is none.
        replace: let results inside an area replace published results that cover more ground;
            without it such scenes fail.
        settings: settings of docs/settings.md, as `Settings` or as a mapping of groups, such as
            `{"scenes": {"ids": "path"}}`.
        groups: groups of settings by name, such as `tiling={"margin": 64}`. Each replaces that
            group of `settings`. The group `scenes` has the name of the first argument, so give it
            in `settings`.

    While it runs, GDAL has only the drivers that may open scenes, in the whole process: see
    docs/security.md. It restores the others, and torch's threads, when it returns. If Ray is
    already initialised in this process, it uses that Ray and leaves it running.

    Raises:
        UsageError: when arguments or settings are wrong; nothing was run.
        ModelError: when the model cannot be used.
        OutputInUse: when a command such as `compact` is writing to `out`. If other runs are, each
            works on other scenes: a scene in progress elsewhere gets the status `in-use`.
        KeyboardInterrupt: on Ctrl-C. As after an error in scenesweep, it writes the run report
            first, and the same call resumes from the staged shards.
    """
    named = [scenes] if isinstance(scenes, str | os.PathLike) else scenes
    with gdal.drivers_restored(), callers_process():
        order = take_order(
            [os.fspath(name) for name in named],
            model if isinstance(model, ModelFile) else open_model(local_name(os.fspath(model))),
            os.fspath(out),
            _area_of(area),
            _settings_of(settings, groups),
        )
        order = order.replacing() if replace else order
        with writing(order.job.out) as writer:
            order = order.of_writer(writer.key)
            done = carry_out(order, address=address)
            write_report(done, order.job)
    if done.cut_short is not None and done.cut_short.error is not None:
        raise done.cut_short.error
    return done


def _area_of(area: Pathlike | Geometry | None) -> Geometry | None:
    if area is None:
        return None
    return checked_area(area, "area") if isinstance(area, Geometry) else read_area(Path(area))


def _settings_of(
    settings: Settings | Mapping[str, Any] | None, groups: Mapping[str, Mapping[str, Any]]
) -> Settings:
    if isinstance(settings, Settings):
        settings = settings.model_dump(include=set(Settings.model_fields))
    return validated(Settings, {**(settings or {}), **groups})


def take_order(
    named: Named | Sequence[str],
    model: ModelFile,
    out: str,
    area: Geometry | None,
    settings: Settings,
) -> Order:
    """Find the scenes, resolve the settings for the model, and parse the output.

    Raises:
        UsageError: when a scene is not found, two scenes have one id, settings do not fit the
            model, a layer cannot be used, or `out` is neither a folder nor a prefix in a cloud.
    """
    output = location_of(out)
    named = named if isinstance(named, Named) else Named(tuple(named), mask=settings.mask)
    bands = settings.read.bands or model.card.bands
    sources = find_scenes(named, settings.scenes, card_bands=bands)
    check_ids(sources)
    layers, resolved = open_layers(settings.layers), settings.resolved(model.card)
    job = Job(model.card, model.sha256, resolved, area, layers, out=output)
    return Order(tuple(sources), model, job)


@dataclass(slots=True)
class _Record:
    """What a run has reported so far. It passes everything on, to metrics and to a listener.

    Scenes that another run works on are kept back: they are tried once more.
    """

    listener: Listener[SceneResult]
    job: Job
    results: list[SceneResult] = field(default_factory=list)
    in_use: list[SceneResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    metrics: Metrics | None = None
    use: DetectorUse = field(default_factory=DetectorUse)
    use_shown_at: float = -math.inf

    def result(self, result: SceneResult) -> None:
        if result.status == "in-use":
            self.in_use.append(result)
        else:
            self.final(result)

    def final(self, result: SceneResult) -> None:
        if result.status == "failed":
            release(self.job.out, result.scene_id, self.job.writer)
        self.results.append(result)
        if self.metrics is not None:
            self.metrics.count(result)
            self.metrics.show_use(self.use)
        self.listener.result(result)

    def progress(self, progress: Progress) -> None:
        if self.metrics is not None:
            self.metrics.show(progress)
        self.listener.progress(progress)

    def warning(self, message: str) -> None:
        self.warnings.append(message)
        self.listener.warning(message)

    def detected(self, use: DetectorUse) -> None:
        self.use += use
        now = time.monotonic()
        if self.metrics is not None and now - self.use_shown_at > _SHOW_USE_EVERY_S:
            self.metrics.show_use(self.use)
            self.use_shown_at = now

    def as_listener(self) -> Listener[SceneResult]:
        return Listener(self.result, self.progress, self.warning, self.detected)


def carry_out(
    order: Order,
    *,
    address: str | None,
    listener: Listener[SceneResult] | None = None,
    stop: Stop = never,
) -> Run:
    """Sweep all scenes, on Ray or in a plain loop, and return results in the order of scenes.

    Raises:
        UsageError: when the area of interest meets none of the scenes; nothing is published.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid4().hex[:6]}"
    record = _Record(listener or Listener(), order.job)
    results = record.results
    for result in recognised(order):
        record.final(result)
    left = without(order, results)
    if left.sources and (lost := _not_calibrated(order.job)):
        record.warning(
            f"no probability for {', '.join(lost)}: the model was calibrated in other views than "
            "detect.views; calibrate it with scenesweep evaluate --views ... --calibrate"
        )
    runner = partial(_in_this_process, record=record, stop=stop)
    if address != NO_RAY and left.sources:
        runner = partial(_on_ray, record=record, address=address, run_id=run_id, stop=stop)
    whole = partial(_twice_if_in_use, left, record, runner, stop)
    ended = cut_short(whole, stop, results=lambda: len(results))
    unfinished = len(order.sources) - len(results)
    if results and not unfinished and all(result.outside_area for result in results):
        assert order.job.area is not None
        raise UsageError(meets_nothing(order.job.area, len(results)))
    if order.job.settings.publish.stac and not unfinished:
        with shared_files(order.job.out, order.job.writer):
            write_catalog(order.job.out, order.model)
    order_of = {source.scene_id: i for i, source in enumerate(order.sources)}
    results.sort(key=lambda result: order_of[result.scene_id])
    return Run(
        run_id,
        started,
        time.monotonic() - clock,
        tuple(results),
        unfinished,
        ended if unfinished else None,
        tuple(record.warnings),
        order.allowed_failed,
        record.use,
        order.night,
    )


def _not_calibrated(job: Job) -> list[str]:
    """Return the classes whose calibration does not hold in the views of this run."""
    holds = job.card.calibrated_for(job.settings.detect).calibration
    return [name for name in job.card.calibration if name not in holds]


@contextmanager
def kept_session(address: str | None) -> Iterator[None]:
    """Keep one connection to Ray for all runs inside the block; do nothing for `none`.

    Raises:
        UsageError: if Ray is not installed, or there is no cluster at the address.
    """
    if address == NO_RAY:
        yield
        return
    with _ray_engine().ray_session(address):
        yield


def _ray_engine() -> ModuleType:
    try:
        from scenesweep.pipeline.engine import ray as engine
    except ImportError as error:
        raise UsageError(f"Ray is not installed ({error}); use --address {NO_RAY}") from error
    return engine


def _twice_if_in_use(
    order: Order, record: _Record, runner: Callable[[Order], None], stop: Stop
) -> None:
    """Sweep the scenes; try those again that another run worked on, if time has passed since."""
    runner(order)
    in_use, record.in_use = record.in_use, []
    if in_use and len(in_use) < len(order.sources) and not stop():
        ids = {result.scene_id for result in in_use}
        again = replace_in(order, sources=tuple(s for s in order.sources if s.scene_id in ids))
        for result in recognised(again):  # the other run published it
            record.final(result)
        left = without(again, record.results)
        if left.sources:
            runner(left)
        in_use = record.in_use
    for result in [] if stop() else in_use:
        record.final(result)


def _in_this_process(order: Order, record: _Record, *, stop: Stop) -> None:
    settings, card, host = order.job.settings.detect, order.job.card, IN_THIS_PROCESS
    computing = host.computing_named_by(settings)
    if computing is None and is_resumed(order):
        computing = computing_here(settings, card, host)
    steps = scene_steps(order.job, replace_in(host, computing=computing))
    local.sweep(order.sources, steps, order.model, listener=record.as_listener(), stop=stop)


def _on_ray(order: Order, record: _Record, *, address: str | None, run_id: str, stop: Stop) -> None:
    try:
        from scenesweep.pipeline.engine import ray as engine
    except ImportError as error:
        raise UsageError(f"Ray is not installed ({error}); use --address {NO_RAY}") from error
    settings = order.job.settings
    with engine.ray_session(address):
        if record.metrics is None:
            record.metrics = Metrics(engine.make_gauge, run_id=run_id, night=order.night)
        resources = engine.resources_for(
            settings.engine, threads=settings.detect.threads, device=settings.detect.device
        )
        host = _host_on_ray(order, resources, run_id=run_id, stop=stop)
        if stop():
            return
        engine.sweep(
            order.sources,
            scene_steps(order.job, host),
            order.model,
            settings.engine,
            replace_in(resources, expect_work=_expects_work(order)),
            listener=record.as_listener(),
            stop=stop,
        )


def _host_on_ray(order: Order, resources: Resources, *, run_id: str, stop: Stop) -> DetectorHost:
    """Return what detectors on Ray need to know, and how they compute if that must be known now.

    It must be known before scenes are planned if parts of an earlier run are there. The machine of
    this process may not be one that detectors run on, so one of those is asked.
    """
    from scenesweep.pipeline.engine import ray as engine

    settings = order.job.settings.detect
    host = DetectorHost(
        own_process=True, gpu_share=resources.detector_gpus, agree=engine.agreement(run_id)
    )
    computing = host.computing_named_by(settings)
    if computing is None and is_resumed(order):
        question = partial(computing_here, settings, order.job.card, host)
        computing = engine.ask(question, resources, stop=stop)
    return replace_in(host, computing=computing)


def is_resumed(order: Order) -> bool:
    """Say whether parts are there that name how an earlier run computed them."""
    ids = {source.scene_id for source in order.sources}
    folders = Output(order.job.out).part_folders()
    ours = (folder for folder in folders if folder.name.rpartition("-")[0] in ids)
    return any(computing_of_parts(folder) is not None for folder in ours)


def _expects_work(order: Order) -> bool:
    """Guess from the names of the manifests whether some scene is not up to date.

    It costs one listing. A wrong guess costs time and changes no result.
    """
    published = {path.stem for path in Output(order.job.out).manifests()}
    return any(source.scene_id not in published for source in order.sources)
