"""Checksums of scenes: given beside them, by STAC, or recorded when first seen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.planning.plan import check_records, plan_scene
from scenesweep.pipeline.raster.checksum import Checksum, check, given_checksum, parse_multihash
from scenesweep.pipeline.scene import RasterFile, SceneRef
from tests.rasters import TRANSFORM, make_job, ref_of, write_raster
from tests.sweeps import sweep

PIXELS = np.ones((1, 64, 64), np.uint8)


@pytest.mark.parametrize(
    ("prefix", "algorithm"),
    [("1220", "sha256"), ("1340", "sha512"), ("1114", "sha1"), ("d50110", "md5")],
)
def test_multihashes_of_stac(tmp_path: Path, prefix: str, algorithm: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"some bytes")
    digest = hashlib.new(algorithm, b"some bytes").hexdigest()
    expected = parse_multihash((prefix + digest).upper())
    assert expected == Checksum(algorithm, digest)
    check(str(path), expected)
    path.write_bytes(b"some bytes!")
    with pytest.raises(UnreadableScene, match="not those of its checksum"):
        check(str(path), expected)


@pytest.mark.parametrize("text", ["", "1220", "1220" + "a" * 63, "9999" + "a" * 64, "12 20"])
def test_other_texts_are_no_multihash(text: str) -> None:
    assert parse_multihash(text) is None


def test_a_checksum_beside_the_scene_is_compared_unless_told_not_to(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Path(f"{path}.sha256").write_text(f"{digest} *s.tif\n")
    assert given_checksum(str(path)) == Checksum("sha256", digest)
    assert sweep([path], make_job(tmp_path / "a"))[0].status == "done"
    write_raster(path, PIXELS + 1)
    result = sweep([path], make_job(tmp_path / "a"))[0]
    assert result.status == "failed"
    assert "expected SHA-256" in result.reason
    job = make_job(tmp_path / "a", "scenes.checksums=ignore")
    assert sweep([path], job)[0].status == "done"


def test_bytes_that_rot_are_found_by_the_record(tmp_path: Path) -> None:
    """A flipped byte under the same size and time is rot; a file that was written anew is not."""
    path = write_raster(tmp_path / "s.tif", PIXELS)
    job = make_job(tmp_path / "out", "scenes.checksums=record")
    check_records(plan_scene(ref_of(path), job).scene, job)
    record = tmp_path / "out" / "checksums" / "s.json"
    assert str(tmp_path) not in record.read_text()
    check_records(plan_scene(ref_of(path), job).scene, job)
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UnreadableScene, match="its bytes changed since they were recorded"):
        check_records(plan_scene(ref_of(path), job).scene, job)
    os.utime(path)
    check_records(plan_scene(ref_of(path), job).scene, job)
    check_records(plan_scene(ref_of(path), job).scene, job)


def test_files_of_one_name_in_a_mosaic_have_records_of_their_own(tmp_path: Path) -> None:
    west = write_raster(tmp_path / "w" / "tile.tif", PIXELS)
    beside = TRANSFORM @ Affine.translation(PIXELS.shape[2], 0)
    east = write_raster(tmp_path / "e" / "tile.tif", PIXELS + 1, transform=beside)
    both = SceneRef((RasterFile(str(west)), RasterFile(str(east))), "both", "mosaic")
    job = make_job(tmp_path / "out", "scenes.checksums=record")
    for status in ("done", "up-to-date"):
        (result,) = sweep([both], job)
        assert result.status == status, result.reason
    assert len(list((tmp_path / "out" / "checksums").glob("both-tile-*.json"))) == 2


def test_planning_alone_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_raster(tmp_path / "scenes" / "s.tif", PIXELS)
    plan_scene(ref_of(path), make_job(Path("out"), "scenes.checksums=record"))
    plan_scene(ref_of(path), make_job(Path(), "scenes.checksums=record"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["scenes"]
