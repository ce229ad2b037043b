"""Find scenes: turn the words of a command line into requested scenes with final ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.settings import SceneSettings
from scenesweep.pipeline.sources.bands import group_bands
from scenesweep.pipeline.sources.choice import Choice, Named, Search
from scenesweep.pipeline.sources.files import check_address, expand
from scenesweep.pipeline.sources.ids import identified
from scenesweep.pipeline.sources.lists import read_entries
from scenesweep.pipeline.sources.masks import with_mask, without_masks
from scenesweep.pipeline.storage.network import without_secrets
from scenesweep.pipeline.storage.remote import local_file


def find_scenes(
    named: Named, settings: SceneSettings | None = None, *, card_bands: Sequence[str | int] = ()
) -> list[SceneRef]:
    """Return the scenes of files, folders, globs, addresses, lists and STAC, in order.

    `.json` and `.geojson` are STAC, `.parquet` is stac-geoparquet, and `@list.yaml` has an entry
    for each scene; `expand` handles all other words. Items of a search come last. A scene that is
    named twice counts once. `settings` default to `SceneSettings()`. `card_bands` select the
    assets of STAC items when the user chooses none.

    Raises:
        UsageError: when a word cannot be read, or has no scene.
    """
    scenes: dict[SceneRef, None] = {}
    plain: list[str] = []
    choice, settings = named.choice, settings or SceneSettings()
    for name in named.words:
        if name.startswith("@") and name.lower().endswith((".yaml", ".yml")):
            scenes |= dict.fromkeys(read_entries(local_file(name[1:])))
        elif _suffix(name) in (".json", ".geojson", ".parquet"):
            check_address(name)
            scenes |= dict.fromkeys(_of_catalog(name, named, card_bands))
        else:
            plain += expand([name], settings.drivers)
    scenes |= dict.fromkeys(_of_files(list(dict.fromkeys(plain)), choice))
    if named.search is not None:
        scenes |= dict.fromkeys(_of_search(named.search, named, card_bands))
    if choice.mosaic:
        mosaic = _mosaicked(list(scenes), choice.mosaic)
        return [with_mask(scene, named.mask) for scene in mosaic]
    return without_masks(
        [with_mask(identified(scene, settings.ids), named.mask) for scene in scenes]
    )


def _of_catalog(name: str, named: Named, card_bands: Sequence[str | int]) -> list[SceneRef]:
    from scenesweep.pipeline.sources.stac import read_items, scenes_of  # pystac is slow to import

    return scenes_of(read_items(name), named, card_bands)


def _of_search(search: Search, named: Named, card_bands: Sequence[str | int]) -> list[SceneRef]:
    from scenesweep.pipeline.sources.search import search_items
    from scenesweep.pipeline.sources.stac import scenes_of

    return scenes_of(search_items(search), named, card_bands)


def _of_files(hrefs: Sequence[str], choice: Choice) -> list[SceneRef]:
    if choice.bands and hrefs:
        return group_bands(hrefs, choice.bands)
    return [SceneRef.of_file(href) for href in hrefs]


def _mosaicked(scenes: Sequence[SceneRef], name: str) -> list[SceneRef]:
    """Make one scene of all files; no scene when there is none, as when all are too cloudy."""
    if not scenes:
        return []
    for scene in scenes:
        if scene.fault:
            raise UsageError(f"--mosaic {name}: {scene.fault}")
        if len(scene.files) > 1:
            raise UsageError(f"--mosaic {name}: {scene.href} has its bands in several files")
    files = tuple(file for scene in scenes for file in scene.files)
    times = [scene.hints.acquired_at for scene in scenes if scene.hints.acquired_at]
    hints = replace(scenes[0].hints, acquired_at=min(times, default=None), cloud_cover=None)
    return [SceneRef(files, name, "mosaic", hints, id_is_final=True)]


def _suffix(name: str) -> str:
    return Path(without_secrets(name)).suffix.lower()
