"""Settings and the naming of scenes: what users type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shapely import bounds
from shapely.geometry import box, mapping

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.planning.area import read_area
from scenesweep.pipeline.settings import ResolvedTiling, Settings, fingerprint, load_settings
from scenesweep.pipeline.sources import check_ids, expand
from tests.rasters import make_card, ref_of


def test_assignments_go_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "night.yaml"
    config.write_text("tiling: {chip: 256, margin: 32}\npublish: {formats: [gpkg]}\n")
    settings = load_settings(config, ["tiling.margin=64", "read.bands=[3, nir]"])
    assert (settings.tiling.chip, settings.tiling.margin) == (256, 64)
    assert settings.publish.formats == ("gpkg",)
    assert settings.read.bands == (3, "nir")
    assert load_settings(None, []).tiling.chip is None


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("tiling.margins=3", r"tiling\.margins: there is no such name \(is it margin\?\)"),
        ("merge.xyz=3", r"merge\.xyz: there is no such name \(there are .*iou"),
        ("tiling.margin=wide", r"tiling\.margin: expected a whole number, got 'wide'"),
        ("tiling.margin", "expected the form a.b=value"),
        ("tiling=3", "tiling: expected a group of settings, got 3"),
        ("detect.score_threshold=high", "detect.score_threshold: expected a number, got 'high'"),
        (
            "publish.formats=[shp]",
            "expected one of geojson, flatgeobuf, gpkg, pmtiles, coco, got 'shp'",
        ),
        ("publish.formats=gpkg", "publish.formats: expected a list, got 'gpkg'"),
        ("read.bands=[[1]]", r"read.bands.0: expected a text.* or expected a whole number"),
        ("read.source_range=[1]", r"read.source_range.1: is missing"),
        ("scenes.acquired_at=soon", "expected a time such as 2026-06-21T12:00:00Z, got 'soon'"),
        ("scenes.pixel_coordinates=perhaps", "expected true or false, got 'perhaps'"),
        ("merge.iou=https://u:p@h/s", r"expected a number, got an address$"),
        ("merge.iou=[", "is not a YAML value"),
        ("merge.iou=2", r"merge\.iou: expected at most 1, got 2"),
    ],
)
def test_a_wrong_setting_is_named(assignment: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_settings(None, [assignment])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", None])
def test_a_wrong_file_is_named(tmp_path: Path, text: str | None) -> None:
    config = tmp_path / "night.yaml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(UsageError, match=r"night\.yaml"):
        load_settings(config)


def test_resolved_settings_hold_the_cards_values() -> None:
    settings = load_settings(None, ["detect.score_threshold=0.4"]).resolved(make_card())
    assert (settings.tiling.chip, settings.tiling.margin) == (64, 16)
    assert (settings.detect.score_threshold, settings.detect.nms_iou) == (0.4, 0.5)
    assert settings.merge.iou == 0.5
    assert settings.read.bands == (1,)
    with pytest.raises(UsageError, match=r"read\.bands: the model takes 1 bands, got 2"):
        load_settings(None, ["read.bands=[1, 2]"]).resolved(make_card())
    with pytest.raises(UsageError, match="chip must be a multiple of 8 and more than twice"):
        load_settings(None, ["tiling.margin=32"]).resolved(make_card())


def test_resolved_settings_have_the_keys_of_settings_and_nothing_undecided() -> None:
    tree, resolved = Settings().model_dump(), Settings().resolved(make_card()).model_dump()
    assert [(group, *values) for group, values in tree.items()] == [
        (group, *values) for group, values in resolved.items()
    ]
    undecided = {f"{g}.{k}" for g, values in resolved.items() for k in values if values[k] is None}
    assert undecided == {
        "mask.preset",
        "scenes.acquired_at",
        "tiling.shard",
        "read.source_range",
        "detect.batch",
        "engine.detectors",
        "engine.batch_windows",
        "engine.price_per_gpu_hour",
        "engine.price_per_core_hour",
        "engine.stop_grace_s",
    }
    with pytest.raises(ValueError, match="chip"):
        ResolvedTiling.model_validate(Settings().tiling.model_dump())


def test_fingerprints_follow_values_alone() -> None:
    assert fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_scenes_are_files_folders_globs_and_lists(tmp_path: Path) -> None:
    for name in ("a.tif", "b.TIFF", "c.jp2", "d.vrt", "e.txt", "sub/f.tif", ".hidden.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*named: str, drivers: tuple[str, ...] = ("GTiff", "JP2OpenJPEG")) -> list[str]:
        return [Path(p).name for p in expand(named, drivers)]

    folder = str(tmp_path)
    assert names(folder) == ["a.tif", "b.TIFF", "c.jp2", "f.tif"]
    assert names(folder, drivers=("VRT",)) == ["d.vrt"]
    assert names(f"{folder}/*.t*") == ["a.tif", "e.txt"]
    listing = tmp_path / "list.txt"
    listing.write_text(f"# tonight\n{folder}/a.tif\n\n{folder}/sub\n{folder}/a.tif\n")
    assert names(f"@{listing}", f"{folder}/a.tif") == ["a.tif", "f.tif"]
    assert expand(["s3://bucket/x.tif", "gone.tif"], ()) == ["s3://bucket/x.tif", "gone.tif"]
    for wrong in ("@no-such-list.txt", f"{folder}/*.png"):
        with pytest.raises(UsageError):
            expand([wrong], ("GTiff",))
    with pytest.raises(UsageError, match="expected rasters"):
        expand([str(tmp_path / "sub")], ("PNG",))


def test_scenes_of_one_name_are_refused() -> None:
    check_ids([ref_of("a/x.tif"), ref_of("a/y.tif")])
    with pytest.raises(UsageError, match=r"a/x\.tif and b/x\.tif would both be scene 'x'"):
        check_ids([ref_of("a/x.tif"), ref_of("b/x.tif")])


def test_areas_of_interest_are_polygons_with_a_crs(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(json.dumps(mapping(box(5, 50, 6, 51))))
    assert bounds(read_area(path)).tolist() == [5, 50, 6, 51]
    path.write_text(json.dumps({"type": "Point", "coordinates": [5, 50]}))
    with pytest.raises(UsageError, match="found no area"):
        read_area(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_area(tmp_path / "none.geojson")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch sprung']",
        "scenes: !!python/name:os.system",
        "a: " + "[" * 1500,
        "scenes: {acquired_at: 2020-99-99}",
        "scenes: {hook: os.system}",
        "\x00",
        "? [a]\n: b",
    ],
)
def test_settings_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(text)
    with pytest.raises(UsageError):
        load_settings(Path("s.yaml"))
    with pytest.raises(UsageError):
        load_settings(None, [f"scenes={text}"])
    assert not Path("sprung").exists()


def test_thresholds_of_classes_come_from_the_card_unless_the_run_has_others() -> None:
    card = make_card(
        classes=("a", "b"), inference={"score_threshold": 0.2}, class_thresholds={"b": 0.5}
    )

    def least(*assignments: str) -> dict[str, float]:
        return load_settings(None, assignments).resolved(card).merge.min_scores

    assert least() == {"b": 0.5}
    assert least("merge.min_scores={a: 0.3}") == {"a": 0.3}
    assert least("detect.score_threshold=0.1") == {}
    for wrong in ({"c": 0.5}, {"b": 0.1}, {"b": 1.0}):
        with pytest.raises(ValueError, match="class_thresholds: expected names of classes"):
            make_card(
                classes=("a", "b"), inference={"score_threshold": 0.2}, class_thresholds=wrong
            )
