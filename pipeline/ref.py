"""What is asked for: a scene as it was named, before anything of it is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from pipeline.raster.remote import shown
from pipeline.scene import stem


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
    ground, the first on top. A `fault` says why it cannot be swept.
    """

    files: tuple[RasterFile, ...]
    id: str = ""
    join: Literal["bands", "mosaic"] = "bands"
    hints: Hints = Hints()
    fault: str = ""

    @property
    def scene_id(self) -> str:
        """The given id, made safe for a file name, else the first file's name."""
        return stem(self.id.replace("/", "_") + ".") if self.id else stem(self.files[0].href)

    @property
    def href(self) -> str:
        """What to call the scene where it is spoken of, without secrets."""
        return self.scene_id if len(self.files) != 1 else shown(self.files[0].href)

    def __str__(self) -> str:
        return self.href


Asked: TypeAlias = str | SceneRef
"""A scene of one file may be asked for by its path or address alone."""


def as_ref(asked: Asked) -> SceneRef:
    """Return what is asked for in full."""
    return asked if isinstance(asked, SceneRef) else SceneRef((RasterFile(asked),))
