"""Every step of every commit, killed and resumed; and what a power cut may leave of it.

The steps are those of `storage.commit`: the file is begun, synced, renamed, its folder synced.
A test replaces them by steps that count, tell or kill, in a process of its own.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

from scenesweep.pipeline.runs.report import Run, write_report
from scenesweep.pipeline.storage import commit
from scenesweep.pipeline.storage.commit import atomic_write
from tests.faults.apart import FORKS, ONE, OTHER, apart
from tests.faults.invariants import check_output
from tests.rasters import make_job, paint_squares, write_raster
from tests.sweeps import digests, sweep

STEPS = ("_temporary_path", "_sync_file", "_rename", "_sync_folder")


FORKS.set_forkserver_preload([__name__])


Step = tuple[str, str, str]
"""The name of a step, the file that it is about, and where it is renamed to, if it is."""


def run_once(scene: Path, out: Path, settings: tuple[str, ...]) -> None:
    """Sweep one scene and write the run's report."""
    job = make_job(out, *settings, "publish.quicklook=true")
    (result,) = sweep([scene], job)
    assert result.status in ("done", "up-to-date"), result.reason
    write_report(Run("run", datetime(2026, 1, 1, tzinfo=UTC), 1.0, (result,)), job)


def before_each_step(tell: Callable[..., None]) -> None:
    """Have `tell` called before each step of a commit, with its name and its arguments."""

    def telling(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def told(path: Path, *more: Any) -> Any:
            tell(name, path, *more)
            return step(path, *more)

        return told

    for name in STEPS:
        setattr(commit, name, telling(name, getattr(commit, name)))


def die_at(number: int, scene: Path, out: Path, settings: tuple[str, ...]) -> None:
    """Sweep until step `number`, and be killed there; a file about to be synced is cut in half."""
    left = iter(range(number))

    def tell(name: str, path: Path, *_: Any) -> None:
        if next(left, None) is None:
            if name == "_sync_file":
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_step(tell)
    run_once(scene, out, settings)


def tell_all(steps: Any, scene: Path, out: Path, settings: tuple[str, ...]) -> None:
    def tell(name: str, path: Path, *more: Any) -> None:
        steps.put((name, str(path), str(more[0]) if name == "_rename" else ""))

    before_each_step(tell)
    run_once(scene, out, settings)
    steps.put(None)


def steps_of(scene: Path, out: Path, settings: tuple[str, ...]) -> list[Step]:
    queue: Any = FORKS.Queue()
    process = FORKS.Process(target=tell_all, args=(queue, scene, out, settings))
    process.start()
    steps = list(iter(queue.get, None))
    process.join(60)
    return steps


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(300, 200, largest=10, seed=1)
    return write_raster(tmp_path / "scene.tif", pixels)


def kill_at_steps(scene: Path, folder: Path, chosen: Callable[[int], Iterator[int]]) -> int:
    """Kill a run over another's output at steps of its commits; go on with it, or with the other.

    Returns at how many steps.
    """
    clean = {}
    for name, settings in (("one", ONE), ("other", OTHER)):
        assert apart(run_once, scene, folder / name, settings) == 0
        clean[settings] = digests(folder / name)
    assert apart(run_once, scene, folder / "count", OTHER) == 0
    count = len(steps_of(scene, folder / "count", ONE))
    tried = 0
    for number in chosen(count):
        for first, then in ((None, ONE), (OTHER, ONE), (OTHER, OTHER)):
            out = folder / f"out{number}-{tried}"
            if first:
                assert apart(run_once, scene, out, first) == 0
            assert apart(die_at, number, scene, out, ONE) == -signal.SIGKILL
            assert apart(run_once, scene, out, then) == 0
            assert digests(out) == clean[then], f"step {number}, {first} then {then}"
            check_output([str(scene)], make_job(out, *then, "publish.quicklook=true"))
            tried += 1
    return tried


def test_a_commit_killed_at_any_step_is_resumed(tmp_path: Path, scene: Path) -> None:
    """Four steps, other ones each day of the year would be as good: the long test has all."""
    chance = random.Random(20261121)
    assert kill_at_steps(scene, tmp_path, lambda n: iter(chance.sample(range(n), 4))) == 12


@pytest.mark.faults
def test_a_commit_killed_at_each_step_is_resumed(tmp_path: Path, scene: Path) -> None:
    tried = kill_at_steps(scene, tmp_path, lambda n: iter(range(n)))
    print(f"killed and resumed at {tried} steps")
    assert tried > 60


def test_a_power_cut_leaves_no_table_without_its_companions(tmp_path: Path, scene: Path) -> None:
    """What is renamed may be lost until its folder is synced, in any combination."""
    out = tmp_path / "out"
    steps = steps_of(scene, out, ONE)
    kinds = ("coverage", "geojson", "quicklooks", "detections", "checksums")
    of_kind = {kind: next(p for k, p in renamed(steps, out) if k == kind) for kind in kinds}
    synced: set[str] = set()
    waiting: list[str] = []
    safe: set[str] = set()
    states = 0
    for name, path, _ in steps:
        if name == "_sync_file":
            synced.add(path)
        if name == "_rename":
            assert path in synced  # what a reader may see is whole
            kind = next((k for k, aside in of_kind.items() if aside == path), None)
            waiting += [kind] if kind else []
        for lasting in subsets(waiting):
            there = safe | set(lasting)
            states += 1
            assert "detections" not in there or {"coverage", "geojson", "quicklooks"} <= there
            assert "checksums" not in there or there == set(kinds)
        if name == "_sync_folder":
            arrived = {kind for kind in waiting if f"/{kind}" in path}
            safe |= arrived
            waiting = [kind for kind in waiting if kind not in arrived]
    assert safe == set(kinds)
    assert states > 30


def renamed(steps: list[Step], out: Path) -> list[tuple[str, str]]:
    """Return the files that are renamed in place, by the folder of OUT that they go to."""
    return [
        (Path(to).relative_to(out).parts[0], path)
        for name, path, to in steps
        if name == "_rename" and "/aside/" in path and not to.endswith(".qml")
    ]


def subsets(kinds: list[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(kinds, n) for n in range(len(kinds) + 1))


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path, tmp_path / "aside") as aside:
            aside.write_text("half of the ne")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write()
    assert path.read_text() == "old"
    assert list((tmp_path / "aside").iterdir()) == []
