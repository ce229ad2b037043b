"""The bounded loop between planning, reading, detecting and publishing, wherever these run.

It decides what a scheduler leaves to its caller: how many calls run at the same time, and which
one starts next. Its parts have files of their own: `calls` has the time limits, `queue` the
order of work, `pace` the sizes that follow from measured times, `pixels` what waits on which
node, `detectors` their number and nodes, `retries` what happens after a loss. The loop knows
nothing of rasters or boxes, nor of Ray: it passes opaque scenes and work to `Workers`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Generic

from scenesweep.pipeline.engine.calls import (
    Call,
    Calls,
    DetectCall,
    DetectorSlot,
    FinishCall,
    Piece,
    PieceCall,
    PlanCall,
    ReadCall,
    SceneInProgress,
    StartCall,
    is_suspect,
    portions_of,
    to_avoid,
)
from scenesweep.pipeline.engine.detectors import Detectors
from scenesweep.pipeline.engine.pace import CALLS_EACH, Pace
from scenesweep.pipeline.engine.pixels import Pixels, ReadPieces
from scenesweep.pipeline.engine.queue import WorkQueue
from scenesweep.pipeline.engine.retries import Losses
from scenesweep.pipeline.engine.steps import DetectorUse, Planned, Progress, R, S
from scenesweep.pipeline.engine.tally import Tally
from scenesweep.pipeline.engine.workers import (
    Cluster,
    MachineUnfit,
    PixelsLost,
    ReadOutcome,
    StepRaised,
    WorkerLost,
    Workers,
)
from scenesweep.pipeline.settings import EngineSettings

_BATCHES_QUEUED = 8  # for each detector's calls: then no further scene is planned
_PIECES_IF_UNKNOWN = 32  # in progress, if nobody knows the number of workers
_LOOK_EVERY_S = 5.0  # at the cluster, which may grow and shrink
_DOUBLED_EVERY_S = 5.0  # how soon twice as many scenes are planned at once if none has work


class Loop(Generic[S, R]):
    """The state of a run. `advance` starts what may start and handles what has ended.

    `expect_work` says that a scene is likely not up to date: then the first detector starts while
    the first scenes are planned.
    """

    def __init__(
        self,
        sources: Iterator[object],
        workers: Workers[S, R],
        tally: Tally[S, R],
        *,
        settings: EngineSettings,
        detectors: int,
        expect_work: bool = True,
    ) -> None:
        self._sources: Iterator[object] | None = sources
        self._workers, self._tally, self._settings = workers, tally, settings
        self._expect_work = expect_work
        self._calls: Calls[S, R] = Calls(workers)
        self._queue: WorkQueue[S] = WorkQueue(counted_each=CALLS_EACH * detectors)
        self._pixels: Pixels[S] = Pixels()
        self._pace = Pace(settings.batch_windows)
        self._detectors: Detectors[S, R] = Detectors(
            workers, detectors, grows=settings.detectors is None
        )
        self._cluster = Cluster()
        self._losses = Losses(settings, self._calls, self._queue, self._detectors, tally)
        self._in_pieces: list[SceneInProgress[S]] = []
        self._to_finish: set[object] | None = None
        self._began = self._look_at = time.monotonic()

    def advance(self) -> bool:
        """Do one round; return False when nothing is left to do."""
        self._look_at_cluster()
        self._try_suspect()
        self._publish_pieces()  # of a suspect scene that has nothing else to do
        self._plan()
        self._read()
        self._start_and_stop_detectors()
        self._detect()
        if not self._calls or self._is_over():
            return False
        self._handle()
        self._begin_scenes()
        self._publish_pieces()
        return True

    def drain(self) -> bool:
        """Handle what ends and start nothing.

        Return False when every shard that a detector was working on, and every scene that was
        being published, has ended. Pieces of a scene that no worker has begun are given up.
        """
        if self._to_finish is None:
            self._drop_pieces_not_begun()
            publishing = {
                call.ref for call in self._calls if isinstance(call, PieceCall | FinishCall)
            }
            self._to_finish = self._detectors.first_calls() | publishing
        self._to_finish = {call.ref for call in self._calls if call.ref in self._to_finish}
        if not self._to_finish:
            return False
        self._handle()
        return True

    def _drop_pieces_not_begun(self) -> None:
        for call in self._calls:
            if isinstance(call, PieceCall) and self._workers.busy_s(call.ref) is None:
                self._calls.remove(call)
                self._workers.cancel(call.ref)

    def _is_over(self) -> bool:
        """Say whether all scenes have ended, although a detector may still be starting."""
        return self._sources is None and self._tally.all_ended

    def progress(self) -> Progress:
        """Return how far the run is."""
        return self._tally.progress(self._detectors.up)

    def close(self) -> None:
        """Kill everything that is still in progress."""
        self._calls.cancel_tasks()
        self._detectors.stop_all()

    # Starting calls

    def _look_at_cluster(self) -> None:
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            self._cluster = self._workers.cluster()
            self._detectors.now_in(self._cluster)

    def _plan(self) -> None:
        limit = self._planned_at_once()
        enough = self._enough_planned()
        while (
            self._sources is not None
            and self._calls.count(PlanCall) < limit
            and self._queue.ahead < enough
        ):
            source = next(self._sources, None)
            if source is None:
                self._sources = None
                return
            self._begin_plan(SceneInProgress(source, number=self._tally.scenes_begun))
            self._tally.scenes_begun += 1

    def _enough_planned(self) -> int:
        """Return how many pieces may wait before no further scene is planned."""
        batches = _BATCHES_QUEUED * CALLS_EACH * self._detectors.limit
        return batches * self._pace.pieces_of_batch(self._detectors.up)

    def _planned_at_once(self) -> int:
        """Return how many scenes may be planned at the same time.

        If all scenes seem to be up to date, start with one: a new worker process takes longer to
        start than an existing one takes to check hundreds of scenes. Increase the number with
        time, for a slow network.
        """
        most = 2 * self._detectors.limit
        if self._expect_work:
            return most
        doublings = int((time.monotonic() - self._began) / _DOUBLED_EVERY_S)
        return most if doublings > most else min(most, 2**doublings)

    def _begin_plan(self, scene: SceneInProgress[S]) -> None:
        call = PlanCall(self._workers.plan(scene.source), scene)
        self._calls.add(call, self._settings.plan_timeout_s)

    def _begin_finish(self, scene: SceneInProgress[S], state: S) -> None:
        """Publish a scene, or note that its pieces are to be prepared first."""
        if scene.publish_rounds:
            self._in_pieces.append(scene)
            return
        call = FinishCall(self._workers.finish(state, scene.seconds), scene)
        self._calls.add(call, self._settings.publish_timeout_s)

    def _publish_pieces(self) -> None:
        """Start the next pieces to publish, and the end of publishing of scenes without more."""
        most = self._pieces_at_once()
        scenes, self._in_pieces = self._in_pieces, []
        for scene in scenes:
            assert scene.state is not None
            if not scene.ended:
                self._begin_pieces(scene, scene.state, most)
                if scene.suspect and not scene.publish_rounds:
                    self._queue.add_scene(scene)
                else:
                    self._begin_finish(scene, scene.state)

    def _begin_pieces(self, scene: SceneInProgress[S], state: S, most: int) -> None:
        rounds = scene.publish_rounds
        while rounds and not rounds[0] and not scene.publishing:
            rounds.pop(0)
        while rounds and rounds[0] and self._calls.count(PieceCall) < most:
            if scene.suspect and any(is_suspect(call) for call in self._calls):
                return
            name = rounds[0].pop(0)
            scene.publishing += 1
            call = PieceCall(self._workers.publish_piece(state, name), scene, name)
            self._calls.add(call, self._settings.publish_timeout_s)

    def _pieces_at_once(self) -> int:
        """Return how many pieces may be in progress: readers need half of the workers."""
        workers = self._cluster.readers or _PIECES_IF_UNKNOWN
        reading = len(self._queue) or self._calls.count(ReadCall)
        return max(1, workers // 2 if reading else workers)

    def _begin_scene(self, scene: SceneInProgress[S]) -> None:
        """Publish a scene that has a plan, or plan it again."""
        if scene.state is None:
            self._begin_plan(scene)
        else:
            self._begin_finish(scene, scene.state)

    def _begin_scenes(self) -> None:
        while (scene := self._queue.take_scene()) is not None:
            self._begin_scene(scene)

    def _read(self) -> None:
        up = self._detectors.up
        limit = self._pace.reads(up, self._detectors.queued, self._cluster)
        parallel = CALLS_EACH * self._detectors.limit
        windows = self._pace.windows_of_batch(up)
        while len(self._queue) and self._calls.count(ReadCall) + len(self._pixels) < limit:
            pieces = self._queue.take(windows, parallel)
            if not pieces:
                return
            self._begin_read(pieces)

    def _begin_read(self, pieces: tuple[Piece[S], ...]) -> None:
        near = self._pixels.place(self._detectors.on_nodes_but(to_avoid(pieces)))
        ref, pixels = self._workers.read(portions_of(pieces), near=near)
        self._pixels.read_began(near)
        self._calls.add(ReadCall(ref, pieces, pixels, near), self._settings.read_timeout_s)

    def _try_suspect(self) -> None:
        """Start the next suspect work, unless other suspect work is in progress."""
        suspect = self._queue.next_suspect()
        if suspect is None or any(is_suspect(call) for call in self._calls):
            return
        if any(piece.suspect for read in self._pixels for piece in read.pieces):
            return
        if isinstance(suspect, SceneInProgress):
            self._begin_scene(suspect)
        elif self._detectors.up:
            self._begin_read((suspect,))
        else:
            return
        self._queue.drop_suspect()

    def _start_and_stop_detectors(self) -> None:
        """Start detectors while there is work for one more; stop idle ones when no work is left."""
        waiting = self._calls_waiting()
        for call in self._detectors.start_missing(waiting):
            # No time limit: the cluster may need any time to add a node for it.
            self._calls.add(call)
        self._detectors.warn_if_none()
        if not (waiting or self._calls.count(PlanCall) or self._sources):
            self._detectors.stop_idle()

    def _calls_waiting(self) -> int:
        """Count the calls that detectors could begin, including pieces still to be read."""
        queued = self._queue.waiting(self._detectors.limit)
        waiting = len(self._pixels) + self._calls.count(ReadCall) + queued
        # A detector takes longer to start than the first scene to plan: start one now.
        if not waiting and not len(self._detectors) and self._calls.count(PlanCall):
            return 1 if self._expect_work else 0
        return waiting

    def _detect(self) -> None:
        if not len(self._pixels):
            return
        most = self._pace.calls_each(self._detectors.up)
        for node in self._pixels.nodes():
            while (read := self._pixels.first(node)) is not None:
                bad = to_avoid(read.pieces)
                slot = self._detectors.least_busy(most, node=node, alone=read.alone, avoid=bad)
                if slot is None:
                    break
                self._pixels.drop_first(node)
                self._begin_detect(slot, read)

    def _begin_detect(self, slot: DetectorSlot, read: ReadPieces[S]) -> None:
        slot.alone = read.alone
        ref = self._workers.detect(slot.handle, portions_of(read.pieces), read.pixels)
        slot.queued.append(ref)
        limit_s = self._settings.detect_timeout_s * len(slot.queued)
        self._calls.add(DetectCall(ref, read.pieces, slot), limit_s)

    # Handling calls that have ended

    def _handle(self) -> None:
        for call in self._calls.wait():
            self._ended(call)
        for call in self._calls.take_expired():
            if isinstance(call, ReadCall):
                self._pixels.read_ended(call.near)
            step = "publish" if isinstance(call, FinishCall) else call.step
            late = WorkerLost(f"it took longer than engine.{step}_timeout_s")
            self._losses.worker_lost(call, late)

    def _ended(self, call: Call[S, R]) -> None:
        if isinstance(call, ReadCall):
            self._pixels.read_ended(call.near)
        try:
            self._succeeded(call)
        except StepRaised as raised:
            self._losses.raised(call, raised.args[0])
        except MachineUnfit as unfit:
            self._losses.machine_unfit(call, str(unfit))
        except PixelsLost as lost:
            self._losses.pixels_lost(call, str(lost))
        except WorkerLost as lost:
            self._losses.worker_lost(call, lost)

    def _succeeded(self, call: Call[S, R]) -> None:
        """Fetch what a call returned, and do what follows from it.

        Raises:
            StepRaised, PixelsLost, WorkerLost: if the call returned nothing.
        """
        match call:
            case PlanCall():
                self._after_plan(call.scene, self._workers.value(call.ref))
            case ReadCall():
                self._after_read(call, self._workers.value(call.ref))
            case StartCall():
                self._workers.value(call.ref)
                self._detectors.has_started(call.detector)
            case DetectCall():
                self._after_detect(call, self._workers.value(call.ref))
            case PieceCall():
                self._workers.value(call.ref)
                call.scene.publishing -= 1
            case FinishCall():
                self._tally.end(call.scene, self._workers.value(call.ref))

    def _after_plan(self, scene: SceneInProgress[S], planned: Planned[S, R]) -> None:
        self._tally.plan_ended(scene, planned)
        if planned.result is not None:
            self._tally.end(scene, planned.result)
            return
        self._expect_work = True
        scene.shared = self._workers.share(planned.work) if planned.work else None
        self._queue.add_pieces(scene)
        if not planned.work:
            self._queue.add_scene(scene)

    def _after_read(self, call: ReadCall[S], outcome: ReadOutcome) -> None:
        pieces: list[Piece[S]] = []
        for piece, unreadable in zip(call.pieces, outcome.unreadable, strict=True):
            if unreadable is None:
                pieces.append(piece)
            else:
                self._tally.give_up(piece.scene, unreadable.reason)
        if not pieces:
            return
        for piece in pieces:
            piece.scene.add_seconds("read", outcome.seconds / len(pieces))
        self._pace.has_read(call.pieces, outcome.seconds, outcome.size)
        self._pixels.add(ReadPieces(tuple(pieces), call.pixels, call.near))

    def _after_detect(self, call: DetectCall[S], use: DetectorUse) -> None:
        self._calls.remove_detect(call, self._settings.detect_timeout_s)
        self._tally.listener.detected(use)
        self._detectors.has_detected(call.detector)
        self._pace.has_detected(call.pieces, use.computed_s)
        for piece in call.pieces:
            piece.scene.add_use(use, share=1 / len(call.pieces))
            self._tally.detected(piece)
            if piece.scene.pieces_left == 0:
                self._queue.add_scene(piece.scene)
