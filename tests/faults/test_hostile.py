"""Hostile and odd files in one sweep: each has its one right outcome, and nothing else happens."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from pyproj import Transformer

from scenesweep.jobs.cli import main
from tests.faults.case import Case
from tests.faults.hostile import CASES, make, table
from tests.faults.pictures import SQUARE
from tests.sweeps import tables

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability-inputs.md"
MOST_MIB = 1500
_IN_OPEN, _EVENT_BYTES = 0x20, 16  # of inotify; events of a watched file carry no name


@dataclass(frozen=True)
class Swept:
    """A sweep over all files in a process of its own, and what could be seen of it outside."""

    made: dict[Case, Path]
    results: dict[str, dict[str, Any]]
    peak_mib: float
    before: dict[str, str]
    after: dict[str, str]
    cwd: Path
    out: Path
    contacts: int
    decoys: int
    openings: tuple[int, int]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("hostile")
    inputs, cwd, out = folder / "inputs", folder / "cwd", folder / "out"
    cwd.mkdir()
    with canary() as (port, contacts):
        os.environ["CANARY_PORT"] = str(port)
        made = make(CASES, inputs)
        before = tree(inputs)
        decoys = sorted(inputs.rglob("secret.tif"))
        watch = watched(decoys)
        said = sweep_apart([str(path) for path in made.values()], out, cwd)
        opened = openings(watch)
        decoys[0].read_bytes()  # that the watch is awake
        control = openings(watch)
        os.close(watch)
        return Swept(
            made,
            {result["href"]: result for result in said["results"]},
            said["peak_mib"],
            before,
            tree(inputs),
            cwd,
            out,
            len(contacts),
            len(decoys),
            (opened, control),
        )


@contextmanager
def canary() -> Iterator[tuple[int, list[object]]]:
    """Listen on a loopback port; what connects is noted and hung up on."""
    contacts: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                contacts.append(peer)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], contacts
        server.shutdown(socket.SHUT_RDWR)


def sweep_apart(files: list[str], out: Path, cwd: Path) -> dict[str, Any]:
    """Sweep files in another process, for they may kill it."""
    listing = cwd.parent / f"{out.name}.json"
    listing.write_text(json.dumps(files))
    command = [sys.executable, "-m", "tests.faults.hostile", str(listing), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert done.returncode == 0
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def tree(folder: Path) -> dict[str, str]:
    """Hash all files under a folder; of what is no file, the kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[os.fsdecode(path)] = f"{kind:o} {hashlib.sha256(content).hexdigest()}"
    return found


def watched(files: list[Path]) -> int:
    """Ask the kernel (inotify) to note whoever opens one of these files."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        pytest.skip("only Linux tells who opens files")
    watch = int(libc.inotify_init1(os.O_NONBLOCK))
    assert watch >= 0
    for file in files:
        assert libc.inotify_add_watch(watch, os.fsencode(file), _IN_OPEN) >= 0
    return watch


def openings(watch: int) -> int:
    """Return how often a watched file was opened since last asked."""
    try:
        return len(os.read(watch, 1 << 20)) // _EVENT_BYTES
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.about}")
def test_each_file_has_its_outcome(swept: Swept, case: Case) -> None:
    path = swept.made[case]
    result = swept.results[str(path)]
    said = " ".join([result["reason"], *result["warnings"]])
    outcome = "done" if result["status"] == "done" else "refused"
    outcome = "warned" if outcome == "done" and result["warnings"] else outcome
    assert (outcome, result["detections"]) == (case.outcome, case.squares), said
    assert re.search(case.says, said)
    assert not result["bug"]
    if outcome == "refused":
        assert result["reason"].startswith(str(path))
        assert "Traceback" not in said


def test_squares_lie_where_the_raster_says(swept: Swept) -> None:
    """In every CRS and orientation, against the corner arithmetic of rasterio and pyproj."""
    looked_at = 0
    for case, path in swept.made.items():
        if case.outcome == "refused" or not case.squares:
            continue
        with rasterio.open(path) as dataset:
            transform, crs = dataset.transform, dataset.crs
        found = gpd.read_parquet(swept.results[str(path)]["files"]["detections"])
        x0, y0, x1, y1 = SQUARE
        assert found[["x_min", "y_min", "x_max", "y_max"]].to_numpy().tolist() == [list(SQUARE)]
        x, y = transform @ ((x0 + x1) / 2, (y0 + y1) / 2)
        lon, lat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(x, y)
        expected = [(lon + 180) % 360 - 180, lat]
        assert np.allclose(found[["center_lon", "center_lat"]].to_numpy(), [expected], atol=1e-7)
        looked_at += 1
    assert looked_at > 60


def test_nothing_is_written_contacted_or_run(swept: Swept) -> None:
    assert swept.contacts == 0
    assert swept.after == swept.before
    assert list(swept.cwd.iterdir()) == []


def test_no_other_raster_is_read(swept: Swept) -> None:
    """Each disguise and sidecar has a raster beside it that it may name: nobody opens it."""
    opened, control = swept.openings
    assert swept.decoys > 30
    assert control == 1
    assert opened == 0


def test_a_reader_stays_small(swept: Swept) -> None:
    assert swept.peak_mib < MOST_MIB


def test_good_scenes_are_the_same_without_the_bad_ones(swept: Swept) -> None:
    good = [str(path) for case, path in swept.made.items() if case.outcome != "refused"]
    assert len(swept.made) - len(good) >= 60
    out = swept.out.parent / "alone"
    sweep_apart(good[::2], out, swept.cwd)
    alone, mixed = _published(out), _published(swept.out)
    assert len(tables(alone)) == len(good[::2]) >= 30
    assert len(tables(mixed)) == len(good)
    assert alone.items() <= mixed.items()


def test_each_refused_name_takes_one_line(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        case: str(path)
        for case, path in swept.made.items()
        if case.group in ("name", "file") and not path.is_dir()
    }
    assert main(["inspect", *named.values()]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == sum(case.outcome == "refused" for case in named)
    assert all(line.isprintable() for line in said)


def test_the_page_tells_these_outcomes() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def _published(out: Path) -> dict[str, str]:
    folders = ("detections", "geojson", "quicklooks")
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((out / folder).rglob("*"))
        if path.is_file()
    }
