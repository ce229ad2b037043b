"""What a painted scene publishes has kept its content since these digests were taken.

A digest changes only together with a version constant in `pipeline.planning.plan`, for a reason
that CHANGELOG.md states. To print new ones:
`python -m tests.pipeline.test_published_digests`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from scenesweep.pipeline.planning.plan import PUBLISH_VERSION, STAGE_VERSION
from tests.rasters import make_job, paint_squares, write_raster
from tests.sweeps import sweep

TAKEN_AT = {"STAGE_VERSION": 5, "PUBLISH_VERSION": 9}
DIGESTS = {
    "coco/date=2026-11-20/painted.json": "5059633ffe41282f",
    "coverage/date=2026-11-20/painted.parquet": "bbd3749352702e75",
    "detections/date=2026-11-20/painted.parquet": "a600d5afc4fe4611",
    "geojson/date=2026-11-20/painted.geojson": "63d0e8433ae86e69",
    "geojson/date=2026-11-20/painted.qml": "1b62c704aafc6cb6",
    "items/painted.json": "f8d37dbfee175398",
    "quicklooks/painted.png": "21cc917153e24b85",
}
FORMATS = "publish.formats=[geojson,coco]"
DATE = "scenes.acquired_at=2026-11-20T10:00:00Z"


def test_published_content_is_as_before(tmp_path: Path) -> None:
    assert {"STAGE_VERSION": STAGE_VERSION, "PUBLISH_VERSION": PUBLISH_VERSION} == TAKEN_AT
    assert digests_of(tmp_path) == DIGESTS


def digests_of(folder: Path) -> dict[str, str]:
    """Sweep a painted scene and return a digest for each published file."""
    pixels, _ = paint_squares(400, 300, largest=14, seed=11)
    pixels[0, 100:180, 150:260] = 0  # nodata
    scene = write_raster(folder / "painted.tif", pixels, nodata=0)
    os.utime(scene, (1_700_000_000, 1_700_000_000))  # the fingerprint names size and time
    out = folder / "out"
    with mock.patch("scenesweep.pipeline.publish.publish.versions", return_value={}):
        (result,) = sweep([scene], make_job(out, FORMATS, DATE, "publish.quicklook=true"))
    assert result.status == "done", result.reason
    files = sorted(p for p in out.rglob("*") if p.is_file() and ".work" not in p.parts)
    return {
        path.relative_to(out).as_posix(): _digest(path, folder)
        for path in files
        if "checksums" not in path.parts  # they follow from the other files
    }


def _digest(path: Path, folder: Path) -> str:
    """Hash what a file says, free of this machine's folders and of library versions."""
    content: Any
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        names = {name: str(table.schema.field(name).type) for name in table.column_names}
        rows = {name: [repr(value) for value in table[name].to_pylist()] for name in names}
        content = json.dumps([metadata, names, rows], sort_keys=True).encode()
    elif path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            content = image.tobytes()
    else:
        content = path.read_bytes()
    content = content.replace(str(folder).encode(), b"FOLDER")
    content = re.sub(rb'("file:checksum": ")[0-9a-f]+|("file:size": )\d+', rb"\1\2", content)
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as given:
        print(json.dumps(digests_of(Path(given)), indent=4))
