"""`scenesweep count` as a user types it."""

from __future__ import annotations

import shutil
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from scenesweep.jobs import cli
from scenesweep.jobs.count import WRITERS
from scenesweep.pipeline.results.count import SCHEMA
from tests.nights import CLASSES, NIGHT, OTHER, night_job, objects, publish_night, publish_scene
from tests.polygons import grid, write_world


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_night(tmp_path_factory.mktemp("night"), "publish.formats=[]")


@pytest.fixture(scope="module")
def districts(night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("districts") / "districts.gpkg"
    west, south, east, north = gpd.read_parquet(night / "detections").total_bounds.tolist()
    frame = grid((west, south, east, north), 3, 2)
    frame["Date"] = "2020-01-01"
    frame.to_file(path)
    return path


def count(out: Path, *arguments: object) -> int:
    return cli.main(["count", str(out), *map(str, arguments)])


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path)
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_are_written_in_the_format_of_the_suffix(
    night: Path, districts: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"counts{suffix}"
    given = ("--by", districts, "--by-class", "--date", NIGHT, "--to", path)
    assert count(night, *given) == 0
    table = read(path)
    assert [name for name in table if name in SCHEMA.names] == SCHEMA.names
    assert set(table.date) == {NIGHT}
    assert set(table.Date_input) == {"2020-01-01"}  # the user's own column of that name
    assert len(table) == 6 * len(CLASSES)
    said = capsys.readouterr().out
    assert said == f"{len(table):,} rows, {table.detections.sum():,} detections in {path}\n"
    assert isinstance(table, gpd.GeoDataFrame) == (suffix != ".csv")
    assert count(night, *given) == 2
    assert f"--to {path}: the file exists" in capsys.readouterr().err
    assert count(night, *given, "--overwrite") == 0


def test_the_counts_can_be_counted_in_again(night: Path, districts: Path, tmp_path: Path) -> None:
    """Their file has the columns of an earlier count, another name of the geometry, and a bbox."""
    frame = gpd.read_file(districts).rename_geometry("shape")
    frame.to_parquet(tmp_path / "a.parquet", write_covering_bbox=True)
    given = ("--date", NIGHT, "--to")
    for source, target in (("a.parquet", "b.parquet"), ("b.parquet", "c.gpkg")):
        assert count(night, "--by", tmp_path / source, *given, tmp_path / target) == 0
    first, again = read(tmp_path / "b.parquet"), read(tmp_path / "c.gpkg")
    assert first.detections.tolist() == again.detections.tolist()
    assert {"Date_input", "date_input_input"} <= set(again)
    assert again.detections_input.tolist() == first.detections.tolist()


def test_a_listing_shows_the_fullest(
    night: Path, districts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count(night, "--by", districts, "--limit", 2) == 0
    header, *rows, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "date", "detections", "observed_km2", "per_km2"]
    assert len(rows) == 2
    numbers = [int(row.split()[-3]) for row in rows]
    assert numbers == sorted(numbers, reverse=True)
    assert total.startswith("18 rows, ")
    assert total.endswith("; 2 rows with the most detections shown")


def test_h3_cells_have_their_id(night: Path, tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    assert count(night, "--h3", 12, "--date", f"{NIGHT}/{OTHER}", "--sum-dates", "--to", path) == 0
    table = gpd.read_parquet(path)
    assert table.h3.is_unique
    assert table.h3.str.fullmatch("8c[0-9a-f]{13}").all()
    assert set(table.date) == {f"{NIGHT}/{OTHER}"}


def test_what_the_numbers_lack_is_told(
    tmp_path: Path, districts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = publish_night(tmp_path, "publish.formats=[]")
    job = night_job(out, "scenes.pixel_coordinates=true", "publish.formats=[]")
    publish_scene(tmp_path, job, "pixels", objects(9))
    shutil.rmtree(out / "coverage")
    assert count(out, "--by", districts, "--date", NIGHT) == 0
    assert caplog.messages == [
        "1 scenes without georeference are not counted",
        "3 scenes have no coverage file: observed_km2 and per_km2 of their dates are null",
        "detections have no probability: `detections` counts those above the score "
        "threshold, without an interval (see scenesweep evaluate --calibrate)",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--h3", "16"], "--h3: expected a resolution from 0 to 15, got 16"),
        (["--h3", "5", "--min-score", "7"], "--min-score: expected a score from 0 to 1, got 7"),
        (["--h3", "5", "--date", "soon"], "--date: expected 2026-11-20"),
        (
            ["--h3", "5", "--date", "2026-11-25"],
            f"--date 2026-11-25: no scene on that date; OUT has: {NIGHT}, {OTHER}, unknown",
        ),
        (["--h3", "5", "--to", "a.shp"], "expected one of .parquet, .gpkg, .csv, got '.shp'"),
        (["--h3", "5", "--to", "none/a.csv"], "the folder none does not exist"),
        (["--by", "none.gpkg"], "--by none.gpkg: cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(
    night: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count(night, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scenesweep count: ")
    assert said in line


def test_files_that_are_no_polygons_are_one_line(
    night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpd.GeoSeries([shapely.Point(0, 0)], crs="EPSG:4326").to_file(tmp_path / "points.geojson")
    gpd.GeoSeries([shapely.box(0, 0, 1, 1)]).to_frame("geometry").to_parquet(
        tmp_path / "nowhere.parquet"
    )
    for name, said in (("points.geojson", "found a Point"), ("nowhere.parquet", "with a CRS")):
        assert count(night, "--by", tmp_path / name) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_an_empty_output_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path / "world.geojson")
    (tmp_path / "out").mkdir()
    assert count(tmp_path / "out", "--by", world) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected tables in detections" in line


def test_one_of_polygons_and_cells_is_asked_for(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        count(night)
    assert "one of the arguments --by --h3 is required" in capsys.readouterr().err
