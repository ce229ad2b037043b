"""Assemble a scene from its files: one raster, a file for each band, or a mosaic of files.

This reads only headers. Files of bands may differ in resolution, as Sentinel-2's do, if they cover
the same ground; the scene has the grid of the finest file. Pieces of a mosaic share one grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import shapely
from affine import Affine
from pyproj import CRS

from scenesweep.pipeline.errors import SceneError
from scenesweep.pipeline.raster.gdal import DRIVERS
from scenesweep.pipeline.raster.inspect import ground_sample_distance, inspect
from scenesweep.pipeline.scene import Band, Part, RasterFile, Scene, SceneRef
from scenesweep.pipeline.storage.network import without_secrets

_ALIGNED_PX = 0.01
_SAME_GSD = 0.25


def inspect_scene(
    ref: SceneRef, *, drivers: tuple[str, ...] = DRIVERS, pixel_coordinates: bool = False
) -> Scene:
    """Read the headers of a scene's files and return the scene.

    Raises:
        SceneError: naming the file that cannot be used, or does not fit the others.
    """
    if ref.fault:
        raise SceneError(ref.fault)
    each = [
        _named(inspect(file.href, drivers=drivers, pixel_coordinates=pixel_coordinates), file)
        for file in ref.files
    ]
    if len(each) == 1:
        scene = each[0]
    else:
        for scene in each[1:]:
            _check_alike(scene, each[0])
        scene = _mosaic(each) if ref.join == "mosaic" else _stack(each)
        fingerprint = _digest(ref.join, [(s.fingerprint, s.bands) for s in each], scene.parts)
        scene = replace(scene, href=ref.href, fingerprint=fingerprint, join=ref.join)
    return _with_hints(scene, ref)


def _named(scene: Scene, file: RasterFile) -> Scene:
    """Return a file's scene with the band names and the checksum that the request gives."""
    if file.checksum:
        scene = replace(scene, fingerprint=_digest(scene.fingerprint, file.checksum))
    if not file.names:
        return scene
    if len(file.names) != len(scene.bands):
        raise SceneError(
            f"{scene.href}: expected {len(file.names)} bands ({', '.join(file.names)}), found "
            f"{len(scene.bands)}"
        )
    bands = zip(scene.bands, file.names, strict=True)
    return replace(scene, bands=tuple(Band(name.lower(), band.color) for band, name in bands))


def _with_hints(scene: Scene, ref: SceneRef) -> Scene:
    """Apply the hints of a catalog, and warn where they contradict the raster."""
    hints, changes = ref.hints, dict[str, Any]()
    if ref.id:
        changes["id"] = ref.scene_id
    if hints.acquired_at is not None:
        changes["acquired_at"] = hints.acquired_at
    if hints.gsd_m and scene.gsd_m and abs(max(scene.gsd_m) / hints.gsd_m - 1) > _SAME_GSD:
        warning = (
            f"the catalog says {hints.gsd_m:g} m a pixel, the raster has {max(scene.gsd_m):.3g} m, "
            "which is used"
        )
        changes["warnings"] = (*scene.warnings, warning)
    return replace(scene, **changes)


def _check_alike(scene: Scene, first: Scene) -> None:
    """Refuse a file whose data type or CRS differs from the first file's."""
    if scene.dtype != first.dtype:
        raise SceneError(
            f"{scene.href}: expected {first.dtype} as in {first.href}, found {scene.dtype}"
        )
    if scene.crs != first.crs and (
        scene.crs is None or first.crs is None or CRS.from_wkt(scene.crs) != CRS.from_wkt(first.crs)
    ):
        raise SceneError(f"{scene.href}: expected the CRS of {first.href}, found another")


def _stack(each: Sequence[Scene]) -> Scene:
    """Return a scene of all bands of the files, on the grid of the finest file."""
    finest = max(each, key=lambda scene: scene.width * scene.height)
    return replace(
        finest,
        bands=tuple(band for scene in each for band in scene.bands),
        nodata=each[0].nodata if len({scene.nodata for scene in each}) == 1 else None,
        masked=any(scene.masked for scene in each),
        acquired_at=next((s.acquired_at for s in each if s.acquired_at), None),
        warnings=tuple(text for scene in each for text in scene.warnings),
        parts=tuple(_on_ground_of(finest, scene) for scene in each),
    )


def _on_ground_of(finest: Scene, scene: Scene) -> Part:
    """Return a file's part on the finest grid; it must cover the same ground within a pixel."""
    if finest.transform is None or scene.transform is None:
        relation = Affine.scale(finest.width / scene.width, finest.height / scene.height)
    else:
        relation = ~finest.transform @ scene.transform
    (sx, sy), (left, top) = (relation.a, relation.e), (relation.c, relation.f)
    right, bottom = relation @ (scene.width, scene.height)
    turned = max(abs(relation.b) * scene.height, abs(relation.d) * scene.width) > _ALIGNED_PX
    off = max(abs(left) / sx, abs(top) / sy) if sx > 0 and sy > 0 else float("inf")
    off_end = max(abs(right - finest.width) / abs(sx), abs(bottom - finest.height) / abs(sy))
    if turned or max(off, off_end) > 1:
        raise SceneError(
            f"{scene.href}: expected the ground of {finest.href} ({finest.width} x "
            f"{finest.height} px), found pixels ({left:.1f}, {top:.1f}) to ({right:.1f}, "
            f"{bottom:.1f}) of it"
        )
    return replace(scene.parts[0], col_off=left, row_off=top, step=(sx, sy))


def _mosaic(each: Sequence[Scene]) -> Scene:
    """Return a scene of files side by side, on the grid that they share."""
    first = each[0]
    placed = [_on_grid_of(first, scene) for scene in each]
    left, top = min(p.col_off for p in placed), min(p.row_off for p in placed)
    width = round(max(p.col_off + p.width for p in placed) - left)
    height = round(max(p.row_off + p.height for p in placed) - top)
    parts = tuple(replace(p, col_off=p.col_off - left, row_off=p.row_off - top) for p in placed)
    boxes = [
        shapely.box(p.col_off, p.row_off, p.col_off + p.width, p.row_off + p.height) for p in parts
    ]
    gaps = shapely.union_all(boxes).area < width * height
    assert first.transform is not None
    transform = first.transform @ Affine.translation(left, top)
    return replace(
        first,
        width=width,
        height=height,
        masked=gaps or any(scene.masked for scene in each),
        transform=transform,
        gsd_m=ground_sample_distance((width, height), first.crs, transform, first.href),
        acquired_at=next((s.acquired_at for s in each if s.acquired_at), None),
        warnings=tuple(text for scene in each for text in scene.warnings),
        parts=parts,
        off_earth=any(scene.off_earth for scene in each),
    )


def _on_grid_of(first: Scene, scene: Scene) -> Part:
    """Return a file's part on the grid of the first file; its pixels must lie on that grid."""
    if first.transform is None or scene.transform is None:
        raise SceneError(f"{scene.href}: a mosaic needs georeferenced files")
    if [b.description for b in scene.bands] != [b.description for b in first.bands]:
        raise SceneError(
            f"{scene.href}: expected the {len(first.bands)} bands of {first.href}, found "
            f"{len(scene.bands)} ({', '.join(b.description or b.color for b in scene.bands)})"
        )
    relation = ~first.transform @ scene.transform
    left, top = round(relation.c), round(relation.f)
    corner = relation @ (scene.width, scene.height)
    off = max(abs(relation.c - left), abs(relation.f - top))
    off = max(off, abs(corner[0] - left - scene.width), abs(corner[1] - top - scene.height))
    if off > _ALIGNED_PX:
        raise SceneError(
            f"{scene.href}: expected pixels on the grid of {first.href}, found them "
            f"{off:.2f} px off it; resample the file to that grid first"
        )
    return replace(scene.parts[0], col_off=left, row_off=top)


def _digest(*values: object) -> str:
    """Hash values that distinguish versions, without the queries of addresses: these change."""
    text = repr(values)
    return hashlib.sha256(without_secrets(text).encode()).hexdigest()[:16]
