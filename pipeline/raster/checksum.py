"""Checksums of scenes: they detect changed bytes before a scene is swept.

A checksum comes from a sidecar file (`scene.tif.sha256`, as sha256sum writes it), from the STAC
item (`file:checksum`, a multihash), or from a record of an earlier run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from scenesweep.pipeline.errors import UnreadableScene
from scenesweep.pipeline.raster.opening import is_regular
from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location

_MULTIHASH = {
    "1220": "sha256",
    "1340": "sha512",
    "1114": "sha1",
    "1620": "sha3_256",
    "d50110": "md5",
}
_FIRST_LINE = re.compile(r"[\\]?([0-9a-fA-F]{64})(?:\s|$)")


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest in lower-case hex, and hashlib's name of its algorithm."""

    algorithm: str
    digest: str


def parse_multihash(text: str) -> Checksum | None:
    """Read a multihash in hex, as STAC's `file:checksum`; None for an unknown algorithm."""
    text = text.strip().lower()
    for prefix, algorithm in _MULTIHASH.items():
        digest = text.removeprefix(prefix)
        size = 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size
        if digest != text and re.fullmatch(f"[0-9a-f]{{{size}}}", digest):
            return Checksum(algorithm, digest)
    return None


def given_checksum(href: str) -> Checksum | None:
    """Return the checksum in the sidecar `<href>.sha256`, None without such a file.

    Raises:
        UnreadableScene: when the file has no checksum.
    """
    path = Path(f"{href}.sha256")
    if not is_regular(path):
        return None
    try:
        with path.open("rb") as file:
            match = _FIRST_LINE.match(file.read(1000).decode("utf-8", "replace"))
    except OSError as error:
        raise UnreadableScene(f"{href}: {path.name} cannot be read: {error.strerror}") from error
    if match is None:
        raise UnreadableScene(f"{href}: expected a line of sha256sum in {path.name}, found none")
    return Checksum("sha256", match[1].lower())


def check(href: str, expected: Checksum) -> None:
    """Compare a file with its checksum.

    Raises:
        UnreadableScene: when they differ.
    """
    actual = digest_of(href, expected.algorithm)
    if actual != expected.digest:
        raise UnreadableScene(
            f"{href}: its bytes are not those of its checksum: expected "
            f"{_name(expected.algorithm)} {expected.digest[:16]}…, found {actual[:16]}…"
        )


def check_record(href: str, record: Location, source: str, *, aside: Location) -> None:
    """Record the checksum of a scene at the first run, and compare with it in later runs.

    `source` is the scene's fingerprint: a file of another size or modification time is new.
    `aside` is the folder for the temporary file.

    Raises:
        UnreadableScene: when the bytes changed, but size and modification time did not.
    """
    digest = digest_of(href, "sha256")
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        known, before = recorded["source"], recorded["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        known = before = None
    if known == source and before != digest:
        raise UnreadableScene(
            f"{href}: its bytes changed since they were recorded, its size and time did not: "
            f"expected SHA-256 {str(before)[:16]}…, found {digest[:16]}…"
        )
    if known != source:
        text = json.dumps({"source": source, "sha256": digest})
        with atomic_write(record, aside) as path:
            path.write_text(text + "\n", encoding="utf-8")


def digest_of(href: str, algorithm: str) -> str:
    """Return the digest of a file, in hex.

    Raises:
        UnreadableScene: when it cannot be read to its end.
    """
    try:
        with Path(href).open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UnreadableScene(f"{href}: cannot be read: {error.strerror}") from error


def _name(algorithm: str) -> str:
    return algorithm.upper().replace("SHA256", "SHA-256").replace("SHA512", "SHA-512")
