"""Find the quality raster of a scene: an asset of its STAC item, or a file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from scenesweep.pipeline.raster.mask_settings import MaskSettings
from scenesweep.pipeline.scene import RasterFile, SceneRef
from scenesweep.pipeline.storage.network import is_remote


def with_mask(scene: SceneRef, mask: MaskSettings) -> SceneRef:
    """Return a scene with the file of its mask; it has a fault if there should be one and is none.

    The mask of a STAC item is already known: `pipeline.sources.stac`.
    """
    mask = mask.resolved()
    if scene.fault or scene.quality or not (mask.asset or mask.file) or not scene.files:
        return scene
    if scene.join == "mosaic":
        return _without(scene, "a mosaic can only have bands of its own files as a mask")
    href = scene.files[0].href
    if not mask.file:
        return _without(
            scene, f"mask.asset={mask.asset} is an asset of a STAC item, and this scene is none"
        )
    if is_remote(href):
        return _remote(scene, href, mask.file)
    path, wanted = Path(href), PurePosixPath(mask.file)
    folder = path.parent / wanted.parent
    found = _beside(path.name, folder, wanted.name)
    if found is None:
        return _without(scene, f"no such file {wanted.name} in {folder}{_alike(folder, wanted)}")
    return replace(scene, quality=RasterFile(str(found)))


def without_masks(scenes: Sequence[SceneRef]) -> list[SceneRef]:
    """Return scenes without those that are the mask of another scene, as in one folder."""
    masks = {scene.quality.href for scene in scenes if scene.quality}
    return [s for s in scenes if len(s.files) != 1 or s.files[0].href not in masks]


def _without(scene: SceneRef, why: str) -> SceneRef:
    return replace(scene, fault=f"{scene.href}: expected a mask, found none: {why}")


def _remote(scene: SceneRef, href: str, name: str) -> SceneRef:
    """Return a remote scene with its mask, whose name cannot be searched for."""
    if "*" in name:
        return _without(
            scene, f"{name} can be searched for on disk only; use STAC items and mask.asset"
        )
    address, mark, query = href.partition("?")
    return replace(scene, quality=RasterFile(f"{address.rpartition('/')[0]}/{name}{mark}{query}"))


def _beside(scene_name: str, folder: Path, wanted: str) -> Path | None:
    """Return the file whose `*` is the longest beginning of the scene's name."""
    start, star, end = wanted.partition("*")
    if not star:
        path = folder / wanted
        return path if path.is_file() else None
    for length in range(len(scene_name), 0, -1):
        path = folder / f"{start}{scene_name[:length]}{end}"
        if path.name != scene_name and path.is_file():
            return path
    return None


def _alike(folder: Path, wanted: PurePosixPath) -> str:
    """Return the names that end as the wanted one, for a message."""
    end = wanted.name.rpartition("*")[2].lower()
    if not folder.is_dir():
        return ""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(end))  # noqa: PTH208
    return f"; it has {', '.join(names[:3])}" if names else ""
