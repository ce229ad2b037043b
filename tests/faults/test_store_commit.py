"""A run into a bucket, killed before each put, and resumed: equal bytes, and never half a scene."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.storage import commit
from scenesweep.pipeline.storage.objects import ObjectLocation
from tests.faults.apart import FORKS, ONE, OTHER, apart
from tests.rasters import make_job, paint_squares, write_raster
from tests.stores import SLOWLY, bucket_served, contents, in_environment, of_store
from tests.sweeps import sweep

COMPANIONS = {"coverage", "geojson", "items", "quicklooks"}


@pytest.fixture(params=SLOWLY)
def out(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectLocation]:
    with bucket_served(monkeypatch, request.param) as out:
        yield out


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(300, 200, largest=10, seed=1)
    return write_raster(tmp_path / "scene.tif", pixels)


def a_job(out: ObjectLocation | Path, *settings: str) -> Job:
    return make_job(out, *settings, "publish.quicklook=true")


def run_once(scene: Path, out: ObjectLocation | Path, settings: tuple[str, ...]) -> None:
    (result,) = sweep([scene], a_job(out, *settings))
    assert result.status in ("done", "up-to-date"), result.reason


def die_at(number: int, scene: Path, out: ObjectLocation, settings: tuple[str, ...]) -> None:
    """Be killed before change `number` of the bucket: an object put, or some deleted."""
    left = iter(range(number))

    def dying(name: str) -> None:
        act = getattr(commit, name)

        def told(*arguments: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments)

        setattr(commit, name, told)

    dying("put")
    dying("delete")
    run_once(scene, out, settings)


def tell_all(changes: Any, scene: Path, out: ObjectLocation, settings: tuple[str, ...]) -> None:
    """Tell of each change what it is about, and which kinds of files are there before it."""
    for name in ("put", "delete"):
        act = getattr(commit, name)

        def told(*arguments: Any, name: str = name, act: Any = act) -> Any:
            about = arguments[1] if name == "put" else arguments[0][0] if arguments[0] else out
            changes.put((name, str(about), sorted(contents(out))))
            return act(*arguments)

        setattr(commit, name, told)
    run_once(scene, out, settings)
    changes.put(None)


def changes_of(scene: Path, out: ObjectLocation, settings: tuple[str, ...]) -> list[Any]:
    queue: Any = FORKS.Queue()
    process = FORKS.Process(
        target=in_environment, args=(of_store(), tell_all, queue, scene, out, settings)
    )
    process.start()
    told = list(iter(lambda: queue.get(timeout=60), None))
    process.join(60)
    return told


def kill_at(scene: Path, out: ObjectLocation, folder: Path, chosen: Any) -> int:
    clean = {}
    for name, settings in (("one", ONE), ("other", OTHER)):
        assert apart(in_environment, of_store(), run_once, scene, folder / name, settings) == 0
        clean[settings] = contents(folder / name)
    assert apart(in_environment, of_store(), run_once, scene, out / "count", OTHER) == 0
    count, tried = len(changes_of(scene, out / "count", ONE)), 0
    for number in chosen(count):
        for first, then in ((None, ONE), (OTHER, ONE), (OTHER, OTHER)):
            there = out / f"{number}-{tried}"
            if first:
                assert apart(in_environment, of_store(), run_once, scene, there, first) == 0
            died = apart(in_environment, of_store(), die_at, number, scene, there, ONE)
            assert died == -signal.SIGKILL or (died == 0 and first is None)
            kinds = {name.split("/")[0] for name in contents(there)}
            assert "detections" not in kinds or kinds >= COMPANIONS
            assert apart(in_environment, of_store(), run_once, scene, there, then) == 0
            assert contents(there) == clean[then], f"change {number}, {first} then {then}"
            tried += 1
    return tried


def test_a_run_into_a_bucket_killed_at_any_change_is_resumed(
    tmp_path: Path, scene: Path, out: ObjectLocation
) -> None:
    chance = random.Random(20261121)
    assert kill_at(scene, out, tmp_path, lambda n: chance.sample(range(n), 2)) == 6


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_run_into_another_cloud_is_killed_once_and_resumed(
    tmp_path: Path, scene: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_served(monkeypatch, scheme) as out:
        assert apart(in_environment, of_store(), run_once, scene, tmp_path / "one", ONE) == 0
        number = random.Random(20261129).randrange(2, 9)
        died = apart(in_environment, of_store(), die_at, number, scene, out, ONE)
        assert died == -signal.SIGKILL
        assert "checksums" not in {name.split("/")[0] for name in contents(out)}
        assert apart(in_environment, of_store(), run_once, scene, out, ONE) == 0
        assert contents(out) == contents(tmp_path / "one")


@pytest.mark.faults
def test_a_run_into_a_bucket_killed_at_each_change_is_resumed(
    tmp_path: Path, scene: Path, out: ObjectLocation
) -> None:
    tried = kill_at(scene, out, tmp_path, range)
    print(f"killed and resumed at {tried} changes")
    assert tried > 20


def test_a_table_is_put_after_its_companions_and_the_checksums_last(
    scene: Path, out: ObjectLocation
) -> None:
    changes = changes_of(scene, out, ONE)
    puts = [
        path.removeprefix(f"{out}/").split("/")[0] for name, path, _ in changes if name == "put"
    ]
    published = [kind for kind in puts if kind != ".work"]
    assert set(published[:-2]) == COMPANIONS
    assert published[-2:] == ["detections", "checksums"]
    for _, _, names in changes:
        kinds = {name.split("/")[0] for name in names}
        assert "detections" not in kinds or kinds >= COMPANIONS
        assert "checksums" not in kinds or "detections" in kinds
