"""Read scenes from a STAC Item, ItemCollection, Catalog, Collection or stac-geoparquet.

A catalog from the network may only refer to files on the network, so that it cannot make this
process read local files.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.stac_io import DefaultStacIO

from scenesweep.pipeline.errors import SceneError, UnreadableScene, UsageError, shortened
from scenesweep.pipeline.raster.kinds import NOT_IMAGERY
from scenesweep.pipeline.scene import Hints, RasterFile, SceneRef
from scenesweep.pipeline.sources.choice import Choice, Named
from scenesweep.pipeline.storage.network import is_remote, unsupported, without_secrets
from scenesweep.pipeline.storage.remote import read_bytes

log = logging.getLogger(__name__)

_RASTERS = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/png", "image/jpeg")
_ODD = (OSError, ValueError, LookupError, TypeError, AttributeError)  # from pystac on odd JSON
_GEOJSON = {
    "Feature",
    "FeatureCollection",
    "GeometryCollection",
    "Point",
    "MultiPoint",
    "LineString",
    "MultiLineString",
    "Polygon",
    "MultiPolygon",
}
_LONGEST = 200
_NOT_DATA = {"thumbnail", "overview", "metadata", "visual-thumbnail"}


def read_items(href: str) -> list[pystac.Item]:
    """Read all items of a STAC file and of the files below it, with absolute hrefs of assets.

    Raises:
        UsageError: when it cannot be read, is not STAC, or has no item.
    """
    try:
        items = list(_items(href))
    except SceneError as error:
        raise UsageError(str(error)) from error
    except FileNotFoundError as error:
        raise UsageError(f"{without_secrets(href)}: expected STAC, found no such file") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{without_secrets(href)}: expected STAC, found no JSON: {error}"
        ) from error
    except (*_ODD, RecursionError, pystac.STACError, pystac.STACTypeError) as error:
        reason = shortened(without_secrets(str(error)), _LONGEST) or type(error).__name__
        raise UsageError(
            f"{without_secrets(href)}: expected STAC, found invalid STAC ({reason})"
        ) from error
    if not items:
        raise UsageError(f"{without_secrets(href)}: expected STAC items, found none")
    return items


def scenes_of(
    items: Iterable[pystac.Item], named: Named, card_bands: Sequence[str | int] = ()
) -> list[SceneRef]:
    """Return a scene for each item, without items that have more cloud than `max_cloud`.

    `card_bands` select the assets of an item when the user chooses none.
    """
    choice, mask = named.choice, named.mask.resolved().asset
    scenes, clouded = [], 0
    for item in items:
        cloud = _number(item.properties.get("eo:cloud_cover"))
        if choice.max_cloud is not None and cloud is not None and cloud > choice.max_cloud:
            clouded += 1
        else:
            scenes.append(_with_mask(_scene(item, choice, card_bands), item, mask))
    if clouded:
        log.info("left out %d items with more than %g %% cloud", clouded, choice.max_cloud)
    return scenes


def made_absolute(item: pystac.Item, catalog: str) -> pystac.Item:
    """Make the hrefs of an item's assets absolute, and mark those that may not be read."""
    item.make_asset_hrefs_absolute()
    for key, asset in item.assets.items():
        asset.href = asset.href.removeprefix("file://")
        if asset.href.startswith("/vsi") or (is_remote(catalog) and not is_remote(asset.href)):
            asset.extra_fields["scenesweep:refused"] = (
                f"asset {key} is {without_secrets(asset.href)}"
            )
    return item


def _items(href: str) -> Iterator[pystac.Item]:
    reader = _Reader(remote=is_remote(href))
    if Path(without_secrets(href)).suffix.lower() == ".parquet":
        yield from _table_items(href)
        return
    address = href if is_remote(href) else str(Path(href).resolve())
    tree = json.loads(reader.read_text(address))
    kind = tree.get("type") if isinstance(tree, dict) else None
    _check_is_stac(href, kind, tree)
    if kind == "FeatureCollection":
        for feature in tree["features"]:
            yield made_absolute(pystac.Item.from_dict(feature, href=address), address)
    elif kind == "Feature":
        yield made_absolute(pystac.Item.from_dict(tree, href=address), address)
    elif kind in ("Catalog", "Collection"):
        root = pystac.read_file(address, stac_io=reader)
        assert isinstance(root, pystac.Catalog)
        for item in root.get_items(recursive=True):
            yield made_absolute(item, address)
    else:
        form = f"of type {kind}" if kind else "without a type"
        raise UnreadableScene(f"{without_secrets(href)}: expected STAC, found JSON {form}")


def _check_is_stac(href: str, kind: object, tree: Any) -> None:
    """Refuse GeoJSON that is not STAC: each STAC Item has `stac_version`."""
    features = tree.get("features") if kind == "FeatureCollection" else [tree]
    if kind in _GEOJSON and not _any_stac(features):
        raise UnreadableScene(
            f"{without_secrets(href)}: expected STAC or imagery, found {NOT_IMAGERY}"
        )


def _any_stac(features: Any) -> bool:
    if not isinstance(features, list) or not features:
        return True  # an empty collection may be an ItemCollection
    return any(isinstance(each, dict) and "stac_version" in each for each in features)


def _table_items(href: str) -> Iterator[pystac.Item]:
    import pyarrow.parquet as pq
    from stac_geoparquet.arrow import stac_table_to_items

    address = href if is_remote(href) else str(Path(href).resolve())
    table = pq.read_table(io.BytesIO(read_bytes(href)) if is_remote(href) else address)
    if not {"assets", "links"} <= set(table.column_names):
        raise UnreadableScene(
            f"{without_secrets(href)}: expected STAC or imagery, found {NOT_IMAGERY}"
        )
    for feature in stac_table_to_items(table):
        yield made_absolute(pystac.Item.from_dict(feature, href=address), address)


class _Reader(DefaultStacIO):
    """Read STAC files with timeouts and retries; a remote catalog cannot reach local files."""

    def __init__(self, *, remote: bool) -> None:
        super().__init__()
        self._remote = remote

    def read_text(self, source: Any, *_: Any, **__: Any) -> str:
        href = str(source)
        if is_remote(href):
            return read_bytes(href).decode()
        if self._remote:
            raise UnreadableScene(f"{href}: a catalog on the network names a local file")
        return Path(href.removeprefix("file://")).read_text(encoding="utf-8")


def _scene(item: pystac.Item, choice: Choice, card_bands: Sequence[str | int]) -> SceneRef:
    """Return an item's scene, with a fault for a bad item: it must not stop the others."""
    hints = Hints(
        item=item.id,
        collection=item.collection_id or "",
        acquired_at=_time(item),
        gsd_m=_number(item.properties.get("gsd")),
        cloud_cover=_number(item.properties.get("eo:cloud_cover")),
    )
    try:
        chosen = _chosen(item, choice, card_bands)
        files = tuple(_file(asset, name) for name, asset in chosen)
    except SceneError as error:
        return SceneRef((), item.id, hints=hints, fault=str(error))
    of_assets = [_number(asset.extra_fields.get("gsd")) or hints.gsd_m for _, asset in chosen]
    finest = min((gsd for gsd in of_assets if gsd), default=None)
    return SceneRef(files, item.id, hints=replace(hints, gsd_m=finest))


def _with_mask(scene: SceneRef, item: pystac.Item, asset: str) -> SceneRef:
    """Return an item's scene with its quality raster, if the user names an asset for it."""
    if not asset or scene.fault:
        return scene
    try:
        file = _file(_asset(item, asset), "")
    except SceneError as error:
        return replace(scene, fault=f"mask.asset: {error}")
    return replace(scene, quality=replace(file, names=()))


def _time(item: pystac.Item) -> datetime | None:
    """Return the time of acquisition in UTC, or its start where an item has a range."""
    time = item.datetime or item.common_metadata.start_datetime
    if time is None:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _chosen(
    item: pystac.Item, choice: Choice, card_bands: Sequence[str | int]
) -> list[tuple[str, pystac.Asset]]:
    """Return the assets to read, each with the name of its one band, or '' for all its bands."""
    if choice.bands:
        return [(name, _band(item, word)) for name, word in choice.bands]
    if choice.asset:
        return [("", _asset(item, choice.asset))]
    rasters = [asset for asset in item.assets.values() if _is_raster(asset)]
    data = [asset for asset in rasters if "data" in (asset.roles or ())] or rasters
    if len(data) == 1:
        return [("", data[0])]
    try:
        if not card_bands:
            raise SceneError("no bands are chosen")
        return [(str(name), _band(item, str(name))) for name in card_bands]
    except SceneError as error:
        keys = ", ".join(item.assets) or "none"
        raise SceneError(
            f"item {item.id}: expected one raster asset, found {len(data)}, and {error}; choose "
            f"with --asset or --bands-from among: {keys}"
        ) from error


def _asset(item: pystac.Item, name: str) -> pystac.Asset:
    if name in item.assets:
        return item.assets[name]
    of_role = [asset for asset in item.assets.values() if name in (asset.roles or ())]
    if len(of_role) != 1:
        keys = ", ".join(item.assets) or "none"
        raise SceneError(
            f"item {item.id}: expected one asset of key or role {name!r}, found {len(of_role)}; "
            f"its assets: {keys}"
        )
    return of_role[0]


def _band(item: pystac.Item, name: str) -> pystac.Asset:
    """Return the asset of one band, by its key or by the name of its only band."""
    if name in item.assets:
        return item.assets[name]
    rasters = [asset for asset in item.assets.values() if _is_raster(asset)]
    matching = [asset for asset in rasters if _is_alone(name.lower(), _bands(asset))]
    if len(matching) != 1:
        keys = ", ".join(item.assets) or "none"
        raise SceneError(
            f"item {item.id}: expected one asset with band {name} alone, found {len(matching)}; "
            f"its assets: {keys}"
        )
    return matching[0]


def _is_alone(name: str, bands: list[tuple[str, ...]]) -> bool:
    return len(bands) == 1 and name in bands[0]


def _bands(asset: pystac.Asset) -> list[tuple[str, ...]]:
    """Return the names of the bands of an asset, in lower case; of STAC 1.0 and 1.1."""
    bands = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or []
    names = [(b.get("eo:common_name"), b.get("common_name"), b.get("name")) for b in bands]
    return [tuple(str(name).lower() for name in each if name) for each in names]


def _file(asset: pystac.Asset, name: str) -> RasterFile:
    refused = asset.extra_fields.get("scenesweep:refused")
    if refused:
        raise SceneError(f"{refused}, which a catalog may not name")
    reason = unsupported(asset.href)
    if reason:
        raise SceneError(reason)
    bands = _bands(asset)
    names = (name,) if name else tuple(band[0] for band in bands if band)
    if not name and len(names) != len(bands):
        names = ()
    return RasterFile(asset.href, names, str(asset.extra_fields.get("file:checksum") or ""))


def _is_raster(asset: pystac.Asset) -> bool:
    if _NOT_DATA & set(asset.roles or ()):
        return False
    kind = (asset.media_type or "").partition(";")[0].strip().lower()
    suffix = Path(without_secrets(asset.href)).suffix.lower()
    return kind in _RASTERS or (not kind and suffix in (".tif", ".tiff", ".jp2"))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
