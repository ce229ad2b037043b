"""Source pixels that a detector develops give the chips that readers make, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.transform import from_origin

from scenesweep.model.inference.source_windows import SourceWindows
from scenesweep.pipeline import flow
from scenesweep.pipeline.detection.computing import IN_THIS_PROCESS, Computing, develops
from scenesweep.pipeline.engine.tasks import _bytes_of
from scenesweep.pipeline.geometry.grid import Shard
from scenesweep.pipeline.planning.plan import Plan, plan_scene
from scenesweep.pipeline.raster.chips import Source, read_shard
from scenesweep.pipeline.raster.empty import without_empty_windows
from scenesweep.pipeline.raster.source_chips import read_for_detector, read_source, travels
from tests.rasters import make_card, make_job, paint_squares, ref_of, write_raster
from tests.sweeps import digests, sweep

DTYPES = ("uint8", "uint16", "int16", "float32")
GSDS = (0.3, 0.45, 0.6, 0.85)
"""The card has 0.6 m."""


def noise(dtype: str, size: tuple[int, int], bands: int = 2) -> NDArray[Any]:
    """Return noise over most of the type's range, with a hole of 0 in all bands."""
    rng = np.random.default_rng(3)
    if dtype == "float32":
        pixels = rng.uniform(-900, 3000, (bands, *size)).astype(dtype)
        pixels[0, 5, 7:9] = np.nan
    else:
        limits = np.iinfo(dtype)
        pixels = rng.integers(max(limits.min, -9000), limits.max, (bands, *size), dtype=dtype)
    pixels[:, 20:70, 30:90] = 0
    return pixels


def planned(folder: Path, dtype: str, gsd: float, **raster: Any) -> Plan:
    """Return the plan of a scene of noise, cut into shards of 2 x 2 windows of 64 px."""
    size = raster.pop("size", (150, 170))
    card = raster.pop("card", make_card(bands=[1, 2], chip_px=64))
    transform = from_origin(430_000, 3_775_000, gsd, gsd)
    path = write_raster(folder / "s.tif", noise(dtype, size), transform=transform, **raster)
    return plan_scene(ref_of(path), make_job(folder, "tiling.shard=2", card=card))


def assert_same_chips(source: Source, shard: Shard) -> SourceWindows:
    """Compare all that is taken from the chips of a shard, and return its windows."""
    wanted, found = read_shard(source, shard), read_source(source, shard)
    windows = found.windows()
    assert windows.shape == wanted.windows().shape
    np.testing.assert_array_equal(windows.chips(), wanted.stack())
    y, x = np.indices((wanted.bounds.height, wanted.bounds.width)).reshape(2, -1)
    np.testing.assert_array_equal(found.are_valid(y, x), wanted.are_valid(y, x))
    assert found.bounds == wanted.bounds
    looked_at = [without_empty_windows(chips, slack=0).shard for chips in (wanted, found)]
    assert looked_at[0] == looked_at[1]
    return windows


@pytest.mark.parametrize("nodata", [None, 0])
@pytest.mark.parametrize("gsd", GSDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chips_are_those_of_the_reader(
    tmp_path: Path, dtype: str, gsd: float, nodata: int | None
) -> None:
    plan = planned(tmp_path, dtype, gsd, nodata=nodata)
    for number in plan.layout.numbers:
        windows = assert_same_chips(plan.source, plan.layout.shard(number))
        assert windows.pixels.dtype == dtype
        assert windows.recipe.ranges is None or dtype != "uint8"


@pytest.mark.parametrize("gsd", [0.45, 0.6])
def test_windows_without_valid_pixels_are_dropped_from_source_pixels(
    tmp_path: Path, gsd: float
) -> None:
    plan = planned(tmp_path, "uint16", gsd, nodata=0)
    shard = plan.layout.shard(plan.layout.numbers[0])
    found = read_source(plan.source, shard)
    hidden = replace(found, valid=np.zeros(found.pixels.shape[1:], np.bool_))
    nothing = without_empty_windows(hidden, slack=0)
    assert nothing.shard.tiles == ()
    assert nothing.pixels.size == 0
    inside = slice(*(round(at * plan.source.scale[0]) for at in (66, 76)))  # the last core
    hidden.valid[inside, inside] = True  # type: ignore[index]
    last = without_empty_windows(hidden, slack=0).shard.tiles
    assert last == shard.tiles[-1:]


@pytest.mark.parametrize("gsd", GSDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scene_smaller_than_a_window_is_padded(tmp_path: Path, dtype: str, gsd: float) -> None:
    plan = planned(tmp_path, dtype, gsd, size=(80, 95), card=make_card(bands=[1, 2], chip_px=192))
    (number,) = plan.layout.numbers
    shard = plan.layout.shard(number)
    assert_same_chips(plan.source, shard)
    bounds, grid = shard.bounds, plan.layout.grid
    last = np.array([bounds.height - 1]), np.array([bounds.width - 1])
    assert read_source(plan.source, shard).are_valid(*last).all() == (bounds.right == grid.width)


@pytest.mark.parametrize("gsd", [0.45, 0.6])
def test_missing_bands_have_the_fill(tmp_path: Path, gsd: float) -> None:
    plan = planned(tmp_path, "uint16", gsd, nodata=0)
    two = plan.source
    assert two.stretch is not None
    ranges = (two.stretch.ranges[0], (0.0, 1.0), two.stretch.ranges[1])
    source = replace(
        two, bands=(2, 0, 1), fill=(9, 99, 199), stretch=replace(two.stretch, ranges=ranges)
    )
    shard = plan.layout.shard(plan.layout.numbers[0])
    windows = assert_same_chips(source, shard)
    assert (windows.chips()[:, 1] == 99).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(DTYPES), gsd=st.sampled_from(GSDS))
def test_any_part_of_the_windows_has_the_same_chips(
    tmp_path: Path, data: st.DataObject, dtype: str, gsd: float
) -> None:
    """Also when a batch takes some windows of a shard, with only the pixels that they need."""
    folder = tmp_path / f"{dtype}{gsd}"
    if not folder.exists():
        folder.mkdir()
        planned(folder, dtype, gsd, nodata=0)
    plan = plan_scene(ref_of(folder / "s.tif"), make_job(folder, card=make_card(bands=[1, 2])))
    whole = read_source(plan.source, plan.layout.shard(0)).windows()
    corner = st.tuples(st.integers(0, whole.block[1] - 16), st.integers(0, whole.block[2] - 24))
    corners = sorted(data.draw(st.lists(corner, min_size=1, max_size=6)))
    windows = replace(whole, corners=np.array(corners), shape=(2, 16, 24))
    chips = windows.chips()
    first = data.draw(st.integers(0, len(windows) - 1))
    last = data.draw(st.integers(first + 1, len(windows)))
    part = windows.part(first, last)
    np.testing.assert_array_equal(part.chips(), chips[first:last])
    assert part.pixels.size <= windows.pixels.size
    compact = list(part.compact())
    np.testing.assert_array_equal(
        np.concatenate([one.chips() for one in compact]), chips[first:last]
    )
    assert all(one.block_size <= len(one) * 2 * 16 * 24 for one in compact)


@pytest.mark.parametrize(
    ("dtype", "gsd", "does"),
    [
        ("uint8", 0.6, False),  # nothing to compute
        ("uint8", 1.2, True),
        ("uint16", 0.6, True),
        ("uint16", 0.31, True),  # 2 bytes for each of 3.75 source pixels
        ("uint16", 0.28, False),  # 9.2 bytes of source pixels for a byte of a chip
        ("float32", 0.6, True),
        ("float32", 0.4, False),
        ("float64", 1.2, False),
    ],
)
def test_source_pixels_travel_if_they_are_few(
    tmp_path: Path, dtype: str, gsd: float, does: bool
) -> None:
    plan = planned(tmp_path, "float32" if dtype == "float64" else dtype, gsd, nodata=0)
    source = replace(plan.source, scene=replace(plan.source.scene, dtype=dtype))
    assert travels(source, plan.layout.shard(0)) == does


def test_a_shard_that_takes_much_memory_is_made_by_its_reader(tmp_path: Path) -> None:
    card = make_card(bands=[1, 2], chip_px=2048)
    plan = planned(tmp_path, "uint16", 0.6, nodata=0, card=card)
    shard = plan.layout.shard(0)
    assert travels(plan.source, shard)
    tile = shard.tiles[0]
    wide = replace(tile, window=replace(tile.window, width=2**13, height=2**13))
    assert not travels(plan.source, replace(shard, tiles=(wide,)))


def test_bytes_of_source_pixels_are_counted(tmp_path: Path) -> None:
    """The engine asks how much room pixels that wait take."""
    plan = planned(tmp_path, "uint16", 0.45, nodata=0)
    chips = read_source(plan.source, plan.layout.shard(0))
    assert chips.valid is not None
    assert _bytes_of(chips) == chips.pixels.nbytes + chips.valid.nbytes


def test_detectors_on_a_gpu_develop() -> None:
    card = make_card()
    assert develops("cuda", card)
    assert not develops("cpu", card)
    assert not develops("auto", card)  # the tests' machines have no GPU
    other = card.architecture.model_copy(update={"kind": "fcos"})
    assert not develops("cuda", card.model_copy(update={"architecture": other}))


@pytest.mark.parametrize(
    ("computing", "setting", "device"),
    [
        (None, "auto", "auto"),
        (None, "cuda", "cuda"),
        (Computing("cuda", "bfloat16"), "auto", "cuda"),
    ],
)
def test_the_device_of_a_run_is_known_before_its_reads(
    tmp_path: Path, computing: Computing | None, setting: str, device: str
) -> None:
    host = replace(IN_THIS_PROCESS, computing=computing)
    job = make_job(tmp_path, f"detect.device={setting}")
    assert host.device_of_run(job.settings.detect) == device


@pytest.mark.parametrize(
    ("dtype", "gsd", "nodata"), [("uint16", 0.6, 0), ("uint8", 1.2, 0), ("int16", 0.45, None)]
)
def test_a_scene_publishes_the_same_bytes_in_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, gsd: float, nodata: int | None
) -> None:
    pixels, _ = paint_squares(230, 190, largest=12, seed=5)
    values = pixels.astype(dtype) * (1 if dtype == "uint8" else 40)
    values[:, :50, :60] = 0
    transform = from_origin(430_000, 3_775_000, gsd, gsd)
    scene = write_raster(tmp_path / "scene.tif", values, nodata=nodata, transform=transform)
    kinds = []

    def noted(*args: Any, **named: Any) -> Any:
        chips = read_for_detector(*args, **named)
        kinds.append(type(chips).__name__)
        return chips

    monkeypatch.setattr(flow, "read_for_detector", noted)
    (by_reader,) = sweep([scene], make_job(tmp_path / "reader"))
    monkeypatch.setattr(flow, "develops", lambda device, card: True)
    (by_detector,) = sweep([scene], make_job(tmp_path / "detector"))
    assert by_reader.status == by_detector.status == "done", by_detector.reason
    assert set(kinds) == {"Chips", "SourceChips"}
    assert by_detector.detections == by_reader.detections > 10
    assert digests(tmp_path / "reader") == digests(tmp_path / "detector")
