"""`scenesweep query` and `compact` as a user types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import geopandas as gpd
import pytest

from scenesweep.jobs import cli
from scenesweep.jobs.query import WRITERS
from tests.nights import CLASSES, NIGHT, OTHER, night_job, objects, publish_night, publish_scene


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_night(tmp_path_factory.mktemp("night"))


def query(out: Path, *arguments: object) -> int:
    return cli.main(["query", str(out), *map(str, arguments)])


@pytest.mark.parametrize("suffix", WRITERS)
def test_results_are_written_in_the_format_of_the_suffix(
    night: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = gpd.read_parquet(night / "detections")
    wanted = frame[(frame.date == NIGHT) & (frame.class_name == "ship") & (frame.score >= 0.5)]
    path = tmp_path / f"ships{suffix}"
    given = ("--class", "ship", "--min-score", "0.5", "--date", NIGHT, "--to", path)
    assert query(night, *given) == 0
    assert f"{len(wanted):,} detections in {path}" in capsys.readouterr().out
    assert sorted(read_ids(path)) == sorted(wanted.detection_id)
    before = path.read_bytes()
    assert query(night, *given) == 2
    assert f"--to {path}: the file exists" in capsys.readouterr().err
    assert query(night, *given, "--overwrite") == 0
    assert path.read_bytes() == before
    styled = suffix in (".geojson", ".fgb", ".gpkg")
    if styled:
        path.unlink()
        assert query(night, *given) == 2  # somebody's style may be there
        assert "ships.qml: the file exists" in capsys.readouterr().err
        assert query(night, *given, "--overwrite") == 0
    assert {p.name for p in tmp_path.iterdir()} == {path.name, *(["ships.qml"] if styled else [])}


def read_ids(path: Path) -> list[str]:
    if path.suffix == ".json":
        coco = json.loads(path.read_text())
        assert {image["file_name"] for image in coco["images"]} == {"east.tif", "west.tif"}
        assert [kind["name"] for kind in coco["categories"]] == sorted(CLASSES)
        return [annotation["detection_id"] for annotation in coco["annotations"]]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [row["detection_id"] for row in csv.DictReader(file)]
    if path.suffix == ".pmtiles":
        boxes = gpd.read_file(path, layer="boxes", ZOOM_LEVEL=13)
        return sorted(set(boxes.detection_id))  # a box at the edge of tiles is in several
    frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer=0)
    assert frame.geometry.notna().all()
    assert frame.crs is not None
    ids: list[str] = frame.detection_id.tolist()
    return ids


def test_a_listing_shows_the_best_and_counts_all(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = gpd.read_parquet(night / "detections")
    assert query(night, "--limit", 3) == 0
    header, *rows, total = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["scene_id", "class_name", "score"]
    best = frame.sort_values(["score", "detection_id"], ascending=[False, True])[:3]
    assert [row.split()[0] for row in rows] == best.scene_id.tolist()
    assert [row.split()[2] for row in rows] == [f"{score:.3f}" for score in best.score]
    assert total == f"{len(frame):,} detections, 3 with the highest scores shown"
    assert query(night, "--scene", "empty") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 detections"


def test_a_class_that_is_not_there_is_told(night: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert query(night, "--class", "zeppelin", "--class", "boat\n") == 0
    classes = ", ".join(sorted(CLASSES))
    assert caplog.messages == [
        f"no class {name}; OUT has: {classes}" for name in ("boat\\n", "zeppelin")
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scene", "suburb"], ["no scene suburb; OUT has: east, empty, later, undated, west"]),
        (["--scene", "suburb", "--date", NIGHT], ["no scene suburb; OUT has: east, empty, west"]),
        (["--date", "2026-11-22"], [f"no scene on that date; OUT has: {NIGHT}, {OTHER}, unknown"]),
        (["--scene", "empty"], []),
    ],
)
def test_what_nothing_can_be_found_by_is_told(
    night: Path, arguments: list[str], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert query(night, *arguments) == 0
    assert caplog.messages == said


def test_scenes_without_a_date_have_the_one_of_their_folder(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query(night, "--date", "unknown", "--limit", 1) == 0
    assert "undated " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min-score", "50"], "--min-score: expected a score from 0 to 1, got 50"),
        (["--to", "nodir/x.gpkg"], "the folder nodir does not exist; create it first"),
        (["--bbox", "0", "5", "1", "4"], "expected W S E N in degrees, S below N, got 0 5 1 4"),
        (["--bbox", "-190", "0", "1", "4"], "--bbox: expected W S E N in degrees"),
        (["--date", "yesterday"], "--date: expected 2026-11-20, 2026-11-01/2026-11-20 or unknown"),
        (["--date", "2026-11-21/2026-11-20"], "the earlier date first"),
        (
            ["--to", "ships.shp"],
            "expected one of .geojson, .fgb, .gpkg, .pmtiles, .json, .parquet, .csv",
        ),
        (["--unique"], "run scenesweep compact"),
    ],
)
def test_wrong_usage_is_one_line(
    night: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query(night, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scenesweep query: ")
    assert said in line


def test_compact_and_ask_for_each_object_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    publish_scene(tmp_path, night_job(out, "scenes.pixel_coordinates=true"), "px", objects(9))
    assert cli.main(["compact", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["done", NIGHT],
        ["done", OTHER],
        ["done", "unknown"],
    ]
    frame = gpd.read_parquet(out / "compact" / f"date={NIGHT}" / "detections.parquet")
    marked = int(frame.duplicate_of.notna().sum())
    assert f"{len(frame):,} detections of 3 scenes, {marked:,} duplicates marked" in lines[0]
    assert "1 scenes without georeference are not included" in lines[0]
    assert query(out, "--unique", "--date", NIGHT) == 0
    assert f"{len(frame) - marked:,} detections" in capsys.readouterr().out
    assert caplog.messages == []
    publish_scene(tmp_path, night_job(out), "later", objects(9), day=OTHER)
    assert query(out, "--compacted") == 0
    assert caplog.messages == [
        f"scenes changed since they were compacted: {OTHER}; run scenesweep compact {out}"
    ]


def test_maps_leave_out_pixels_and_coco_does_not(tmp_path: Path) -> None:
    job = night_job(tmp_path / "out", "scenes.pixel_coordinates=true")
    publish_scene(tmp_path, job, "pixels", objects(9))
    publish_scene(tmp_path, night_job(tmp_path / "out"), "placed", objects(5))
    for name, count in (("a.gpkg", 5), ("a.json", 14), ("a.csv", 14)):
        assert query(tmp_path / "out", "--to", tmp_path / name) == 0
        if name == "a.json":
            assert len(json.loads((tmp_path / name).read_text())["annotations"]) == count
        else:
            assert len(read_ids(tmp_path / name)) == count


def test_iou_must_be_a_share(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compact", str(night), "--iou", "1.5"]) == 2
    assert "--iou: expected a number between 0 and 1" in capsys.readouterr().err
