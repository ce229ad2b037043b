"""A flipped bit in anything of ours is found: by `verify`, and by the next run, which mends it."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from scenesweep.jobs import cli
from scenesweep.pipeline.detection.parts import damaged_numbers, staged_numbers
from scenesweep.pipeline.errors import Exit
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.results.verify import verify
from tests.faults.invariants import check_output
from tests.rasters import make_job, paint_squares, write_raster
from tests.sweeps import digests, sweep


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path / "out", "publish.quicklook=true", "tiling.shard=2")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(220, 200, largest=10, seed=1)
    return write_raster(tmp_path / "scene.tif", pixels)


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file: number `at`, around its length."""
    content = bytearray(path.read_bytes())
    content[at // 8 % len(content)] ^= 1 << at % 8
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_in_a_published_file_is_found_and_mended(
    scene: Path, job: Job, seed: int
) -> None:
    out, chance = Path(str(job.out)), random.Random(seed)
    sweep([scene], job)
    clean = digests(out)
    for name in (name for name in clean if not name.startswith("checksums/")):
        flip(out / name, chance.randrange(1 << 30))
        assert [(p.path, p.what) for p in verify(out).problems] == [(name, "damaged")]
        (result,) = sweep([scene], job)
        assert result.status == "done"
        assert result.resumed_shards == result.shards
        assert result.warnings == (f"damaged files were published again: {name}",)
        assert digests(out) == clean
        (result,) = sweep([scene], job)
        assert (result.status, result.warnings) == ("up-to-date", ())
    flip(out / "checksums" / "scene.sha256", chance.randrange(1 << 30))
    assert verify(out).problems
    (result,) = sweep([scene], job)
    assert (result.status, digests(out)) == ("done", clean)
    check_output([str(scene)], job)


def test_a_flipped_bit_in_a_part_is_found_and_its_shard_redone(scene: Path, job: Job) -> None:
    """In any byte that is read: a bit is either found, or without effect."""
    out, chance = Path(str(job.out)), random.Random(1)
    (first,) = sweep([scene], job)
    clean = digests(out)
    (folder,) = (out / ".work").glob("scene-*")
    found = 0
    for _ in range(60):
        number = chance.choice(sorted(staged_numbers(folder)))
        part = folder / f"part-{number:06d}.parquet"
        whole = part.read_bytes()
        flip(part, chance.randrange(8 * len(whole)))
        damaged = damaged_numbers(folder)
        assert damaged <= {number}
        found += len(damaged)
        if damaged and found % 10 == 1:
            problems = [p.path for p in verify(out).problems]
            assert problems == [part.relative_to(out).as_posix()]
            (out / "checksums" / "scene.sha256").unlink()  # as if killed before the end
            (result,) = sweep([scene], job)
            assert result.resumed_shards == first.shards - 1
            assert result.warnings == (f"damaged parts were done again: 1 shards ({number})",)
            assert digests(out) == clean
        else:
            part.write_bytes(whole)
    assert found > 30  # the other bits are of the footer


def test_verify_names_what_is_missing_or_not_listed(
    scene: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(str(job.out))
    (result,) = sweep([scene], job)
    assert cli.main(["verify", str(job.out)]) == Exit.DONE
    assert f"1 scenes, {len(result.files)} files, " in capsys.readouterr().out
    (geojson,) = out.rglob("*.geojson")
    geojson.rename(geojson.with_name("other.geojson"))
    assert cli.main(["verify", str(job.out), "--json"]) == Exit.SOME_FAILED
    said = json.loads(capsys.readouterr().out)
    assert [(Path(p["path"]).name, p["what"].split(":")[0]) for p in said["problems"]] == [
        ("scene.geojson", "missing"),
        ("other.geojson", "in no manifest"),
    ]
    (out / "checksums" / "scene.sha256").write_text("nothing\n")
    assert cli.main(["verify", str(job.out)]) == Exit.SOME_FAILED
    assert "scene.sha256: not a manifest" in capsys.readouterr().out
    assert cli.main(["verify", str(scene)]) == Exit.USAGE


def test_sha256sum_reads_the_lists(scene: Path, job: Job) -> None:
    (result,) = sweep([scene], job)
    command = ["sha256sum", "--check", "--strict", "checksums/scene.sha256"]
    ran = subprocess.run(command, cwd=str(job.out), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.count(": OK")) == (0, len(result.files))
