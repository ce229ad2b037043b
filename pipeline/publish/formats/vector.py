"""Write FlatGeobuf and GeoPackage through GDAL, with equal bytes for equal rows.

GDAL reports no error when a full disk cuts off the last bytes, so each file is checked after it
is written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from scenesweep.pipeline.geometry.georef import LONLAT
from scenesweep.pipeline.publish.formats.layer import Layer
from scenesweep.pipeline.publish.formats.qml import style_text
from scenesweep.pipeline.storage.commit import refuse_more

_GPKG_VERSION = "1.3"  # GDAL before 3.7 warns about 1.4, and 1.4 adds nothing that we need
_NO_CLOCK = "1970-01-01T00:00:00.000Z"
_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256),
    f_table_schema TEXT(256),
    f_table_name TEXT(256),
    f_geometry_column TEXT(256),
    styleName TEXT(30),
    styleQML TEXT,
    styleSLD TEXT,
    useAsDefault BOOLEAN,
    description TEXT,
    owner TEXT(30),
    ui TEXT(30),
    update_time DATETIME
)
"""
"""The table as QGIS creates it (`QgsOgrProvider`)."""


def write_flatgeobuf(layer: Layer, path: Path) -> None:
    """Write FlatGeobuf with its spatial index, which also decides the order of the rows."""
    _write(layer, path, "FlatGeobuf", {"SPATIAL_INDEX": "YES"})
    if not _has_last_row(path, len(layer.table)):
        refuse_more(path)


def write_gpkg(layer: Layer, path: Path) -> None:
    """Write a GeoPackage of one layer with its style; its time of last change is a constant.

    The style is in the table `layer_styles`, where QGIS saves it, so it is part of the file.
    """
    with _gdal_option("OGR_CURRENT_DATE", _NO_CLOCK):
        _write(layer, path, "GPKG", {"SPATIAL_INDEX": "YES", "VERSION": _GPKG_VERSION})
    try:
        _add_style(layer, path)
    except sqlite3.Error:  # for example a full disk
        refuse_more(path)
    if not _is_indexed(path, layer):
        refuse_more(path)


def _write(layer: Layer, path: Path, driver: str, options: dict[str, str]) -> None:
    """Write rows through GDAL.

    Raises:
        OSError: when the disk is full, or writing is not permitted.
    """
    import pyogrio  # slow to import, and only publishing needs it
    from pyogrio.errors import DataLayerError, DataSourceError

    rows = layer.table.drop_columns(["bbox"]).replace_schema_metadata(None)
    try:
        pyogrio.write_arrow(
            rows,
            path,
            layer=layer.name,
            driver=driver,
            geometry_name="geometry",
            geometry_type="Polygon",
            crs=LONLAT,
            **options,
        )
    except (DataSourceError, DataLayerError):  # GDAL does not report the cause
        refuse_more(path)


def _add_style(layer: Layer, path: Path) -> None:
    """Add the table in which QGIS finds styles, with the layer's style as the default."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_STYLES)
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, "
            "last_change, srs_id) VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
            (_NO_CLOCK,),
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
            "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner, "
            "ui, update_time) VALUES ('', '', ?, 'geom', 'detections', ?, '', 1, '', '', '', ?)",
            (layer.name, style_text(layer.classes).decode(), _NO_CLOCK),
        )


def _has_last_row(path: Path, rows: int) -> bool:
    import pyogrio
    from pyogrio.errors import DataSourceError, FeatureError

    try:
        pyogrio.read_info(path)
        skipped = {"skip_features": rows - 1, "max_features": 1}
        return not rows or len(pyogrio.raw.read(path, columns=[], **skipped)[2]) == 1
    except (DataSourceError, FeatureError, ValueError):
        return False


def _is_indexed(path: Path, layer: Layer) -> bool:
    """Say whether a GeoPackage is valid and its index, which GDAL writes last, has all rows."""
    index = f"rtree_{layer.name}_geom".replace('"', '""')
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            (sound,) = database.execute("PRAGMA quick_check").fetchone()
            (rows,) = database.execute(f'SELECT count(*) FROM "{index}"').fetchone()  # noqa: S608
            return sound == "ok" and rows == len(layer.table)
    except sqlite3.Error:
        return False


@contextmanager
def _gdal_option(name: str, value: str) -> Iterator[None]:
    import pyogrio

    before = pyogrio.get_gdal_config_option(name)
    pyogrio.set_gdal_config_options({name: value})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({name: before})
