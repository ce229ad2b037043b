"""The id of a scene: decided once, before its files are opened, from its name and addresses."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from posixpath import normpath
from typing import Literal

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.scene import SceneRef, stem
from scenesweep.pipeline.storage.network import is_remote, without_secrets

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.]*[A-Za-z0-9])?"
_SHORT_PATH = re.compile(rf"(?:({_WORD})/)?({_WORD})\.tif")
_RESOLUTION_FOLDER = re.compile(r"R\d+m", re.IGNORECASE)
_LONGEST_WORD = 50

_SIGNATURES = {"sig", "signature", "x-amz-signature", "x-goog-signature"}
"""Query parameters that show that an address is signed."""
_OF_AZURE = {"se", "si", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr"}
_OF_AZURE |= {"sdd", "st", "sv"}
_OF_SIGNATURES = {"awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy"}


def check_ids(scenes: Sequence[SceneRef]) -> None:
    """Refuse scenes with equal ids: their files would overwrite each other.

    Raises:
        UsageError: with the names of two such scenes.
    """
    by_id = defaultdict(list)
    for scene in scenes:
        by_id[scene.scene_id].append(scene)
    for scene_id, same in by_id.items():
        if len(same) > 1:
            first, second = (
                without_secrets(ref.files[0].href) if ref.files else ref.id for ref in same[:2]
            )
            raise UsageError(
                f"{first} and {second} would both be scene {scene_id!r}: rename one, use "
                "--set scenes.ids=path, or list them in @scenes.yaml, each with its `id:`"
            )


def identified(ref: SceneRef, ids: Literal["stem", "path"]) -> SceneRef:
    """Return a scene with its final id, which depends only on its own name and addresses.

    `stem` keeps the given id, or else the first file's name. `path` gives `folder-name` to a file
    that is named `folder/name.tif` in letters, digits, `_` and `.`, because such ids are unique.
    Other scenes get `folder-name-` and 8 hex digits of the SHA-256 of the addresses of all their
    files. An id that the user gave stays. Other scenes of the run have no influence, so a scene
    has the same id in every run that names it in the same way.
    """
    if ids == "stem" or ref.id_is_final:
        return ref
    return replace(ref, id=_path_id(ref), id_is_final=True)


def source_address(href: str) -> str:
    """Return an address without user, password and signature, but with the rest of its query.

    The rest identifies the file; a signature changes whenever an address is signed again.
    """
    address, mark, query = href.partition("?")
    if not (is_remote(href) and mark):
        return without_secrets(href)
    pairs = query.partition("#")[0].split("&")
    names = {pair.partition("=")[0].lower() for pair in pairs}
    if names & _SIGNATURES:
        pairs = [pair for pair in pairs if not _is_of_signature(pair)]
    return without_secrets(address) + ("?" + "&".join(pairs) if pairs else "")


def folder_name(address: str) -> str:
    """Return the name of a file's folder, or ''; folders such as `R10m` do not count."""
    path = re.sub(r"^[a-z0-9]+://[^/]*", "", without_secrets(address), flags=re.IGNORECASE)
    folders = [name for name in re.split(r"[/\\]", path)[:-1] if name not in ("", ".", "..")]
    counted = [name for name in folders if not _RESOLUTION_FOLDER.fullmatch(name)]
    return counted[-1] if counted else ""


def _is_of_signature(pair: str) -> bool:
    name = pair.partition("=")[0].lower()
    return name in _SIGNATURES | _OF_SIGNATURES | _OF_AZURE or name.startswith(
        ("x-amz-", "x-goog-")
    )


def _path_id(ref: SceneRef) -> str:
    if len(ref.files) == 1 and not ref.id:
        short = _SHORT_PATH.fullmatch(normpath(ref.files[0].href))
        if short and len(short[0]) <= 2 * _LONGEST_WORD:
            return "-".join(word for word in short.groups() if word)
    addresses = [source_address(file.href) for file in ref.files]
    hashed = addresses or [ref.fault, str(ref.hints)]  # a scene with a fault has no files
    digest = hashlib.sha256("\n".join(hashed).encode(errors="surrogateescape")).hexdigest()
    words = [folder_name(addresses[0]) if addresses else "", ref.scene_id]
    words = [stem(f"{word[:_LONGEST_WORD]}.") for word in dict.fromkeys(words) if word]
    return "-".join([*words, digest[:8]])
