"""The record in a published table: read back as it was written, or refused with one error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.provenance import Provenance, read_footer, read_provenance
from scenesweep.pipeline.storage.paths import Output
from tests.rasters import make_job, write_raster
from tests.sweeps import sweep


def table_of(folder: Path, *settings: str) -> Path:
    scene = write_raster(folder / "scene.tif", np.ones((1, 90, 120), np.uint8))
    (result,) = sweep([scene], make_job(folder / "out", *settings))
    assert result.status == "done", result.reason
    (table,) = Output(folder / "out").tables()
    return table


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    record = read_footer(table).record
    provenance = Provenance.from_json(record, table)
    again = json.dumps(provenance.to_json(), sort_keys=True)
    assert again == json.dumps(record, sort_keys=True)
    assert provenance.source.name == "scene.tif"
    assert provenance.source.size == (120, 90)
    assert provenance.area is None
    assert provenance.settings["detect"]["score_threshold"] >= 0


@pytest.mark.parametrize("missing", ["source", "grid", "model", "settings", "versions"])
def test_an_incomplete_record_is_refused(tmp_path: Path, missing: str) -> None:
    table = table_of(tmp_path)
    record = {name: value for name, value in read_footer(table).record.items() if name != missing}
    with pytest.raises(UnreadableOutput, match=rf"scene\.parquet: .*'{missing}'.*sweep the scene"):
        Provenance.from_json(record, table)


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(UnreadableOutput, match=r"x\.parquet: expected a Parquet file"):
        read_provenance(path)


def test_a_table_of_another_program_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    pq.write_table(pq.ParquetFile(table).read().replace_schema_metadata({}), table)
    with pytest.raises(UnreadableOutput, match="expected a table that scenesweep detect published"):
        read_provenance(table)
