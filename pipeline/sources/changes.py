"""Notice that the files of a scene changed, without opening them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from scenesweep.pipeline.scene import SceneRef
from scenesweep.pipeline.storage.location import version_of
from scenesweep.pipeline.storage.network import is_remote, without_secrets
from scenesweep.pipeline.storage.remote import version_of as remote_version


@dataclass(frozen=True, slots=True)
class Folders:
    """Listings of folders, each read once: a run may have thousands of scenes in one folder."""

    _listed: dict[Path, dict[str, list[str]]] = field(default_factory=dict)

    def files_of(self, path: Path) -> list[Path]:
        """Return the files whose names begin with the stem of `path` and a dot, sorted.

        These are a raster and its sidecar files.
        """
        folder = path.parent
        if folder not in self._listed:
            by_prefix: dict[str, list[str]] = {}
            for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, not a Path each
                parts = name.split(".")
                for end in range(1, len(parts)):
                    by_prefix.setdefault(".".join(parts[:end]), []).append(name)
            self._listed[folder] = by_prefix
        return [folder / name for name in self._listed[folder].get(path.stem, ())]


def file_versions(ref: SceneRef, folders: Folders | None = None) -> list[tuple[str, ...]]:
    """Return what changes when a file of a scene changes, or a sidecar file of it.

    Of a file on disk, these are sizes and modification times; of a remote one, its size and ETag.

    Raises:
        OSError: when a file on disk does not exist.
        UnreadableScene: when a remote file does not exist, or its server does not answer.
    """
    return [_version(file.href, folders or Folders()) for file in ref.all_files]


def _version(href: str, folders: Folders) -> tuple[str, ...]:
    if is_remote(href):
        version = remote_version(href)
        return without_secrets(href), version.tag, str(version.size)
    path = Path(href)
    path.stat()  # raises if it is missing
    files = {path, *folders.files_of(path)}
    return tuple(f"{file.name} {version_of(file.stat())}" for file in sorted(files))
