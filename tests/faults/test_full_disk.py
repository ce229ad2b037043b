"""Outputs that cannot be written: one clear line, no truncated file, and a run that goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from scenesweep.jobs import cli
from scenesweep.jobs.training.run import CHECKPOINT
from scenesweep.pipeline.errors import Exit, OutputError
from scenesweep.pipeline.publish.formats import FORMATS, Layer, SceneImage
from scenesweep.pipeline.storage import commit
from tests.faults import painted
from tests.faults.apart import apart
from tests.faults.invariants import check_output, check_report, leftovers
from tests.faults.kills import job_of
from tests.faults.painted import Sweep, paint, said_by
from tests.jobs.test_train import write_data
from tests.nights import CLASSES, HEIGHT, WIDTH, night_job, objects, publish_scene, seen
from tests.rasters import make_job, paint_squares, write_raster
from tests.sweeps import digests, sweep


def limited(limit: int, sources: list[str], arguments: list[str], log: Path) -> None:
    """Run the command with a limit on how large a file may grow: as a quota, or a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    os.environ |= {"JOURNAL": os.devnull, "NAP_S": "0"}
    sys.argv = ["painted", "detect", *arguments]
    os._exit(painted.main())


@pytest.mark.parametrize(
    "limit",
    [12_000, *(pytest.param(n, marks=pytest.mark.faults) for n in (0, 1_000, 3_000, 20_000))],
)
def test_no_file_is_published_that_did_not_fit(tmp_path: Path, limit: int) -> None:
    swept = paint(tmp_path, scenes=1, side=330)
    out, log = tmp_path / "out", tmp_path / "limited.log"
    code = apart(limited, limit, swept.sources, swept.arguments(out, "none"), log)
    assert code == Exit.OUTPUT
    assert swept.run(tmp_path / "clean") == Exit.DONE
    clean = digests(tmp_path / "clean")
    assert digests(out).items() <= clean.items()
    assert leftovers(out) == []
    assert swept.run(out) == Exit.DONE
    assert digests(out) == clean
    check_output(swept.sources, job_of(swept, out))


def written_within(limit: int, name: str, layer: Layer, path: Path) -> None:
    """Write a format where no file may be larger; exit with 3 when that is noticed."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        FORMATS[name].write(layer, path)
    except OSError:
        os._exit(3)
    os._exit(0)


@pytest.mark.parametrize("name", ["geojson", "flatgeobuf", "gpkg", "coco"])
def test_a_format_that_is_cut_short_is_noticed(tmp_path: Path, name: str) -> None:
    """GDAL says nothing of what does not fit when it closes a file."""
    job = night_job(tmp_path / "out", f"publish.formats=[{name}]")
    files = publish_scene(tmp_path, job, "scene", seen(objects(150), 0, 1))
    table = pq.read_table(files["detections"], partitioning=None)
    layer = Layer("scene", table, CLASSES, (SceneImage("scene", "scene.tif", WIDTH, HEIGHT),))
    size = files[name].stat().st_size
    for limit in (size - 1, size - 100, size - 5000, size // 2, 0):
        path = tmp_path / f"{limit}{FORMATS[name].suffix}"
        assert apart(written_within, limit, name, layer, path) == 3, limit
    path = tmp_path / f"whole{FORMATS[name].suffix}"
    assert apart(written_within, 2 * size, name, layer, path) == 0
    assert path.read_bytes() == files[name].read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["_sync_file", "_rename", "_sync_folder"])
def test_each_reason_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    pixels, _ = paint_squares(100, 100, largest=10, seed=1)
    scene, job = write_raster(tmp_path / "s.tif", pixels), make_job(tmp_path / "out")

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(commit, step, refuse)
        with pytest.raises(OutputError, match=os.strerror(number)) as raised:
            sweep([scene], job)
    assert "\n" not in str(raised.value)
    assert "Fix this and rerun the same command." in str(raised.value)
    (result,) = sweep([scene], job)
    assert result.status == "done"
    check_output([str(scene)], job)


def test_a_folder_without_permission(tmp_path: Path) -> None:
    """Root may write anywhere, so for root it is a file system that is mounted read-only."""
    swept, out = paint(tmp_path, scenes=1, side=80), tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "tests.faults.painted", "detect"]
    command += swept.arguments(out, "none")
    if os.geteuid() == 0:
        command = in_namespace(f"mount -t tmpfs -o ro none {out}", command)
    out.chmod(0o555)
    ran = subprocess.run(command, cwd=painted.ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == Exit.OUTPUT
    assert "cannot be written: " in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    swept, out = paint(tmp_path, scenes=2, side=330), tmp_path / "disk" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-m", "tests.faults.painted", "detect"]
    command += swept.arguments(out, "none")
    script = in_namespace(
        f"mount -t tmpfs -o size=300k none {out.parent}",
        ["sh", "-c", '"$@"; code=$?; cp -r "$0" "$0-kept"; exit $code', str(out.parent), *command],
    )
    env = os.environ | {"JOURNAL": os.devnull, "NAP_S": "0"}
    ran = subprocess.run(
        script, cwd=painted.ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == Exit.OUTPUT, ran.stderr
    said = ran.stdout + ran.stderr
    assert "No space left on device. Fix this and rerun the same command." in said
    kept = tmp_path / "disk-kept" / "out"
    check_kept(swept, kept)


def trained_within(limit: int, arguments: list[str], log: Path) -> None:
    """Train where no file may be larger than `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    os._exit(cli.main(["train", *arguments]))


def test_a_checkpoint_that_does_not_fit_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    """torch tells of the end of its archive, not of the write that failed."""
    data = write_data(tmp_path)
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = [str(part) for pair in data.items() for part in pair]
    arguments += ["--out", str(out), "--epochs", "2", "--set", "batch=4"]
    assert apart(trained_within, 500_000, arguments, log) == Exit.OUTPUT
    last = log.read_text().splitlines()[-1]
    assert f"{out}: cannot be written: {os.strerror(errno.EFBIG)}; no epoch was saved" in last
    assert not [path for path in out.rglob("*") if path.name.startswith((".", CHECKPOINT))]


def test_a_model_that_does_not_fit_is_not_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("scenesweep.model.files.model_file.os.fsync", refuse)
    small = tmp_path / "small.safetensors"
    assert cli.main(["models", "shrink", "naip-trees", "--out", str(small)]) == Exit.OUTPUT
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "rerun the command" in said
    assert list(tmp_path.iterdir()) == []


def check_kept(swept: Sweep, out: Path) -> None:
    """What lies there is whole, and the same command ends it."""
    clean = out.with_name("clean")
    assert swept.run(clean) == Exit.DONE
    assert digests(out).items() <= digests(clean).items()
    assert len(list(out.rglob("part-*.parquet"))) > 0
    assert swept.run(out) == Exit.DONE
    check_report(out, Exit.DONE, said_by(out)[0].read_text(), swept.sources)
    assert digests(out) == digests(clean)


def in_namespace(mount: str, command: list[str]) -> list[str]:
    """Return a command that mounts something for itself alone; skip where that is not allowed."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    return [*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
