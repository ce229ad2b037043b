"""Paint and sweep the canary scene, before all others. `pipeline.runs.canary` compares."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from scenesweep.jobs.suburb import paint_suburb
from scenesweep.model.card import ModelCard
from scenesweep.pipeline.engine.steps import Stop, never
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.canary import Answer, Canary, judge, known_answer, record_answer
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.runs.writers import living_keys, shared_files
from scenesweep.pipeline.settings import PublishSettings, SceneSettings, Settings, fingerprint
from scenesweep.pipeline.sources import Named, find_scenes
from scenesweep.pipeline.storage.commit import atomic_write, make_folder, remove_folder
from scenesweep.pipeline.storage.location import Location, list_matching, parquet
from scenesweep.pipeline.storage.paths import Output
from scenesweep.pipeline.sweep import carry_out

log = logging.getLogger(__name__)

SIZE_PX = 720
SEED = 3
FINER = 0.8
"""The pixels are finer than the model's by this factor, so that reading resamples them."""
_NO_WRITER = "run"
_CRS = "EPSG:32611"
_ORIGIN_M = (430_000.0, 3_775_000.0)
_BANDS = ("red", "green", "blue", "nir")
_COLUMNS = ["x_min", "y_min", "x_max", "y_max", "score", "class_name"]


def canary_key(card: ModelCard, settings: Settings) -> str:
    """Return the key of the answer: the model's name, its version, and the user's settings.

    The hash of the model file is not part of it: a file that changed without a new version is one
    of the faults to find.
    """
    given = settings.model_dump(
        mode="json",
        include={"tiling": True, "read": True, "detect": set(_DECIDING), "merge": True},
    )
    return f"{card.name}@{card.version} {fingerprint(given)}"


_DECIDING = (
    "score_threshold",
    "nms_iou",
    "class_agnostic",
    "topk_per_level",
    "max_detections_per_chip",
)


def check_canary(
    order: Order, settings: Settings, *, address: str | None, stop: Stop = never
) -> Canary:
    """Sweep the canary with the order's model and settings; compare, or record the first answer.

    It takes the way of every scene: read, detected by the same kind of worker, merged, published,
    below OUT/.work. `settings` are the user's, before the card filled them.

    Raises:
        OutputError: if the output cannot be written.
    """
    started = time.monotonic()
    out, key = order.job.out, canary_key(order.job.card, settings)
    expected = known_answer(out, key)
    pixel_m = expected.pixel_m if expected else order.job.card.gsd_m * FINER
    try:
        found = sweep_canary(order, pixel_m, address=address, stop=stop)
    except CanaryFailed as error:
        return Canary("failed", (str(error),), 0, time.monotonic() - started)
    canary = judge(expected, found, seconds=round(time.monotonic() - started, 3))
    if canary.state == "recorded":
        with shared_files(out, order.job.writer):
            record_answer(out, key, found)
    return canary


class CanaryFailed(Exception):
    """The canary could not be swept."""


def sweep_canary(
    order: Order, pixel_m: float, *, address: str | None, stop: Stop = never
) -> Answer:
    """Paint the scene, sweep it and return its detections.

    Raises:
        CanaryFailed: if it could not be swept.
    """
    job = canary_job(order.job)
    _remove_old(order.job.out)
    path = write_canary(job, pixel_m)
    sources = tuple(find_scenes(Named((str(path),)), job.settings.scenes, card_bands=_bands(job)))
    run = carry_out(Order(sources, order.model, job), address=address, stop=stop)
    failed = [result.reason for result in run.results if result.status == "failed"]
    if failed or not run.results:
        why = run.cut_short.why if run.cut_short else "it has no result"
        raise CanaryFailed(failed[0] if failed else why)
    return _answer(job.out, pixel_m)


def canary_job(job: Job) -> Job:
    """Return the job of the canary: same model and settings, below OUT/.work, only the table."""
    engine = job.settings.engine.model_copy(update={"detectors": 1})
    settings = job.settings.model_copy(
        update={
            "scenes": SceneSettings(checksums="ignore"),
            "publish": PublishSettings(formats=(), stac=False, quicklook=False),
            "engine": engine,
        }
    )
    out = Output(job.out).canary / (job.writer or _NO_WRITER)
    return replace(job, out=out, settings=settings, area=None, writer="")


def _remove_old(out: Location) -> None:
    """Remove the canaries of runs that have ended."""
    living = living_keys(out)
    for folder in list_matching(Output(out).canary, "*"):
        if folder.name not in living:
            remove_folder(folder)


def write_canary(job: Job, pixel_m: float) -> Location:
    """Write the painted scene for the bands of the job, and return its path."""
    names = _bands(job)
    painted = paint_suburb(SIZE_PX, seed=SEED).pixels
    count = max([len(names), *(name for name in names if isinstance(name, int))])
    at = {name: i for i, name in enumerate(names, start=1) if isinstance(name, str)}
    pixels = np.stack([painted[i % len(painted)] for i in range(count)])
    for name, number in at.items():
        if name in _BANDS:
            pixels[number - 1] = painted[_BANDS.index(name)]
    path = job.out / "scene.tif"
    make_folder(job.out)
    make_folder(Output(job.out).aside)
    with atomic_write(path, Output(job.out).aside) as aside:
        _write(aside, pixels, pixel_m, {number: name for name, number in at.items()})
    return path


def _bands(job: Job) -> tuple[str | int, ...]:
    return job.settings.read.bands


def _write(path: Path, pixels: NDArray[np.uint8], pixel_m: float, names: dict[int, str]) -> None:
    bands, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype="uint8",
        crs=_CRS,
        transform=from_origin(*_ORIGIN_M, pixel_m, pixel_m),
        nodata=0,
        tiled=True,
        compress="deflate",
        photometric="MINISBLACK",
        alpha="unspecified",
    ) as dataset:
        for number, name in names.items():
            dataset.set_band_description(number, name)
        dataset.write(pixels)


def _answer(out: Location, pixel_m: float) -> Answer:
    tables = Output(out).tables()
    if not tables:
        raise CanaryFailed("nothing was published for it")
    table = pq.read_table(parquet(tables[0]), columns=_COLUMNS).to_pydict()
    edges = zip(*(table[name] for name in _COLUMNS[:4]), strict=True)
    boxes = [[round(edge, 2) for edge in box] for box in edges]
    return Answer(pixel_m, boxes, [round(s, 4) for s in table["score"]], table["class_name"])
