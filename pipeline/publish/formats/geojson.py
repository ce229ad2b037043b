"""Write GeoJSON (RFC 7946) straight from the columns of a table.

GDAL's writer takes several times as long, because it makes an object for each row and formats
each number alone. Here a whole column becomes text at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate

from scenesweep.pipeline.publish.formats.layer import Layer

_DECIMALS = 8  # of a degree: a millimetre
_ROWS_AT_ONCE = 50_000
_SPECIAL = r'["\\\x00-\x1f]'
"""The characters that JSON writes in another way."""


def write_geojson(layer: Layer, path: Path) -> None:
    """Write a layer; polygons across the antimeridian are cut there.

    Numbers have as many digits as they need to be read back unchanged, coordinates at most 8
    decimals.
    """
    name = json.dumps(layer.name, ensure_ascii=False)
    with path.open("wb") as file:
        file.write(f'{{\n"type": "FeatureCollection",\n"name": {name},\n'.encode())
        file.write(f'"xy_coordinate_resolution": 1e-{_DECIMALS:02d},\n"features": [\n'.encode())
        separator = b""
        for batch in layer.table.drop_columns(["bbox"]).to_batches(_ROWS_AT_ONCE):
            for text in _features(batch):
                file.write(separator)
                file.write(text)
                separator = b",\n"
        file.write(b"\n]\n}\n")


def _features(rows: pa.RecordBatch) -> Iterator[pa.Buffer]:
    """Yield the features of some rows, separated by commas, as one text in UTF-8."""
    if not len(rows):
        return
    pieces: list[pa.Array | str] = ['{ "type": "Feature", "properties": { ']
    for number, name in enumerate(n for n in rows.schema.names if n != "geometry"):
        pieces += [f"{', ' if number else ''}{json.dumps(name)}: ", _json(rows[name])]
    pieces += [' }, "geometry": ', _geometry(rows["geometry"]), " }"]
    texts = pc.binary_join_element_wise(*pieces, "")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), ",\n")
    yield joined[0].as_buffer()


def _json(column: pa.Array) -> pa.Array:
    """Return the values of a column as JSON."""
    kind = column.type
    if pa.types.is_floating(kind):
        texts = pc.cast(pc.if_else(pc.is_finite(column), column, None), pa.string())
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        texts = pc.cast(column, pa.string())
    elif pa.types.is_timestamp(kind):
        texts = _quoted(pc.strftime(_milliseconds(column), format="%Y-%m-%dT%H:%M:%SZ"))
    else:
        texts = _quoted(pc.cast(column, pa.string()))
    return pc.fill_null(texts, "null")


def _milliseconds(column: pa.Array) -> pa.Array:
    """Return times to whole seconds if they are, else to milliseconds."""
    seconds = pc.cast(column, pa.timestamp("s", column.type.tz), safe=False)
    if pc.all(pc.equal(seconds, column)).as_py() in (True, None):
        return seconds
    return pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False)


def _quoted(texts: pa.Array) -> pa.Array:
    """Return texts as JSON; only those with special characters are taken one by one."""
    if not pc.any(pc.match_substring_regex(texts, _SPECIAL)).as_py():
        return pc.binary_join_element_wise('"', texts, '"', "")
    each = [None if t is None else json.dumps(t, ensure_ascii=False) for t in texts.to_pylist()]
    return pa.array(each, pa.string())


def _geometry(column: pa.Array) -> pa.Array:
    """Return polygons in WKB as GeoJSON."""
    polygons = shapely.from_wkb(column.to_numpy(zero_copy_only=False))
    points, owner = shapely.get_coordinates(polygons, return_index=True)
    plain = (np.bincount(owner, minlength=len(polygons)) == 5) & _on_one_side(polygons)
    texts = np.empty(len(polygons), object)
    for row in np.flatnonzero(~plain):
        texts[row] = _cut(polygons[row])
    if plain.all():
        return _rings(points.reshape(-1, 10))
    texts[plain] = _rings(points[plain[owner]].reshape(-1, 10)).to_numpy(zero_copy_only=False)
    return pa.array(texts, pa.string())


def _on_one_side(polygons: NDArray[np.object_]) -> NDArray[np.bool_]:
    west, _, east, _ = shapely.bounds(polygons).T
    on_one_side: NDArray[np.bool_] = (west >= -180) & (east <= 180)
    return on_one_side


def _rings(rings: NDArray[np.float64]) -> pa.Array:
    """Return closed rings of five points (N, 10) as GeoJSON polygons."""
    texts = [pc.cast(pa.array(edge), pa.string()) for edge in rings.round(_DECIMALS).T]
    pieces: list[pa.Array | str] = ['{ "type": "Polygon", "coordinates": [ [ ']
    for number in range(0, 10, 2):
        pieces += [", [ " if number else "[ ", texts[number], ", ", texts[number + 1], " ]"]
    return pc.binary_join_element_wise(*pieces, " ] ] }", "")


def _cut(polygon: shapely.Geometry) -> str:
    """Return one polygon as GeoJSON, cut at the antimeridian (RFC 7946, section 3.1.9)."""
    polygon = shapely.make_valid(polygon)  # near a pole, its edges may cross
    parts = []
    for turn in (-360.0, 0.0, 360.0):
        inside = shapely.intersection(translate(polygon, turn), shapely.box(-180, -90, 180, 90))
        parts += [p for p in shapely.get_parts(inside) if p.geom_type == "Polygon" and p.area]
    cut = shapely.multipolygons(parts) if len(parts) > 1 else (*parts, polygon)[0]
    rounded = shapely.transform(shapely.orient_polygons(cut), lambda p: p.round(_DECIMALS))
    return shapely.to_geojson(rounded)
