"""The order of work: no scene waits for a giant one, and none is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from scenesweep.pipeline.engine.calls import SceneInProgress
from scenesweep.pipeline.engine.queue import WorkQueue


@dataclass(frozen=True)
class Chore:
    windows: int = 16
    pixels: int = 1


def scene(number: int, pieces: int) -> SceneInProgress[str]:
    return SceneInProgress(
        f"s{number}", number, work=[Chore()] * pieces, windows_left=16 * pieces, pieces_left=pieces
    )


def taken(queue: WorkQueue[str], batches: int, windows: int = 16) -> list[object]:
    found = [queue.take(windows, parallel=1) for _ in range(batches)]
    return [piece.scene.source for pieces in found for piece in pieces]


def test_one_batch_of_four_is_of_the_earliest_scene_and_three_of_the_smallest() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for number, pieces in enumerate((100, 3, 2)):
        queue.add_pieces(scene(number, pieces))
    assert taken(queue, 9) == ["s0", "s2", "s2", "s1", "s0", "s1", "s1", "s0", "s0"]
    assert len(queue) == 96


def test_a_batch_goes_on_with_the_next_scene() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for number in range(3):
        queue.add_pieces(scene(number, 2))
    assert taken(queue, 1, windows=64) == ["s0", "s0", "s1", "s1"]


def test_pieces_to_be_tried_again_come_first_and_those_of_ended_scenes_never() -> None:
    queue: WorkQueue[str] = WorkQueue()
    scenes = [scene(number, 3) for number in range(2)]
    for one in scenes:
        queue.add_pieces(one)
    first, second = queue.take(16, 1) + queue.take(16, 1)
    queue.put_back([second, first])
    assert queue.take(32, 1) == (second, first)
    scenes[0].ended = True
    assert taken(queue, 5) == ["s1"] * 3
    assert len(queue) == 0


def test_a_giant_scene_counts_as_little_work_ahead() -> None:
    queue: WorkQueue[str] = WorkQueue(counted_each=4)
    queue.add_pieces(scene(0, 1000))
    assert queue.ahead == 4
    queue.add_pieces(scene(1, 3))
    assert queue.ahead == 7
    taken(queue, 1002)
    assert (queue.ahead, len(queue)) == (1, 1)
