"""Recognise files that are not rasters by their first bytes, for error messages."""

from __future__ import annotations

import re
from pathlib import Path

NOT_IMAGERY = "a vector file, not imagery; for areas use --aoi"
VECTORS = (".fgb", ".gml", ".gpkg", ".gpx", ".kml", ".kmz", ".shp")
"""Suffixes of vector files."""

_HEAD_BYTES = 2048
_TRUST = "add --driver {0} if you trust it"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"SQLite format 3\0", f"a GeoPackage or SQLite file: {NOT_IMAGERY}"),
    (b"fgb\x03", f"a FlatGeobuf: {NOT_IMAGERY}"),
    (b"\0\0\x27\x0a", f"a shapefile: {NOT_IMAGERY}"),
    (b"PAR1", "a Parquet file: a table, not imagery"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 or netCDF-4 file: convert it to GeoTIFF"),
    (b"CDF", "a netCDF file: convert it to GeoTIFF"),
    (b"GRIB", "a GRIB file: convert it to GeoTIFF"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
)
_MARKUP: tuple[tuple[str, str], ...] = (
    (r"<VRTDataset", f"a VRT: {_TRUST.format('VRT')}, for a VRT can read any other file"),
    (r"<MRF_META", f"an MRF: {_TRUST.format('MRF')}, for an MRF can read and write other files"),
    (r"<(!DOCTYPE\s+)?html", "an HTML page, such as a server's error message"),
    (r"<kml|<\w*:?FeatureCollection|<gpx", f"a vector file in XML: {NOT_IMAGERY}"),
    (r"<", "an XML file"),
)
_GEOJSON = re.compile(
    r'\{.*"type"\s*:\s*"(FeatureCollection|Feature|(Multi)?(Point|LineString|Polygon))"', re.S
)


def kind_of(path: Path) -> str:
    """Describe a file on disk, with advice where there is some; '' if it is unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    if not head:
        return "an empty file"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    return _kind_of_text(head, path.suffix.lower())


def _kind_of_text(head: bytes, suffix: str) -> str:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return ""
    text = text.strip()
    if not text or not all(c.isprintable() or c.isspace() for c in text):
        return ""
    if text.startswith("<"):
        body = re.sub(r"^<\?xml.*?\?>\s*", "", text, flags=re.S)
        for pattern, kind in _MARKUP:
            if re.match(pattern, body, re.IGNORECASE):
                return kind
    if _GEOJSON.match(text):
        return f"GeoJSON: {NOT_IMAGERY}"
    if text[0] in "[{":
        return "a JSON file"
    return "a CSV file: a table, not imagery" if suffix in (".csv", ".tsv") else "a text file"
