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
    """A raster as it was named: `href` is the whole address, secrets included.

    `names` are those of its bands where whoever named it knows them; else the file says.
    """

    href: str = field(repr=False)
    names: tuple[str, ...] = ()
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Hints:
    """What a catalog says of a scene. Recorded; only the time takes the place of the raster's.

    `item` is the catalog's name of the scene, `collection` that of where it belongs, and
    `cloud_cover` is in percent.
    """

    item: str = ""
    collection: str = ""
    acquired_at: datetime | None = None
    gsd_m: float | None = None
    cloud_cover: float | None = None


@dataclass(frozen=True, slots=True)
class SceneRef:
    """A scene as it was named: its files in order, and what is known of it beforehand.

    Several files are the scene's bands one after the other, or, for `mosaic`, pieces of its
    ground, the first on top. A `fault` says why it cannot be swept. `id_is_final` says that the
    id is the user's own, or decided already: `scenes.ids` does not change it.
    """

    files: tuple[RasterFile, ...]
    id: str = ""
    join: Literal["bands", "mosaic"] = "bands"
    hints: Hints = Hints()
    fault: str = ""
    id_is_final: bool = False

    @classmethod
    def of_file(cls, href: str) -> SceneRef:
        """Return the scene of one file, which is named by its path or address alone."""
        return cls((RasterFile(href),))

    @property
    def scene_id(self) -> str:
        """The given id, made safe for a file name, else the first file's name."""
        return stem(self.id.replace("/", "_") + ".") if self.id else stem(self.files[0].href)

    @property
    def href(self) -> str:
        """What to call the scene where it is spoken of, without secrets."""
        return self.scene_id if len(self.files) != 1 else without_secrets(self.files[0].href)

    def __str__(self) -> str:
        return self.href


_LONGEST_ID = 120  # names made of it stay within the 255 bytes of a file name


@dataclass(frozen=True, slots=True)
class Band:
    """One band: its description ('' when it has none) and colour interpretation, lower case."""

    description: str
    color: str


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a scene, and where its pixels lie among the scene's.

    `href` is the whole address, secrets included: show it through `pipeline.storage.network.shown`.
    The file's upper left corner is at scene pixel (`col_off`, `row_off`), and one of its pixels
    spans `step` scene pixels along columns and rows. `sparse` says that some of its blocks were
    never written: `pipeline.raster.ground` finds out which.
    """

    href: str = field(repr=False)
    width: int
    height: int
    bands: int
    col_off: float = 0
    row_off: float = 0
    step: tuple[float, float] = (1, 1)
    sparse: bool = field(default=False, repr=False)  # a part's repr is in fingerprints


@dataclass(frozen=True, slots=True)
class Scene:
    """A raster, or several files that make one, without any open handle.

    `driver` is the format of the first file, `drivers` are the formats in which its files may be
    opened.
    `transform` maps pixel edges (column, row) to `crs` (WKT); both are None for a raster
    without georeference. `gsd_m` is the length in metres on the ground of one pixel along
    columns and along rows, at the scene's centre. `masked` says whether some pixels may be
    invalid (nodata, alpha, mask, NaN, blocks that were never written, pixels off the Earth);
    `off_earth` that its CRS places some of them nowhere on the Earth. `warnings` say what is odd
    about it, a sentence each. `href` names the scene in what is said and published; its files,
    one or several, are `parts`: their bands one after the other where `join` is `bands`, their
    ground side by side where it is `mosaic`.
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
    """Return the file name without its last suffix, made safe for a file name of our own."""
    name = re.split(r"[/\\]", without_secrets(href).rstrip("/\\"))[-1]
    name = name.rsplit(".", 1)[0] if "." in name[1:] else name
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "scene"
    if len(safe) <= _LONGEST_ID:
        return safe
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return f"{safe[: _LONGEST_ID - 9]}-{digest[:8]}"
