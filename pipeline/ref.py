"""What is asked for: a scene as it was named, before anything of it is opened.

A scene's id is decided here, once, before planning: see `identified`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from posixpath import normpath
from typing import Literal, TypeAlias

from pipeline.raster.remote import is_remote, shown
from pipeline.scene import stem

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.]*[A-Za-z0-9])?"
_SHORT_PATH = re.compile(rf"(?:({_WORD})/)?({_WORD})\.tif")
_RESOLUTION_FOLDER = re.compile(r"R\d+m", re.IGNORECASE)
_LONGEST_WORD = 50
_SIGNED_BY = {"sig", "signature", "x-amz-signature", "x-goog-signature"}
_OF_AZURE = {"se", "si", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr"}
_OF_AZURE |= {"sdd", "st", "sv"}
_OF_SIGNATURES = {"awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy"}


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


def identified(ref: SceneRef, ids: Literal["stem", "path"]) -> SceneRef:
    """Return a scene with the id that it keeps, made of its own addresses alone.

    `stem` keeps the given id, or the first file's name. `path` makes `folder-name` of a file
    that is named `folder/name.tif` in letters, digits, `_` and `.`, for such ids are unique. Any
    other scene gets `folder-name-` and 8 hex digits of the SHA-256 of the addresses of all its
    files. An id that the user gave stays. Other scenes of the run have no influence: a scene has
    the same id in every run that names it in the same way.
    """
    if ids == "stem" or ref.id_is_final:
        return ref
    return replace(ref, id=_path_id(ref), id_is_final=True)


def source_address(href: str) -> str:
    """Return an address without user, password and signature; the rest of its query stays.

    What a signed query leaves is what names the file: signatures change from night to night.
    """
    address, mark, query = href.partition("?")
    if not (is_remote(href) and mark):
        return shown(href)
    pairs = query.partition("#")[0].split("&")
    names = {pair.partition("=")[0].lower() for pair in pairs}
    if names & _SIGNED_BY:
        pairs = [pair for pair in pairs if not _is_of_signature(pair)]
    return shown(address) + ("?" + "&".join(pairs) if pairs else "")


def folder_name(address: str) -> str:
    """Return the name of the folder that a file is in; folders such as `R10m` do not count.

    Empty where there is none.
    """
    path = re.sub(r"^[a-z0-9]+://[^/]*", "", shown(address), flags=re.IGNORECASE)
    folders = [name for name in re.split(r"[/\\]", path)[:-1] if name not in ("", ".", "..")]
    named = [name for name in folders if not _RESOLUTION_FOLDER.fullmatch(name)]
    return named[-1] if named else ""


def _is_of_signature(pair: str) -> bool:
    name = pair.partition("=")[0].lower()
    return name in _SIGNED_BY | _OF_SIGNATURES | _OF_AZURE or name.startswith(("x-amz-", "x-goog-"))


def _path_id(ref: SceneRef) -> str:
    if len(ref.files) == 1 and not ref.id:
        short = _SHORT_PATH.fullmatch(normpath(ref.files[0].href))
        if short and len(short[0]) <= 2 * _LONGEST_WORD:
            return "-".join(word for word in short.groups() if word)
    addresses = [source_address(file.href) for file in ref.files]
    told = addresses or [ref.fault, str(ref.hints)]  # a scene without files has its fault
    digest = hashlib.sha256("\n".join(told).encode(errors="surrogateescape")).hexdigest()
    words = [folder_name(addresses[0]) if addresses else "", ref.scene_id]
    words = [stem(f"{word[:_LONGEST_WORD]}.") for word in dict.fromkeys(words) if word]
    return "-".join([*words, digest[:8]])
