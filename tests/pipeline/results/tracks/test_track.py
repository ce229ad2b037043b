"""Tracks depend on what is published and not on when it came, and count clouds as no absence."""

from __future__ import annotations

import hashlib
import shutil
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from benchmarks.tables import write_coverage, write_scene
from benchmarks.track import WITHIN_M, harbour, publish, quality
from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.results import tracks
from scenesweep.pipeline.results.query import Query, find
from scenesweep.pipeline.results.tracks import Linking, Tracked, track
from scenesweep.pipeline.results.tracks.tables import (
    GROUND,
    GROUND_COLUMNS,
    OBJECT_COLUMNS,
    OBJECTS,
    SIGHTING_COLUMNS,
    SIGHTINGS,
)
from tests.nights import CLASSES, NIGHT, OTHER, publish_night

WEST, SOUTH, SIDE = 4.0, 52.0, 0.01
BOUNDS = np.array([WEST, SOUTH, WEST + SIDE, SOUTH + SIDE])
PLACES = {name: (4.001 + 0.001 * i, 52.005) for i, name in enumerate("abcdefgh")}
WEST_HALF = shapely.box(WEST, SOUTH, 4.0045, SOUTH + SIDE)  # has the places a to d


def day(number: int) -> str:
    return f"2026-11-{number:02d}"


def night(
    out: Path, number: int, ships: str, *, score: float = 0.8, ground: shapely.Polygon | None = None
) -> None:
    """Publish a date on which the ships at these places are seen; `ground` is what was observed."""
    lon, lat = np.array([PLACES[ship] for ship in ships]).reshape(-1, 2).T
    name = f"scene{number:02d}"
    write_scene(out, name, day(number), lon, lat, np.full(len(ships), score), BOUNDS)
    if ground is not None:
        write_coverage(out, name, day(number), ground)


def objects_of(out: Path) -> pd.DataFrame:
    """Return the objects by the name of their place."""
    table = gpd.read_parquet(out / "tracks" / "objects.parquet")
    place = {round(lon, 4): ship for ship, (lon, _) in PLACES.items()}
    table["ship"] = [place[round(lon, 4)] for lon in table.center_lon]
    return table.set_index("ship")


def linked(out: Path, **options: float) -> pd.DataFrame:
    list(track(out, Linking(**options)))  # type: ignore[arg-type]
    return objects_of(out)


def digests(out: Path) -> dict[str, str]:
    files = sorted(path for path in (out / "tracks").rglob("*") if path.is_file())
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_states_and_times(tmp_path: Path) -> None:
    night(tmp_path, 1, "abe")
    night(tmp_path, 2, "abce", ground=WEST_HALF)  # e is seen at the edge of what was observed
    night(tmp_path, 3, "ac", ground=WEST_HALF)
    night(tmp_path, 4, "ad", ground=WEST_HALF)
    found = linked(tmp_path, gone_after=2)
    assert found.state.to_dict() == {
        "a": "again",
        "b": "gone",
        "c": "again",
        "d": "new",
        "e": "unobserved",
    }
    assert found.times_seen.to_dict() == {"a": 4, "b": 2, "c": 2, "d": 1, "e": 2}
    assert found.times_observed.to_dict() == {"a": 4, "b": 4, "c": 3, "d": 1, "e": 2}
    assert found.observed_before.to_dict() == {"a": 0, "b": 0, "c": 1, "d": 3, "e": 0}
    assert found.missed.to_dict() == {"a": 0, "b": 2, "c": 1, "d": 0, "e": 0}
    assert found.first_seen.to_dict()["c"] == date(2026, 11, 2)
    assert found.last_seen.to_dict()["b"] == date(2026, 11, 2)


def test_what_was_gone_comes_back_as_a_new_object(tmp_path: Path) -> None:
    for number, ships in enumerate(("ab", "a", "a", "ab"), start=1):
        night(tmp_path, number, ships)
    found = linked(tmp_path, gone_after=2)
    assert sorted(found.loc["b"].state) == ["gone", "new"]
    assert linked(tmp_path, gone_after=3).loc["b"].state == "again"


def test_scores_near_the_threshold_are_no_changes(tmp_path: Path) -> None:
    """The threshold of the scenes is 0.3. A low score continues an object and starts no new one."""
    night(tmp_path, 1, "a")
    night(tmp_path, 2, "ab", score=0.32)
    night(tmp_path, 3, "ab")
    night(tmp_path, 4, "abc", score=0.32)
    found = linked(tmp_path)
    assert found.confirmed.to_dict() == {"a": True, "b": True, "c": False}
    assert found.first_seen["b"] == date(2026, 11, 2)
    assert set(new_since(tmp_path, 3)) == set()
    assert set(new_since(tmp_path, 2)) == {found.object_id["b"]}


def new_since(out: Path, number: int, looks: int = 1) -> list[str]:
    query = Query(new_since=date.fromisoformat(day(number)), looks=looks)
    names: list[str] = find(out, query)["detection_id"].to_pylist()
    return names


def test_new_since_needs_earlier_looks_at_the_place(tmp_path: Path) -> None:
    night(tmp_path, 1, "a", ground=WEST_HALF)
    night(tmp_path, 2, "abe")
    night(tmp_path, 3, "abef")
    found = linked(tmp_path).object_id
    assert set(new_since(tmp_path, 1)) == {found["b"], found["f"]}  # e: nobody had looked there
    assert set(new_since(tmp_path, 3)) == {found["f"]}
    assert set(new_since(tmp_path, 1, looks=2)) == set()
    shutil.rmtree(tmp_path / "tracks")
    with pytest.raises(UnreadableOutput, match="run scenesweep track"):
        new_since(tmp_path, 1)


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3)])
def test_bytes_do_not_depend_on_the_order_of_nights(tmp_path: Path, order: tuple[int, ...]) -> None:
    ships = {1: "abe", 2: "abce", 3: "acf", 4: "adg"}
    for number in ships:
        night(tmp_path / "once", number, ships[number], ground=WEST_HALF if number == 2 else None)
    list(track(tmp_path / "once", Linking()))
    for number in order:
        out = tmp_path / "often"
        night(out, number, ships[number], ground=WEST_HALF if number == 2 else None)
        list(track(out, Linking()))
    assert digests(tmp_path / "often") == digests(tmp_path / "once")


def test_one_more_night_links_one_night(tmp_path: Path) -> None:
    for number in (2, 3):
        night(tmp_path, number, "ab")
    assert statuses(tmp_path) == [(day(2), "done"), (day(3), "done")]
    assert statuses(tmp_path) == [(day(3), "up-to-date")]
    night(tmp_path, 5, "abc")
    assert statuses(tmp_path) == [(day(5), "done")]
    night(tmp_path, 1, "abc")  # an older night: all are linked again
    assert statuses(tmp_path) == [(day(n), "done") for n in (1, 2, 3, 5)]
    assert statuses(tmp_path, within_m=5) == [(day(n), "done") for n in (1, 2, 3, 5)]
    (tmp_path / "detections" / f"date={day(3)}" / "scene03.parquet").unlink()
    assert tracks.untracked_dates(tmp_path) == [day(3)]
    assert statuses(tmp_path, within_m=5) == [(day(n), "done") for n in (1, 2, 5)]
    assert {path.parent.name for path in (tmp_path / "tracks").rglob("sightings.parquet")} == {
        f"date={day(n)}" for n in (1, 2, 5)
    }


def statuses(out: Path, **options: float) -> list[tuple[str, str]]:
    results: list[Tracked] = list(track(out, Linking(**options)))  # type: ignore[arg-type]
    return [(result.date, result.status) for result in results]


def test_a_night_that_changed_is_linked_again(tmp_path: Path) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    assert [name for name, _ in statuses(out)] == [NIGHT, OTHER]  # not the undated scene
    assert statuses(out) == [(OTHER, "up-to-date")]
    publish_night(tmp_path, "publish.formats=[]", "merge.iou=0.1")
    assert tracks.untracked_dates(out) == [NIGHT, OTHER]
    assert len(statuses(out)) == 2


def test_an_object_of_two_scenes_has_one_sighting(tmp_path: Path) -> None:
    """`west` and `east` overlap and show the same objects, `later` shows those of `west` again."""
    out = publish_night(tmp_path, "publish.formats=[]")
    found = list(track(out, Linking(within_m=5)))
    table = gpd.read_parquet(out / "tracks" / "objects.parquet")
    assert set(table.class_name) == set(CLASSES)
    assert len(table) < 1.2 * 200
    assert found[0].sightings < len(gpd.read_parquet(out / "detections" / f"date={NIGHT}"))
    assert table.object_id.is_unique


def test_a_simulated_harbour(tmp_path: Path) -> None:
    """30 nights, 200 moored ships, 3 m of error, 10 % missed, 20 % clouded, 50 others per night."""
    ships = harbour(seed=11)
    names = publish(tmp_path, ships)
    list(track(tmp_path, Linking(within_m=WITHIN_M)))
    found = quality(tmp_path, names, ships.moored)
    assert found.one_id >= 0.95
    assert found.false_new <= 0.02
    assert found.found_new > 0.85


def test_sightings_name_their_objects(tmp_path: Path) -> None:
    night(tmp_path, 1, "ab")
    night(tmp_path, 2, "ab")
    linked(tmp_path)
    first, second = (
        gpd.read_parquet(tmp_path / "tracks" / f"date={day(n)}" / "sightings.parquet")
        for n in (1, 2)
    )
    assert (first.detection_id == first.object_id).all()
    assert first.distance_m.isna().all()
    assert sorted(second.object_id) == sorted(first.object_id)
    assert (second.distance_m < 1e-3).all()
    assert second.crs == first.crs == "OGC:CRS84"


def test_an_output_without_dates_is_one_line(tmp_path: Path) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    for folder in (NIGHT, OTHER):
        shutil.rmtree(out / "detections" / f"date={folder}")
    with pytest.raises(UnreadableOutput, match="expected scenes with a date of acquisition"):
        list(track(out, Linking()))


def test_every_column_has_a_text() -> None:
    assert list(OBJECT_COLUMNS) == OBJECTS.names
    assert list(SIGHTING_COLUMNS) == SIGHTINGS.names
    assert list(GROUND_COLUMNS) == GROUND.names
