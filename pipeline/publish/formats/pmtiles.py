"""Write PMTiles: one file of vector tiles for web maps, which read only what they show.

GDAL cuts and encodes the tiles: centres of detections (layer `centres`) for zooms 0 to 12, boxes
(layer `boxes`) for zoom 13. Maps stretch the tiles of zoom 13 for all higher zooms; a tile has
16,384 steps a side, 0.3 m at the equator. GDAL gives each zoom a database of tiles (MBTiles),
because one of its files has the same features at all zooms. The package pmtiles packs them into
one archive (https://github.com/protomaps/PMTiles, version 3). Detections beyond 85.0511 degrees of
latitude, where web Mercator ends, are left out with a warning.

Equal rows give equal bytes. No tile is thinned for its size: centres are few by their definition,
and all boxes must be there.
"""

from __future__ import annotations

import gzip
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from scenesweep.pipeline.geometry.georef import LONLAT
from scenesweep.pipeline.planning.footprint import in_first_turn
from scenesweep.pipeline.publish.formats.centres import (
    EXTENT,
    MOST_LATITUDE,
    Centres,
    centres_at,
    one_zoom_lower,
)
from scenesweep.pipeline.publish.formats.layer import Layer
from scenesweep.pipeline.storage.commit import refuse_more
from scenesweep.pipeline.storage.location import Location

log = logging.getLogger(__name__)

CENTRES_TO, BOXES_AT = 12, 13
"""The highest zoom with centres, and the zoom with boxes."""
_UNLIMITED = str(2**31 - 1)
_DEGREE = 10_000_000
_CENTRE_COLUMNS = ("center_lon", "center_lat", "score", "class_name")
_BOX_COLUMNS = ("geometry", "detection_id", "scene_id", "class_name", "score")
COLUMNS = tuple(dict.fromkeys((*_CENTRE_COLUMNS, *_BOX_COLUMNS)))
"""The columns of the published table that the tiles are made from."""
_SCORE_DECIMALS = 3
_FIELDS = {
    "centres": {"class_name": "String", "score": "Number", "detections": "Number"},
    "boxes": {
        "detection_id": "String",
        "scene_id": "String",
        "class_name": "String",
        "score": "Number",
    },
}
Databases = list[tuple[int, Path]]


def write_pmtiles(layer: Layer, path: Path) -> None:
    """Write the detections of a layer as PMTiles."""
    write_tiles(lambda: iter([layer.table]), path, name=layer.name)


def write_tiles(
    tables: Callable[[], Iterator[pa.Table]],
    path: Path,
    *,
    name: str,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write detections as PMTiles. `tables` gives their rows with `COLUMNS`, piece by piece.

    `facts` go into the archive's metadata. A temporary file as large as the result lies beside
    `path`. Memory grows with the number of detections, because GDAL sorts boxes by tile in memory.

    Raises:
        OSError: when the disk is full, or writing is not permitted.
        Exception: what `tables` raises.
    """
    with TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        here, kept = Path(folder), _Kept()
        boxes = here / "boxes.mbtiles"
        _encode_all((batch for table in tables() for batch in _boxes(table, kept)), boxes)
        lonlat, score, label = kept.joined()
        databases = [*_write_centres(here, lonlat, score, label, tuple(kept.classes))]
        databases.append((BOXES_AT, boxes))
        metadata = _metadata(name) | dict(facts)
        _pack([d for d in databases if len(lonlat)], path, metadata, kept.bounds_e7(), here)
    if kept.beyond:
        log.warning(
            "%s: %d detections beyond %s degrees of latitude are not in the tiles, because web "
            "Mercator ends there; the tables have them",
            *(name, kept.beyond, MOST_LATITUDE),
        )


def read_metadata(path: Location) -> dict[str, Any]:
    """Return the metadata of an archive; empty when it cannot be read."""
    from pmtiles.reader import Reader
    from pmtiles.tile import MagicNumberNotFound, SpecVersionUnsupported

    damaged = OSError, ValueError, LookupError, EOFError, zlib.error
    try:
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            metadata = Reader(read).metadata()
    except (*damaged, MagicNumberNotFound, SpecVersionUnsupported) as error:
        log.warning("%s: expected PMTiles: %s", path, error)
        return {}
    return metadata if isinstance(metadata, dict) else {}


_BOXES = pa.schema(
    [
        ("geometry", pa.binary()),
        ("detection_id", pa.string()),
        ("scene_id", pa.string()),
        ("class_name", pa.string()),
        ("score", pa.float32()),
    ]
)


class _Kept:
    """What the tiles need of the rows that passed: for the centres, for the bounds, for the log.

    Classes are numbered as they come. `bounds` are west, south, east, north of the boxes, in
    degrees. `beyond` is the number of rows that were left out.
    """

    def __init__(self) -> None:
        self.lonlat: list[NDArray[np.float64]] = []
        self.score: list[NDArray[np.float32]] = []
        self.label: list[NDArray[np.int16]] = []
        self.classes: dict[str, int] = {}
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self.beyond = 0

    def add(self, table: pa.Table) -> None:
        names = table["class_name"].combine_chunks()
        for name in pc.unique(names).to_pylist():
            self.classes.setdefault(name, len(self.classes))
        self.label.append(
            pc.index_in(names, pa.array(list(self.classes), pa.string()))
            .to_numpy(zero_copy_only=False)
            .astype(np.int16)
        )
        self.lonlat.append(
            np.stack([table[name].to_numpy() for name in _CENTRE_COLUMNS[:2]], axis=-1)
        )
        self.score.append(_rounded(table["score"]))

    def joined(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int16]]:
        return (
            np.concatenate([np.zeros((0, 2)), *self.lonlat]),
            np.concatenate([np.zeros(0, np.float32), *self.score]),
            np.concatenate([np.zeros(0, np.int16), *self.label]),
        )

    def add_bounds(self, bounds: NDArray[np.float64]) -> None:
        """Widen the bounds by those of polygons (N, 4), in degrees."""
        lows, highs = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
        self.bounds[:2] = np.minimum(self.bounds[:2], lows)
        self.bounds[2:] = np.maximum(self.bounds[2:], highs)

    def bounds_e7(self) -> list[int]:
        """Return west, south, east, north in 1e-7 degrees, within web Mercator."""
        most = np.array([180, MOST_LATITUDE])
        low = np.clip(self.bounds[:2], -most, most) * _DEGREE
        high = np.clip(self.bounds[2:], -most, most) * _DEGREE
        if not self.lonlat:
            low, high = -most * _DEGREE, most * _DEGREE
        return [*np.floor(low).astype(int).tolist(), *np.ceil(high).astype(int).tolist()]


def _boxes(table: pa.Table, kept: _Kept) -> Iterator[pa.RecordBatch]:
    """Keep what the centres need, and yield the rows of the layer `boxes`."""
    on_map = pc.less_equal(pc.abs(table["center_lat"]), MOST_LATITUDE)
    rows = table.filter(on_map)
    kept.beyond += len(table) - len(rows)
    if len(rows) == 0:
        return
    kept.add(rows)
    columns = {name: rows[name].combine_chunks() for name in _BOX_COLUMNS}
    columns["geometry"], bounds = _in_one_turn(columns["geometry"])
    kept.add_bounds(bounds)
    columns["score"] = pa.array(_rounded(rows["score"]))
    yield from pa.table(columns, schema=_BOXES).to_batches()


def _in_one_turn(column: pa.Array) -> tuple[pa.Array, NDArray[np.float64]]:
    """Cut the few boxes that cross the antimeridian: GDAL would drop the part beyond it.

    Return the boxes, and the bounds (N, 4) of each.
    """
    polygons = shapely.from_wkb(column.to_numpy(zero_copy_only=False))
    bounds = shapely.bounds(polygons)
    beyond = np.flatnonzero((bounds[:, 0] < -180) | (bounds[:, 2] > 180))
    if len(beyond) == 0:
        return column.cast(pa.binary()), bounds
    for number in beyond.tolist():
        polygons[number] = in_first_turn(shapely.make_valid(polygons[number]))
    return pa.array(shapely.to_wkb(polygons), pa.binary()), shapely.bounds(polygons)


def _rounded(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return scores to three decimals: tiles store each distinct value once."""
    return column.to_numpy().astype(np.float64).round(_SCORE_DECIMALS).astype(np.float32)


def _write_centres(
    folder: Path,
    lonlat: NDArray[np.float64],
    score: NDArray[np.float32],
    label: NDArray[np.int16],
    classes: tuple[str, ...],
) -> Iterator[tuple[int, Path]]:
    """Write a database for each zoom with centres, the lowest zoom first."""
    at: list[Centres] = [centres_at(CENTRES_TO, lonlat, score, label)]
    while at[-1].zoom > 0:
        at.append(one_zoom_lower(at[-1]))
    for centres in reversed(at):
        path = folder / f"centres{centres.zoom}.mbtiles"
        _encode(centres.table(classes), path, "centres", centres.zoom)
        yield centres.zoom, path


def _encode_all(batches: Iterator[pa.RecordBatch], path: Path) -> None:
    """Let GDAL write the layer `boxes`.

    GDAL reports an error of `batches` without its type: this raises the error itself.
    """
    failures: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except BaseException as error:
            failures.append(error)
            raise

    try:
        reader = pa.RecordBatchReader.from_batches(_BOXES, watched())
        _encode(reader, path, "boxes", BOXES_AT)
    except Exception:
        if not failures:
            raise
    if failures:
        raise failures[0]


def _encode(rows: Any, path: Path, layer: str, zoom: int) -> None:
    """Let GDAL write the tiles of one zoom to a database."""
    import pyogrio  # slow to import, and only publishing needs it
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        pyogrio.write_arrow(
            rows,
            path,
            layer=layer,
            driver="MBTiles",
            geometry_name="geometry",
            geometry_type="MultiPolygon" if layer == "boxes" else "Point",
            crs=LONLAT,
            MINZOOM=str(zoom),
            MAXZOOM=str(zoom),
            NAME=layer,
            EXTENT=str(EXTENT),
            MAX_SIZE=_UNLIMITED,
            MAX_FEATURES=_UNLIMITED,
            TEMPORARY_DB=":memory:",  # half the processor time of a file
        )
    except (DataSourceError, DataLayerError):  # GDAL does not report the cause
        refuse_more(path)
    if not _is_complete(path):
        refuse_more(path)


def _is_complete(path: Path) -> bool:
    """Say whether a database of tiles is valid and has the metadata that GDAL writes last."""
    try:
        with closing(_open(path)) as database:
            (sound,) = database.execute("PRAGMA quick_check").fetchone()
            last = database.execute("SELECT count(*) FROM metadata WHERE name = 'json'").fetchone()
            return sound == "ok" and last == (1,)
    except sqlite3.Error:
        return False


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _pack(
    databases: Databases, path: Path, metadata: dict[str, Any], bounds: list[int], folder: Path
) -> None:
    """Join databases, ordered by zoom, into one archive with its tiles in order of their ids."""
    from pmtiles.tile import Compression, TileType, zxy_to_tileid
    from pmtiles.writer import Writer

    west, south, east, north = bounds
    header = {
        **{"min_lon_e7": west, "min_lat_e7": south, "max_lon_e7": east, "max_lat_e7": north},
        **{"center_lon_e7": (west + east) // 2, "center_lat_e7": (south + north) // 2},
        **{"center_zoom": 0, "tile_type": TileType.MVT, "tile_compression": Compression.GZIP},
    }
    with path.open("wb") as file, (folder / "tiles").open("w+b") as tiles:
        writer = Writer(file)
        writer.tile_f.close()  # in the system's folder for temporary files, which may be small
        writer.tile_f = tiles
        for zoom, database in databases:
            for number, data in _tiles(database, zoom):
                writer.write_tile(number, data)
        if not databases:
            writer.write_tile(zxy_to_tileid(0, 0, 0), gzip.compress(b"", mtime=0))
        writer.finalize(header, metadata)


def _tiles(database: Path, zoom: int) -> Iterator[tuple[int, bytes]]:
    """Yield the tiles of a database, with their ids in an archive, in the order of the ids."""
    from pmtiles.tile import zxy_to_tileid

    last = 2**zoom - 1
    with closing(_open(database)) as connection:
        rows = connection.execute("SELECT tile_column, tile_row, rowid FROM tiles").fetchall()
        order = sorted((zxy_to_tileid(zoom, x, last - y), rowid) for x, y, rowid in rows)
        for number, rowid in order:
            query = "SELECT tile_data FROM tiles WHERE rowid = ?"
            yield number, connection.execute(query, (rowid,)).fetchone()[0]


def _metadata(name: str) -> dict[str, Any]:
    zooms = {"centres": (0, CENTRES_TO), "boxes": (BOXES_AT, BOXES_AT)}
    return {
        "name": name,
        "type": "overlay",
        "vector_layers": [
            {"id": layer, "minzoom": first, "maxzoom": last, "fields": _FIELDS[layer]}
            for layer, (first, last) in zooms.items()
        ],
    }


LAYERS: Sequence[str] = tuple(_FIELDS)
"""The layers of an archive."""
