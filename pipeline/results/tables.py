"""One scene's published table, described by its footer, for those who work with OUT."""

from __future__ import annotations

from dataclasses import dataclass

from scenesweep.pipeline.errors import UnreadableOutput
from scenesweep.pipeline.publish.formats import SceneImage
from scenesweep.pipeline.publish.provenance import Provenance, read_footer
from scenesweep.pipeline.storage.location import Location


@dataclass(frozen=True, slots=True)
class SceneTable:
    """The table of one scene, described by its footer: no row of it was read.

    `bounds` are west, south, east, north of its rows, None when it has no rows. `groups` are the
    numbers of rows of its row groups, and `scale` is scene pixels per pixel of the grid.
    `provenance` is the whole record of the table.
    """

    path: Location
    fingerprint: str
    groups: tuple[int, ...]
    bounds: tuple[float, float, float, float] | None
    georeferenced: bool
    classes: tuple[str, ...]
    image: SceneImage
    scale: tuple[float, float]
    provenance: Provenance

    @property
    def rows(self) -> int:
        return sum(self.groups)


def open_scene_table(path: Location) -> SceneTable:
    """Read the footer of a scene's table.

    Raises:
        UnreadableOutput: when the file is not the table of a swept scene.
    """
    footer = read_footer(path)
    provenance = Provenance.from_json(footer.record, path)
    try:
        column = footer.geo["columns"]["geometry"]
        bounds, georeferenced = column.get("bbox"), column["crs"] is not None
    except (KeyError, TypeError, AttributeError) as error:
        raise UnreadableOutput(
            f"{path}: expected GeoParquet metadata, got none with {error}; sweep the scene again"
        ) from error
    source = provenance.source
    return SceneTable(
        path,
        provenance.fingerprint,
        tuple(footer.parquet.row_group(i).num_rows for i in range(footer.parquet.num_row_groups)),
        None if bounds is None else (bounds[0], bounds[1], bounds[2], bounds[3]),
        georeferenced,
        provenance.model.classes,
        SceneImage(path.stem, source.name, *source.size),
        provenance.grid_scale,
        provenance,
    )
