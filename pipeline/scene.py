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

from affine import Affine

from scenesweep.pipeline.storage.network import is_remote, without_secrets

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
        return self.scene_id if len(self.files) != 1 else without_secrets(self.files[0].href)

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
        return without_secrets(href)
    pairs = query.partition("#")[0].split("&")
    names = {pair.partition("=")[0].lower() for pair in pairs}
    if names & _SIGNED_BY:
        pairs = [pair for pair in pairs if not _is_of_signature(pair)]
    return without_secrets(address) + ("?" + "&".join(pairs) if pairs else "")


def folder_name(address: str) -> str:
    """Return the name of the folder that a file is in; folders such as `R10m` do not count.

    Empty where there is none.
    """
    path = re.sub(r"^[a-z0-9]+://[^/]*", "", without_secrets(address), flags=re.IGNORECASE)
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
