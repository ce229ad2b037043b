"""P3, P5, P7, P10: what the pipeline costs beyond its network, with the shipped model."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from benchmarks.figures import Figure, at_least, at_most, best_of, tell
from scenesweep.jobs.demo import BANDS, CRS, write_scene
from scenesweep.jobs.suburb import PX_M, paint_suburb
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.inference.detector import Detector, load_detector, use_process
from scenesweep.model.networks import retinanet
from scenesweep.pipeline.detection.computing import DetectorHost
from scenesweep.pipeline.engine import local
from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.steps import Listener, Progress, Steps
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.raster import opening
from scenesweep.pipeline.raster.chips import Chips
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import load_settings

MODEL, ISLAND_PX, ISLANDS = "naip-trees", 256, 81
SPARSE_TURNS = 5
ORIGIN_M = (430_000.0, 3_775_000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", help="share, empty, sparse, many (default all)")
    parser.add_argument("--model", default=MODEL, help="for the share alone; another is in RGB")
    parser.add_argument("--sparse-scene", type=Path, help="measure P7 on this raster instead")
    arguments = parser.parse_args()
    every: dict[str, Callable[[Path], list[Figure]]] = {
        "share": lambda folder: steady_share(folder, arguments.model),
        "empty": empty_chips,
        "sparse": lambda folder: sparse_scene(folder, arguments.sparse_scene),
        "many": many_scenes,
    }
    unknown = [name for name in arguments.what if name not in every]
    if unknown:
        parser.error(f"expected some of {', '.join(every)}, got {', '.join(unknown)}")
    for name in arguments.what or every:
        with tempfile.TemporaryDirectory() as folder:
            other = "" if arguments.model == MODEL else "-other"
            tell(f"pipeline-{name}{other}", every[name](Path(folder)), model=arguments.model)


def steady_share(folder: Path, name: str) -> list[Figure]:
    """P3: windows a second of the sweep on Ray, over those of as many bare detectors at once.

    The bare detectors see chips of the same scene, for the time depends on what is found, before
    and after the sweep, for the machine's speed wanders.
    """
    scene = folder / "suburb.tif"
    suburb = paint_suburb(4096 if name == MODEL else 1024, seed=3)
    write_scene(scene, replace(suburb, pixels=np.tile(suburb.pixels, (1, 2, 2))))
    model, job = model_and_job(folder / "out", name=name)
    chips = scene_chips(scene, job, 16)
    before = bare_rate(job.settings.engine.detectors or os.cpu_count() or 1, chips, name)
    with engine.ray_session("local"):
        resources = engine.resources_for(job.settings.engine, threads=1, device="cpu")
        moments: list[tuple[float, Progress]] = []
        results: list[SceneResult] = []
        started = time.monotonic()
        with Spent() as spent:
            engine.sweep(
                [SceneRef.of_file(str(scene))],
                scene_steps(job, DetectorHost(own_process=True)),
                model,
                job.settings.engine,
                resources,
                listener=Listener(
                    results.append,
                    lambda progress: moments.append((time.monotonic(), progress)),
                ),
            )
        whole = time.monotonic() - started
    windows = results[0].windows
    steady = [
        (at, p.windows_done)
        for at, p in moments
        if p.detectors == resources.detectors and 0.15 * windows <= p.windows_done <= 0.9 * windows
    ]
    changes = [now for before, now in pairwise(steady) if now[1] > before[1]]
    (t0, w0), (t1, w1) = changes[0], changes[-1]
    rate = (w1 - w0) / (t1 - t0)
    bare = (before + bare_rate(resources.detectors, chips, name)) / 2
    mpx = job.card.chip_px**2 / 1e6
    least = 0.90 if name == MODEL else 0.95
    return [
        Figure(f"bare network, {resources.detectors} detectors", bare * mpx, "Mpx/s of chips"),
        Figure("sweep on Ray, steady state", rate * mpx, "Mpx/s of chips"),
        at_least("share of the steady state inside the network", rate / bare, "", least),
        Figure("start to end of the sweep", whole, "s"),
        Figure("ground covered, start to end", results[0].megapixels / whole, "Mpx/s"),
        *(Figure(f"processors computed: {who}", s, "s") for who, s in spent.by_kind().items()),
    ]


class Spent:
    """What the processors compute meanwhile, by kind of process: imports are in it.

    It looks twice a second: what a process does after the last look is missed.
    """

    def __enter__(self) -> Spent:
        self._before = self._look()
        self._after: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def by_kind(self) -> dict[str, float]:
        """Return seconds of the detectors, other workers of Ray, Ray's own processes, this one."""
        kinds = dict.fromkeys(("detectors", "plan, read, publish", "Ray itself", "driver"), 0.0)
        for pid, (kind, seconds) in self._after.items():
            kinds[kind] += seconds - self._before.get(pid, ("", 0.0))[1]
        return kinds

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._after |= self._look()

    def _look(self) -> dict[int, tuple[str, float]]:
        found = {}
        for process in psutil.process_iter(["cmdline", "cpu_times"]):
            times, words = process.info["cpu_times"], " ".join(process.info["cmdline"] or ())
            kind = "driver" if process.pid == os.getpid() else process_kind(words)
            if kind and times:
                found[process.pid] = kind, float(times.user + times.system)
        return found


def process_kind(command: str) -> str:
    """Return what a process of a sweep is there for, '' for one of something else."""
    if "_DetectorActor" in command:
        return "detectors"
    if "ray::" in command and "Agent" not in command:
        return "plan, read, publish"
    return "Ray itself" if "/ray/" in command or "ray::" in command else ""


def scene_chips(scene: Path, job: Job, count: int) -> NDArray[np.uint8]:
    """Return chips of a scene, as the sweep would read them, from shards spread over it."""
    steps = scene_steps(job)
    work = steps.plan(SceneRef.of_file(str(scene))).work
    read = steps.read([work[i] for i in np.linspace(0, len(work) - 1, count).astype(int)])
    return np.stack([shard.stack()[0] for shard in read if isinstance(shard, Chips)])


def bare_rate(
    detectors: int, chips: NDArray[np.uint8], name: str, *, seconds: float = 30.0
) -> float:
    """Return chips a second of bare detectors side by side, each in its process."""
    spawn = multiprocessing.get_context("spawn")
    barrier, rates = spawn.Barrier(detectors), spawn.Queue()
    workers = [
        spawn.Process(target=bare_worker, args=(barrier, rates, chips, name, seconds))
        for _ in range(detectors)
    ]
    for worker in workers:
        worker.start()
    total = sum(rates.get() for _ in workers)
    for worker in workers:
        worker.join()
    return float(total)


def bare_worker(
    barrier: Barrier, rates: Any, chips: NDArray[np.uint8], name: str, seconds: float
) -> None:
    """Detect on chips in memory for some seconds, and put the rate into a queue."""
    detector = make_detector(name)
    detector.detect(chips[:2])
    barrier.wait()
    done, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        detector.detect(chips)
        done += len(chips)
    rates.put(done / (time.monotonic() - started))


def empty_chips(_: Path) -> list[Figure]:
    """P5: chips of which 95 % are empty, with and without skipping what cannot find anything."""
    detector = make_detector()
    chips = np.concatenate([painted_chips(1, 512), np.full((19, 4, 512, 512), 90, np.uint8)])
    chips[1:] += np.random.default_rng(0).integers(0, 12, chips[1:].shape, dtype=np.uint8)
    detector.detect(chips[:2])
    found = detector.detect(chips)
    skipping = best_of(3, lambda: detector.detect(chips))
    with patch.object(retinanet, "lowest_logit", lambda _: -np.inf):
        same = detector.detect(chips)
        plain = best_of(3, lambda: detector.detect(chips))
    equal = all(
        np.array_equal(getattr(found.boxes, name), getattr(same.boxes, name))
        for name in ("xyxy", "score", "label", "chip")
    )
    return [
        Figure("without skipping", plain, "s"),
        Figure("skipping", skipping, "s"),
        at_least("faster by", plain / skipping, "x", 1.2),
        at_least("equal results (1: to the bit)", float(equal), "", 1),
    ]


def sparse_scene(folder: Path, given: Path | None) -> list[Figure]:
    """P7: a sparse scene, planned, read, detected and published, against its chips alone.

    Both in a process that has done a small sparse scene before: imports belong to neither. They
    take turns, and the middle one of each counts.
    """
    scene = given or scattered(folder / "sparse.tif")
    detector = make_detector()
    first = scattered(folder / "first.tif", islands=2)
    alone, whole = [], []
    for turn in range(SPARSE_TURNS):
        model, job = model_and_job(folder / f"out-{turn}", "scenes.drivers=[GTiff,VRT]")
        steps = replace(scene_steps(job), make_detector=lambda _: detector)
        chips = own_chips(scene, steps)
        local.sweep([SceneRef.of_file(str(first))], steps, model)
        alone.append(sum(timed(partial(detector.detect, one))[0] for one in chips))
        results: list[SceneResult] = []
        sweep = partial(
            local.sweep,
            [SceneRef.of_file(str(scene))],
            steps,
            model,
            listener=Listener(results.append),
        )
        with patch.dict(opening._kept, clear=True):  # none of its blocks decoded beforehand
            whole.append((timed(sweep)[0], results[0]))
    middle, result = sorted(whole, key=lambda one: one[0])[SPARSE_TURNS // 2]
    return [
        Figure("windows looked at", result.windows, ""),
        Figure(f"their {sum(map(len, chips))} chips alone", median(alone), "s"),
        *(Figure(f"the scene: {stage}", spent, "s") for stage, spent in result.seconds.items()),
        at_most("the scene against its chips", middle / median(alone), "x", 1.3),
    ]


def own_chips(scene: Path, steps: Steps[Any, Any]) -> list[NDArray[np.uint8]]:
    """Return the chips of a scene's windows, those of a shard together."""
    work = steps.plan(SceneRef.of_file(str(scene))).work
    read = [steps.read([one])[0] for one in work]
    return [chips.stack() for chips in read if isinstance(chips, Chips)]


def many_scenes(folder: Path) -> list[Figure]:
    """P10: a thousand small scenes in one run, against one scene of the same pixels."""
    side = 32
    suburb = paint_suburb(side * ISLAND_PX, seed=5)
    write_scene(folder / "one.tif", suburb)
    for number in range(side * side):
        y, x = (ISLAND_PX * place for place in divmod(number, side))
        part = suburb.pixels[:, y : y + ISLAND_PX, x : x + ISLAND_PX]
        write_chip(folder / "many" / f"chip-{number:04d}.tif", part, x, y)
    del suburb
    one = command_seconds(folder, str(folder / "one.tif"))
    many = command_seconds(folder, str(folder / "many"))
    again = command_seconds(folder, str(folder / "many"), anew=False)
    return [
        Figure("one scene", one, "s"),
        Figure(f"{side * side:,} scenes", many, "s"),
        at_most("many against one", many / one, "x", 1.5),
        Figure(f"the same command again, all {side * side:,} up to date", again, "s"),
    ]


def command_seconds(folder: Path, scenes: str, *, anew: bool = True) -> float:
    """Return the wall-clock time of the whole command."""
    out = folder / "out"
    if anew:
        shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    run_command(scenes, "--model", MODEL, "--out", str(out), "--address", "local")
    return time.monotonic() - started


def run_command(*arguments: str) -> None:
    """Run `scenesweep detect` to its end, its output dropped."""
    command = [sys.executable, "-m", "scenesweep.jobs.detect", *arguments]
    silent = subprocess.DEVNULL
    subprocess.run(command, check=True, stdout=silent, stderr=silent)


def model_and_job(out: Path, *assignments: str, name: str = MODEL) -> tuple[ModelFile, Job]:
    """Return a model and a job for it."""
    model = open_model(name)
    settings = load_settings(None, assignments).resolved(model.card)
    return model, Job(model.card, model.sha256, settings, out=out)


def make_detector(name: str = MODEL) -> Detector:
    """Return a model's detector on one thread, as a sweep would make it."""
    model, job = model_and_job(Path("unused"), name=name)
    use_process(job.settings.detect)
    return load_detector(model, job.settings.detect)


def painted_chips(count: int, side: int) -> NDArray[np.uint8]:
    """Return (count, 4, side, side) chips of a painted suburb."""
    across = int(np.ceil(np.sqrt(count)))
    pixels = paint_suburb(across * side, seed=9).pixels
    grid = pixels.reshape(len(BANDS), across, side, across, side).transpose(1, 3, 0, 2, 4)
    chips: NDArray[np.uint8] = np.ascontiguousarray(grid.reshape(-1, len(BANDS), side, side))
    return chips[:count]


def scattered(path: Path, *, islands: int = ISLANDS) -> Path:
    """Write painted islands, far apart on a large raster of nodata: under 1 % is valid."""
    width, height = 34_095, 25_608
    draw = np.random.default_rng(1)
    cells = draw.permutation((height // 1024) * (width // 1024))[:islands]
    with open_for_writing(path, width, height, 0, 0, SPARSE_OK=True) as dataset:
        for chip, cell in zip(painted_chips(islands, ISLAND_PX), cells.tolist(), strict=True):
            row, column = divmod(cell, width // 1024)
            x, y = (1024 * place + int(draw.integers(0, 768)) for place in (column, row))
            window = rasterio.windows.Window(x, y, ISLAND_PX, ISLAND_PX)
            dataset.write(np.maximum(chip, 1), window=window)
    return path


def write_chip(path: Path, pixels: NDArray[np.uint8], x: int, y: int) -> None:
    """Write a small scene at its place in the large one."""
    path.parent.mkdir(exist_ok=True)
    with open_for_writing(path, pixels.shape[2], pixels.shape[1], x, y) as dataset:
        dataset.write(pixels)


def open_for_writing(path: Path, width: int, height: int, x: int, y: int, **options: Any) -> Any:
    """Open a four-band GeoTIFF; `x`, `y` are its corner in pixels of the large scene."""
    west, north = ORIGIN_M[0] + x * PX_M, ORIGIN_M[1] - y * PX_M
    dataset = rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=len(BANDS),
        dtype="uint8",
        crs=CRS,
        transform=from_origin(west, north, PX_M, PX_M),
        nodata=0,
        photometric="RGB",
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="DEFLATE",
        **options,
    )
    kinds = rasterio.enums.ColorInterp
    dataset.colorinterp = [kinds.red, kinds.green, kinds.blue, kinds.undefined]
    dataset.descriptions = BANDS
    return dataset


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of some work, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
