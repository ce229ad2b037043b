"""Published tables, found and opened again by those who work with what a run left in OUT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.formats import Picture
from scenesweep.pipeline.storage.location import Location, parquet


@dataclass(frozen=True, slots=True)
class SceneTable:
    """The table of one scene, by its footer: no row of it was read.

    `bounds` are west, south, east, north of its rows, None when it has none. `groups` are the
    numbers of rows of its row groups, and `scale` is scene pixels for each pixel of the grid.
    """

    path: Location
    fingerprint: str
    groups: tuple[int, ...]
    bounds: tuple[float, float, float, float] | None
    georeferenced: bool
    classes: tuple[str, ...]
    picture: Picture
    scale: tuple[float, float]

    @property
    def rows(self) -> int:
        return sum(self.groups)


def open_scene_table(path: Location) -> SceneTable:
    """Read the footer of a scene's table.

    Raises:
        UnreadableOutput: when it is no table of a swept scene.
    """
    footer, geo, provenance = read_footer(path)
    try:
        column, source = geo["columns"]["geometry"], provenance["source"]
        scale_x, scale_y = provenance["grid"]["scale"]
        bounds = column.get("bbox")
        return SceneTable(
            path,
            provenance["fingerprint"],
            tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)),
            None if bounds is None else (bounds[0], bounds[1], bounds[2], bounds[3]),
            column["crs"] is not None,
            tuple(provenance["model"]["classes"]),
            Picture(path.stem, source["name"], *source["size"]),
            (scale_x, scale_y),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableOutput(
            f"{path}: expected the table of a swept scene, found one without {error}; sweep "
            "the scene again"
        ) from error


def read_footer(path: Location) -> tuple[pq.FileMetaData, dict[str, Any], dict[str, Any]]:
    """Return a table's footer, and the `geo` and `scenesweep` metadata in it.

    Raises:
        UnreadableOutput: when it is not a Parquet file.
    """
    try:
        footer = pq.read_metadata(parquet(path))
        metadata = footer.metadata or {}
        geo, told = (json.loads(metadata.get(key, b"{}")) for key in (b"geo", b"scenesweep"))
    except (OSError, ValueError) as error:  # pyarrow's are among them
        said = str(error).splitlines()[0]
        raise UnreadableOutput(f"{path}: expected a Parquet file of ours: {said}") from error
    return footer, geo, told
