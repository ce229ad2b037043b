"""Group files of single bands into scenes, by the word for the band in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.scene import RasterFile, SceneRef
from scenesweep.pipeline.storage.network import without_secrets

_BETWEEN = re.compile(r"[_.\-]")
_METRES = re.compile(r"(\d+)m", re.IGNORECASE)
_FOLDER = re.compile(r"R\d+m", re.IGNORECASE)


def group_bands(hrefs: Sequence[str], bands: Sequence[tuple[str, str]]) -> list[SceneRef]:
    """Return one scene for all files whose names differ only in the band.

    `bands` are pairs of a band's name and of the word for it in file names, between `_`, `-` and
    `.`: `B04` in `T32TQM_20260101_B04_10m.jp2`. Words and folders for the resolution (`10m`,
    `R10m`) do not count, and the finest of several resolutions is used. Other files are left out.
    A scene without one of its bands has a fault.

    Raises:
        UsageError: when no file name has such a word.
    """
    scenes: dict[tuple[str, str], dict[str, tuple[int, str]]] = {}
    words = {word.lower(): name for name, word in bands}
    for href in hrefs:
        folder, key, band, metres = _parse(href, words)
        if band:
            of_scene = scenes.setdefault((folder, key), {})
            of_scene[band] = min(of_scene.get(band, (metres, href)), (metres, href))
    if not scenes:
        raise UsageError(
            f"--bands-from: expected file names with {', '.join(word for _, word in bands)}, "
            f"found none among {len(hrefs):,} files, such as {without_secrets(hrefs[0])}"
        )
    return [_scene(folder, key, files, bands) for (folder, key), files in scenes.items()]


def _parse(href: str, words: dict[str, str]) -> tuple[str, str, str, int]:
    """Return the folder, the name without its band, the band and the resolution of a file."""
    path = PurePosixPath(without_secrets(href))
    parts = _BETWEEN.split(path.stem)
    matches = [part for part in parts if part.lower() in words]
    metres = [int(match[1]) for part in parts if (match := _METRES.fullmatch(part))]
    rest = [p for p in parts if p.lower() not in words and not _METRES.fullmatch(p)]
    folder = path.parent.parent if _FOLDER.fullmatch(path.parent.name) else path.parent
    band = words[matches[-1].lower()] if matches else ""
    return str(folder), "_".join(rest), band, metres[0] if metres else 0


def _scene(
    folder: str,
    key: str,
    files: dict[str, tuple[int, str]],
    bands: Sequence[tuple[str, str]],
) -> SceneRef:
    scene_id = key or PurePosixPath(folder).name or "scene"
    missing = [word for name, word in bands if name not in files]
    if missing:
        present = ", ".join(without_secrets(href) for _, href in files.values())
        fault = f"{scene_id}: no file of {', '.join(missing)} beside {present}"
        return SceneRef((), scene_id, fault=fault)
    return SceneRef(tuple(RasterFile(files[name][1], (name,)) for name, _ in bands), scene_id)
