"""Scenes as values: a requested scene before any file is opened, and a scene after inspection.

`pipeline.sources.ids` decides the id of a scene, before planning.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from affine import Affine

from scenesweep.pipeline.storage.network import without_secrets


@dataclass(frozen=True, slots=True)
class RasterFile:
    """A requested raster file. `href` is the full address, with its secrets.

    `names` are the names of its bands where the user or a catalog gives them; where it is empty,
    the file's own descriptions apply.
    """

    href: str = field(repr=False)
    names: tuple[str, ...] = ()
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Hints:
    """What a catalog says about a scene. It is all recorded; only the time replaces the raster's.

    `item` is the id of the STAC item, `collection` the id of its collection, and `cloud_cover` is
    in percent.
    """

    item: str = ""
    collection: str = ""
    acquired_at: datetime | None = None
    gsd_m: float | None = None
    cloud_cover: float | None = None


@dataclass(frozen=True, slots=True)
class SceneRef:
    """A requested scene: its files in order, and facts that are known before they are opened.

    The bands of several files follow one another; for `mosaic` the files are pieces of the ground,
    and the first file wins where they overlap. A `fault` is the reason why the scene cannot be
    swept. `id_is_final` means that the user gave the id, or that it is decided already:
    `scenes.ids` does not change it. `quality` is the raster that says what clouds hide.
    """

    files: tuple[RasterFile, ...]
    id: str = ""
    join: Literal["bands", "mosaic"] = "bands"
    hints: Hints = Hints()
    fault: str = ""
    id_is_final: bool = False
    quality: RasterFile | None = None

    @classmethod
    def of_file(cls, href: str) -> SceneRef:
        """Return the scene of one file, which is named by its path or address alone."""
        return cls((RasterFile(href),))

    @property
    def scene_id(self) -> str:
        """The given id, made safe for a file name; without one, the first file's name."""
        return stem(self.id.replace("/", "_") + ".") if self.id else stem(self.files[0].href)

    @property
    def all_files(self) -> tuple[RasterFile, ...]:
        """The files of the scene, and its quality raster."""
        return self.files if self.quality is None else (*self.files, self.quality)

    @property
    def href(self) -> str:
        """The scene's name in logs, messages and reports, without secrets."""
        return self.scene_id if len(self.files) != 1 else without_secrets(self.files[0].href)

    def __str__(self) -> str:
        return self.href


_LONGEST_ID = 120  # file names that contain an id stay within 255 bytes


@dataclass(frozen=True, slots=True)
class Band:
    """One band: its description ('' when it has none) and colour interpretation, lower case."""

    description: str
    color: str


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a scene, and where its pixels lie among the scene's.

    `href` is the full address, with its secrets: pass it through
    `pipeline.storage.network.without_secrets` before you show it.
    The file's upper left corner is at scene pixel (`col_off`, `row_off`), and one of its pixels
    spans `step` scene pixels along columns and rows. `sparse` means that some of its blocks were
    never written; `pipeline.raster.ground` masks them. `overviews` are their factors.
    `version` is the ETag and size of a remote file when it was inspected.
    """

    href: str = field(repr=False)
    width: int
    height: int
    bands: int
    col_off: float = 0
    row_off: float = 0
    step: tuple[float, float] = (1, 1)
    sparse: bool = field(default=False, repr=False)  # a part's repr is in fingerprints
    overviews: tuple[int, ...] = field(default=(), repr=False)
    version: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Scene:
    """A raster, or several files that make one, without any open handle.

    `driver` is the format of the first file, `drivers` are the formats in which its files may be
    opened.
    `transform` maps pixel edges (column, row) to `crs` (WKT); both are None for a raster
    without georeference. `gsd_m` is the length in metres on the ground of one pixel along
    columns and along rows, at the scene's centre. `masked` says whether some pixels may be
    invalid (nodata, alpha, mask, NaN, blocks that were never written, pixels off the Earth), and
    `off_earth` whether its CRS places some of them nowhere on the Earth. Each of the `warnings` is
    a sentence. `href` names the scene in messages and published files. `parts` are its files: for
    `join` `bands` their bands follow one another, for `mosaic` they lie side by side.
    """

    id: str
    href: str
    driver: str
    drivers: tuple[str, ...]
    width: int
    height: int
    bands: tuple[Band, ...]
    dtype: str
    nodata: float | None
    masked: bool
    crs: str | None
    transform: Affine | None
    gsd_m: tuple[float, float] | None
    acquired_at: datetime | None
    overviews: tuple[int, ...]
    block: tuple[int, int]
    fingerprint: str
    warnings: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    join: Literal["bands", "mosaic"] = "bands"
    off_earth: bool = False

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6


def stem(href: str) -> str:
    """Return the file name without its last suffix, made safe for the name of an output file."""
    name = re.split(r"[/\\]", without_secrets(href).rstrip("/\\"))[-1]
    name = name.rsplit(".", 1)[0] if "." in name[1:] else name
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "scene"
    if len(safe) <= _LONGEST_ID:
        return safe
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return f"{safe[: _LONGEST_ID - 9]}-{digest[:8]}"
