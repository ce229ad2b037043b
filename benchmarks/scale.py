"""P8 and P9: memory as the scene grows, and rate as detectors are added, with stub detectors."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import rasterio
import ray
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window

from benchmarks.figures import Figure, at_least, at_most, tell
from benchmarks.repeated_tiles import ACROSS, TILE_PX, repeat_tiles
from scenesweep.model.boxes import Boxes, DetectorOutput
from scenesweep.model.card import ModelCard
from scenesweep.pipeline.detection.computing import DetectorHost
from scenesweep.pipeline.engine import ray as engine
from scenesweep.pipeline.engine.resources import Resources
from scenesweep.pipeline.engine.steps import Listener, Planned, Progress, Steps
from scenesweep.pipeline.flow import scene_steps
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import EngineSettings, load_settings

DETECTORS = (1, 2, 4, 8, 32, 64)
GIGAPIXELS = (0.1, 10.0, 100.0)
WINDOW_S, WINDOWS, SHARDS_EACH = 0.05, 16, 24
READER_CPUS = 2
"""For all readers together: there are no more to be had, whatever Ray is told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", help="memory, detectors (default both)")
    parser.add_argument("--gigapixels", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gigapixels:
        print(json.dumps(memory_of_one(arguments.gigapixels)))
        return
    every = {"memory": memory, "detectors": detectors}
    unknown = [name for name in arguments.what if name not in every]
    if unknown:
        parser.error(f"expected some of {', '.join(every)}, got {', '.join(unknown)}")
    for name in arguments.what or every:
        tell(f"scale-{name}", every[name]())


def memory() -> list[Figure]:
    """P8: peaks of the driver and of the largest worker, each size in a driver of its own."""
    figures, drivers = [], []
    for size in GIGAPIXELS:
        command = [sys.executable, "-m", "benchmarks.scale", "--gigapixels", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks = json.loads(done.stdout.strip().splitlines()[-1])
        drivers.append(peaks["driver"])
        figures += [
            at_most(f"{size:g} gigapixels: driver's peak", peaks["driver"], "MiB", 1024),
            Figure(f"{size:g} gigapixels: largest worker's peak", peaks["worker"], "MiB"),
            Figure(f"{size:g} gigapixels: whole run, stub detector", peaks["seconds"], "s"),
        ]
    growth = drivers[-1] / drivers[0]
    return [*figures, at_most("driver, largest scene against smallest", growth, "x", 1.1)]


def memory_of_one(gigapixels: float) -> dict[str, float]:
    """Sweep a scene of repeated tiles and return peaks of memory in MiB, and the seconds."""
    side = int(np.sqrt(gigapixels * 1e9))
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.tif"
        profile: dict[str, Any] = {"driver": "GTiff", "count": 1, "dtype": "uint8", "tiled": True}
        place = from_origin(430_000, 3_775_000, 0.6, 0.6)
        with rasterio.open(
            scene,
            "w",
            width=side,
            height=side,
            crs="EPSG:32611",
            transform=place,
            blockxsize=512,
            blockysize=512,
            BIGTIFF="YES",
            SPARSE_OK=True,
            **profile,
        ) as dataset:
            side_px = ACROSS * TILE_PX
            pixels = np.random.default_rng(1).integers(1, 255, (1, side_px, side_px), np.uint8)
            dataset.write(pixels, window=Window(0, 0, side_px, side_px))
        repeat_tiles(scene, -(-side // TILE_PX))
        card = ModelCard(
            name="stub", classes=("object",), bands=(1,), gsd_m=0.6, chip_px=1024, margin_px=64
        )
        chosen = ["publish.quicklook=false", "engine.detectors=2"]
        settings = load_settings(None, chosen).resolved(card)
        job = Job(card, "0" * 64, settings, out=Path(folder))
        steps = replace(
            scene_steps(job, DetectorHost(own_process=True)), make_detector=lambda _: Corner()
        )
        results: list[SceneResult] = []
        with engine.ray_session("local"), Peaks() as peaks:
            started = time.monotonic()
            engine.sweep(
                *([SceneRef.of_file(str(scene))], steps, None, settings.engine),
                engine.resources_for(settings.engine, threads=1, device="cpu"),
                listener=Listener(results.append),
            )
            seconds = time.monotonic() - started
        (result,) = results
        assert result.status == "done", result.reason
        assert result.detections == result.windows > 0
    return {"driver": peaks.driver, "worker": peaks.worker, "seconds": seconds}


class Corner:
    """Reports one box in the middle of every chip: a detector that costs nothing."""

    runs_on = ""

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        count, middle = len(chips), chips.shape[-1] / 2
        box = np.array([middle - 5, middle - 5, middle + 5, middle + 5], np.float32)
        return DetectorOutput(
            Boxes(
                np.tile(box, (count, 1)),
                np.full(count, 0.9, np.float32),
                np.zeros(count, np.int16),
                np.arange(count, dtype=np.int32),
            ),
            np.zeros(count, np.bool_),
        )


class Peaks:
    """Peaks of resident memory, of this process and of Ray's workers.

    Linux keeps them (VmHWM); pages of the object store that a worker has read are in them.
    """

    def __enter__(self) -> Peaks:
        self.driver = self.worker = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.driver = peak_mib(Path("/proc/self"))
            workers = (path for path in Path("/proc").glob("[0-9]*") if is_worker(path))
            self.worker = max(self.worker, *map(peak_mib, workers), 0.0)


def is_worker(process: Path) -> bool:
    """Say whether a process is a worker of Ray that has something to do."""
    try:
        return (process / "cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def peak_mib(process: Path) -> float:
    """Return a process's peak of resident memory; 0 when it is gone."""
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def detectors() -> list[Figure]:
    """P9: shards a second with ever more detectors that sleep like a GPU."""
    figures, rates = [], {}
    for count in DETECTORS:
        rates[count], first, all_up = stub_rate(count)
        figures.append(Figure(f"{count} detectors", rates[count] * WINDOWS, "windows/s"))
        if count > 1:
            share = rates[count] / (count * rates[1])
            figures.append(at_least(f"{count} detectors: share of linear", share, "", 0.9))
        figures.append(Figure(f"{count} detectors: start to the first detection", first, "s"))
        figures.append(Figure(f"{count} detectors: start until all are up", all_up, "s"))
    return figures


def stub_rate(count: int) -> tuple[float, float, float]:
    """Return shards a second once all detectors are up, and seconds to the first and to all.

    Those that are up wait for the others, or the first ones would do all the work. The first
    quarter of it does not count: readers come up in it.
    """
    up = Path(tempfile.mkdtemp())

    def arrive(_: None) -> None:
        (up / str(uuid4())).touch()

    def sleep(_: None, work: Sequence[Any], __: Sequence[Any]) -> None:
        while len(list(up.iterdir())) < count:
            time.sleep(0.2)
        time.sleep(WINDOW_S * sum(one.windows for one in work))

    ray.init(num_cpus=count + READER_CPUS, include_dashboard=False, log_to_driver=False)
    try:
        steps = Steps(
            plan=lambda source: Planned(source, Chores(count * SHARDS_EACH), 0),
            read=lambda work: [0] * len(work),
            make_detector=arrive,
            detect=sleep,
            finish=lambda state, _: state,
            fail=lambda source, _, __: source,
        )
        moments: list[tuple[float, Progress]] = []
        started = time.monotonic()
        engine.sweep(
            *(["stub"], steps, None, EngineSettings(detectors=count)),
            Resources(count, 1, 0, 0.25),
            listener=Listener(
                progress=lambda progress: moments.append((time.monotonic(), progress))
            ),
        )
    finally:
        ray.shutdown()
    shutil.rmtree(up)
    first = next(at for at, progress in moments if progress.detectors) - started + WINDOW_S
    all_up = next(at for at, progress in moments if progress.detectors == count) - started
    every = count * SHARDS_EACH * WINDOWS
    steady = [
        (at, p.windows_done)
        for at, p in moments
        if p.detectors == count and every / 4 <= p.windows_done <= every - count * WINDOWS
    ]
    (t0, w0), (t1, w1) = steady[0], steady[-1]
    return (w1 - w0) / WINDOWS / (t1 - t0), first, all_up


@dataclass(frozen=True, slots=True)
class Chore:
    """A shard that is nothing but its size."""

    windows: int = WINDOWS
    pixels: int = WINDOWS * 1024 * 1024


class Chores(list[Chore]):
    """So many of them."""

    def __init__(self, count: int) -> None:
        super().__init__([Chore()] * count)


if __name__ == "__main__":
    main()
