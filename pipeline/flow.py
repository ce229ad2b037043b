"""The steps of a sweep: from a scene's address to its published files.

`pipeline.engine.local` runs them in a loop and `pipeline.engine.ray` on Ray; both publish the same
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, overload

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scenesweep.model.boxes import ChipDetector
from scenesweep.pipeline.detection.computing import (
    IN_THIS_PROCESS,
    Computing,
    DetectorHost,
    agreed_computing,
    develops,
)
from scenesweep.pipeline.detection.detect import Frame, detect_shards
from scenesweep.pipeline.detection.overlap import DetectorThread, Stopwatch, TimedDetector
from scenesweep.pipeline.detection.parts import (
    UselessParts,
    drop_other_work,
    drop_parts,
    staged_numbers,
    useless_parts,
    work_folder,
    write_part,
)
from scenesweep.pipeline.engine.steps import DetectorUse, Planned, Steps, Unreadable, never
from scenesweep.pipeline.errors import SceneError, UnfitMachine
from scenesweep.pipeline.geometry.grid import Layout, Shard
from scenesweep.pipeline.planning.area import meets
from scenesweep.pipeline.planning.plan import Job, Plan, check_records, plan_scene
from scenesweep.pipeline.publish.files import SceneFiles
from scenesweep.pipeline.publish.pieces import drop_pieces, make_piece, publish_scene, rounds_of
from scenesweep.pipeline.publish.scene_warnings import (
    left_out,
    nothing_looked_at,
    repairs,
    warnings_of,
)
from scenesweep.pipeline.publish.up_to_date import (
    check_replaceable,
    published_damage,
    published_files,
)
from scenesweep.pipeline.raster.chips import Source
from scenesweep.pipeline.raster.empty import without_empty_windows
from scenesweep.pipeline.raster.inspect import check_unchanged
from scenesweep.pipeline.raster.source_chips import ShardChips, read_for_detector
from scenesweep.pipeline.runs.claims import claim, in_use_result, keeps, release
from scenesweep.pipeline.runs.freshness import age_hours
from scenesweep.pipeline.runs.known import inputs_of, method_of, remember
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.location import Location, parquet

if TYPE_CHECKING:
    from scenesweep.model.files.model_file import ModelFile


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to read, detect and stage, with all that a worker needs."""

    source: Source
    frame: Frame
    shard: Shard
    folder: Location

    @property
    def windows(self) -> int:
        return len(self.shard.tiles)

    @property
    def pixels(self) -> int:
        return sum(tile.core.width * tile.core.height for tile in self.shard.tiles)


@dataclass(frozen=True, slots=True)
class ShardTasks(Sequence[ShardTask]):
    """The shards of a scene that are left to do. It creates each task on access."""

    source: Source
    frame: Frame
    layout: Layout
    folder: Location
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> ShardTask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ShardTask]: ...

    def __getitem__(self, index: int | slice) -> ShardTask | Sequence[ShardTask]:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        shard = self.layout.shard(int(self.numbers[index]))
        return ShardTask(self.source, self.frame, shard, self.folder)


@dataclass(frozen=True, slots=True)
class SceneState:
    """A planned scene during a run.

    `resumed` is the number of shards that an earlier run staged, and `left_px` the number of grid
    pixels that this run looks at. `warnings` name damage that it repairs. `inputs` is the hash of
    what the results depend on, taken before the scene was planned.
    """

    plan: Plan
    resumed: int
    left_px: int
    plan_seconds: float
    warnings: tuple[str, ...] = ()
    inputs: str = ""


def scene_steps(job: Job, host: DetectorHost = IN_THIS_PROCESS) -> Steps[SceneState, SceneResult]:
    """Return the steps of a sweep; its weights are a `ModelFile`."""
    device = host.device_of_run(job.settings.detect)
    return Steps(
        plan=partial(prepare, job=job, computing=host.computing),
        read=partial(read, as_source=partial(develops, device, job.card)),
        make_detector=partial(make_detector, job=job, host=host),
        detect=detect_and_stage,
        finish=partial(finish, job=job),
        fail=failed,
        publish_piece=partial(publish_piece, job=job),
    )


def prepare(
    ref: SceneRef, *, job: Job, computing: Computing | None = None
) -> Planned[SceneState, SceneResult]:
    """Plan a scene and leave out shards and files that are already staged or published.

    A shard that was staged counts only if it was computed like this run's shards; None accepts
    all, because there were none when this run began. A scene that cannot be swept returns a failed
    result instead of an error. A scene that another run works on is left to it.
    """
    user = claim(job.out, ref.scene_id, job.writer)
    if user:
        return Planned(None, result=in_use_result(ref, user))
    planned = _prepare(ref, job, computing)
    if planned.result is not None:
        release(job.out, ref.scene_id, job.writer)
    return planned


def _prepare(
    ref: SceneRef, job: Job, computing: Computing | None
) -> Planned[SceneState, SceneResult]:
    started = time.monotonic()
    inputs = inputs_of(ref, method_of(job))
    try:
        plan = plan_scene(ref, job)
        check_records(plan.scene, job)
        if not meets(plan.scene, plan.area_px):
            return Planned(None, result=_outside(plan, job))
        damage = published_damage(plan, job)
        if damage == {}:
            return Planned(None, result=_found_up_to_date(plan, job, inputs))
        check_replaceable(plan, job)
    except SceneError as error:
        return Planned(None, result=failed(ref, str(error)))
    if damage:  # pieces of that publication may be the same damaged files
        drop_pieces(work_folder(job.out, plan.scene.id, plan.stage_id))
    damaged = [name for name, kind in (damage or {}).items() if kind == "damaged"]
    useless = _useless_parts(plan, job, computing)
    planned = _left(plan, job, repairs(useless, damaged, computing), started)
    assert planned.state is not None
    return replace(planned, state=replace(planned.state, inputs=inputs))


def _useless_parts(plan: Plan, job: Job, computing: Computing | None) -> UselessParts:
    """Remove the parts of a scene that cannot be used, and return their numbers."""

    def is_foreign(ran_on: str) -> bool:
        kind = Computing.of(ran_on)
        if computing is None:  # a part that knows its kind is of another run, which was killed
            return bool(job.writer) and kind is not None
        return kind not in (None, computing)

    folder = work_folder(job.out, plan.scene.id, plan.stage_id)
    useless = useless_parts(folder, is_foreign)
    drop_parts(folder, useless.damaged | useless.foreign)
    return useless


def _left(
    plan: Plan, job: Job, warnings: tuple[str, ...], started: float
) -> Planned[SceneState, SceneResult]:
    """Return the shards of a scene that are not staged; planning began at `started`."""
    folder = work_folder(job.out, plan.scene.id, plan.stage_id)
    staged = staged_numbers(folder)
    numbers = plan.layout.numbers
    frame = Frame(plan.layout.grid.size, plan.source.scale, job.settings.tiling.slack)
    left = np.array([number for number in numbers if number not in staged], np.int64)
    rounds = rounds_of(plan, job)
    if len(left) and (staged or rounds):  # a killed run may have made pieces of other parts
        drop_pieces(folder)
    todo = ShardTasks(plan.source, frame, plan.layout, folder, left)
    resumed, left_px = len(numbers) - len(todo), plan.layout.core_px_of(left)
    state = SceneState(plan, resumed, left_px, time.monotonic() - started, warnings)
    windows = plan.layout.windows_each(left).tolist()
    return Planned(
        state,
        todo,
        sum(windows),
        windows_each=windows,
        pixels_each=plan.layout.core_px_each(left).tolist(),
        publish_rounds=rounds,
    )


def read(
    tasks: Sequence[ShardTask], *, as_source: Callable[[], bool] = never
) -> list[ShardChips | Unreadable]:
    """Read the pixels of shards, one item per shard; an item says why it cannot be read.

    Windows without valid pixels are left out: planning does not know all of them.
    """
    chosen = as_source()
    return [_read_one(task, chosen) for task in tasks]


def _read_one(task: ShardTask, as_source: bool) -> ShardChips | Unreadable:
    try:
        chips = read_for_detector(task.source, task.shard, as_source=as_source)
    except SceneError as error:
        return Unreadable(str(error))
    return without_empty_windows(chips, slack=task.frame.slack)


def make_detector(
    model: ModelFile, *, job: Job, host: DetectorHost = IN_THIS_PROCESS
) -> TimedDetector:
    """Load the job's detector and set up this process for it.

    Imports torch; no other step does.

    Raises:
        ModelError: when the model or the settings are wrong, on any machine.
        UnfitMachine: when only this machine cannot run it.
    """
    make = partial(_load, model, job, host)
    return DetectorThread(make) if host.own_process else TimedDetector(make())


def _load(model: ModelFile, job: Job, host: DetectorHost) -> ChipDetector:
    """Load the detector in the thread that it will compute in."""
    from scenesweep.model.inference.detector import use_process
    from scenesweep.model.inference.gpu import fault_of, limit_memory
    from scenesweep.model.inference.views import load_with_views
    from scenesweep.pipeline.detection.guard import GuardedDetector

    wanted = job.settings.detect
    settings = agreed_computing(wanted, job.card, host).within(wanted)
    try:
        if host.gpu_share:
            limit_memory(host.gpu_share)
        use_process(settings)
        inference = settings.inference(job.card)
        detector = load_with_views(model, settings, settings, inference=inference)
    except RuntimeError as error:
        if host.gpu_share and fault_of(error):
            raise UnfitMachine(f"a detector cannot start on its GPU ({error})") from error
        raise
    return GuardedDetector(detector)


def detect_and_stage(
    detector: ChipDetector | TimedDetector, tasks: Sequence[ShardTask], chips: Sequence[ShardChips]
) -> DetectorUse:
    """Detect on the chips of shards and write a part file for each shard.

    Several threads may call it at once with one `DetectorThread`.
    """
    timed = detector if isinstance(detector, TimedDetector) else TimedDetector(detector)
    watch = Stopwatch(timed)
    frames = [(c, task.frame) for c, task in zip(chips, tasks, strict=True)]
    for task, detections in zip(tasks, detect_shards(watch, frames), strict=True):
        part = replace(detections, ran_on=detector.runs_on)
        write_part(task.folder, task.shard.number, part)
    return DetectorUse(
        watch.computed_s, watch.waited_s, watch.staged_s, watch.chips, timed.peak_bytes()
    )


def finish(state: SceneState, seconds: Mapping[str, float], *, job: Job) -> SceneResult:
    """Merge and publish a scene when all its shards are staged, if its files are as they were."""
    scene = state.plan.scene
    user = keeps(job.out, scene.id, job.writer)
    if user:
        raise SceneError(f"{scene.href}: another run took it over: {user}")
    result = _publish(state, seconds, job)
    release(job.out, scene.id, job.writer)
    return result


def _publish(state: SceneState, seconds: Mapping[str, float], job: Job) -> SceneResult:
    started = time.monotonic()
    plan = state.plan
    check_unchanged(plan.scene)
    published = publish_scene(plan, job)
    files, parts = published.files, published.summary
    drop_other_work(job.out, plan.scene.id, plan.stage_id)
    skipped = plan.layout.skipped + plan.layout.windows - parts.windows
    later = _up_to_date(plan, job, files, rows=published.rows)
    later = replace(later, windows=parts.windows, skipped_windows=skipped)  # the plan knows fewer
    remember(later, state.inputs, files.paths(), job)
    return SceneResult(
        href=plan.scene.href,
        scene_id=plan.scene.id,
        status="done",
        detections=published.rows,
        megapixels=state.left_px / 1e6,
        windows=parts.windows,
        skipped_windows=skipped,
        shards=len(plan.layout.numbers),
        resumed_shards=state.resumed,
        on_nodata=parts.on_nodata,
        warnings=(
            *state.warnings,
            *warnings_of(plan, parts, job, rows=published.rows),
        ),
        ran_on=parts.ran_on,
        files={kind: str(path) for kind, path in files.by_kind().items()},
        seconds={**seconds, "plan": state.plan_seconds, "publish": time.monotonic() - started},
        score_counts=published.score_counts,
        age_hours=age_hours(plan.scene.acquired_at),
    )


def publish_piece(state: SceneState, name: str, *, job: Job) -> None:
    """Prepare a piece of a large scene for `finish`."""
    make_piece(state.plan, job, name)


def failed(ref: SceneRef, reason: str, bug: bool = False) -> SceneResult:
    """Return the result of a scene that could not be swept."""
    return SceneResult(ref.href, ref.scene_id, "failed", reason=reason, bug=bug)


def _outside(plan: Plan, job: Job) -> SceneResult:
    """Return the result of a scene that does not meet the area of interest.

    Its published files stay as they are.
    """
    return SceneResult(
        href=plan.scene.href,
        scene_id=plan.scene.id,
        status="done",
        skipped_windows=plan.layout.skipped,
        outside_area=True,
        warnings=(*plan.scene.warnings, nothing_looked_at(plan, job)),
    )


def _found_up_to_date(plan: Plan, job: Job, inputs: str) -> SceneResult:
    """Return the result of a scene whose published files are intact, and record it."""
    files = published_files(plan, job)
    if files is None:  # another program removed the manifest since it was read
        raise SceneError(f"{plan.scene.id}: its manifest is gone; rerun the same command")
    rows = pq.read_metadata(parquet(files.table)).num_rows
    result = _up_to_date(plan, job, files, rows=rows)
    remember(result, inputs, files.paths(), job)
    return result


def _up_to_date(plan: Plan, job: Job, files: SceneFiles, *, rows: int) -> SceneResult:
    return SceneResult(
        href=plan.scene.href,
        scene_id=plan.scene.id,
        status="up-to-date",
        detections=rows,
        windows=plan.layout.windows,
        skipped_windows=plan.layout.skipped,
        warnings=(*plan.scene.warnings, *left_out(plan, job, rows=rows)),
        files={kind: str(path) for kind, path in files.by_kind().items()},
    )
