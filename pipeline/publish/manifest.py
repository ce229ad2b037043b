"""Manifest of what is published: one list a scene, as `sha256sum` writes and checks it.

    OUT/checksums/<scene_id>.sha256     # cd OUT && sha256sum --check checksums/*.sha256

A scene's list is removed before its files are touched and written when all are in place: where
it stands, they are whole and of one publication. Its first line names the fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, name_in
from scenesweep.pipeline.storage.objects import S3Location
from scenesweep.pipeline.storage.paths import Output

Damage = Literal["missing", "damaged"]

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_HEAD = re.compile(r"# fingerprint ([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Manifest:
    """SHA-256 of a scene's published files by their path under OUT, and their fingerprint."""

    fingerprint: str
    digests: Mapping[str, str]

    def lists(self, path: Location, out: Location) -> bool:
        """Say whether a file below OUT is in the list."""
        return name_in(out, path) in self.digests

    def damage(self, out: Location) -> dict[str, Damage]:
        """Return the files that are not as listed. Reads all of them."""
        return self._unlike(out, sha256)

    def changed(self, out: Location) -> dict[str, Damage]:
        """Return the files that are not as listed; of objects, the SHA-256 put with them counts."""
        return self._unlike(out, known_sha256)

    def _unlike(self, out: Location, digest_of: Callable[[Location], str]) -> dict[str, Damage]:
        found: dict[str, Damage] = {}
        for name, digest in self.digests.items():
            path = out / name
            try:
                there = isinstance(path, S3Location) or path.is_file()
                if there and digest_of(path) != digest:
                    found[name] = "damaged"
            except FileNotFoundError:
                there = False
            if not there:
                found[name] = "missing"
        return found


def write_manifest(
    out: Location, scene_id: str, fingerprint: str, files: Iterable[Location]
) -> None:
    """Write the list of a scene's files, which are in place."""
    lines = [f"# fingerprint {fingerprint}"]
    lines += [f"{known_sha256(path)}  {name_in(out, path)}" for path in files]
    with atomic_write(Output(out).manifest(scene_id), Output(out).aside) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_manifest(path: Location) -> Manifest | None:
    """Read a scene's list; None where there is none or it is not one."""
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    named, entries = _HEAD.fullmatch(head), [_LINE.fullmatch(line) for line in lines]
    if named is None or not entries or not all(entries):
        return None
    return Manifest(named[1], {entry[2]: entry[1] for entry in entries if entry})


def sha256(path: Location) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Location) -> str:
    """Return the SHA-256 of a file; of an object the one that was put with it, if there is one."""
    known = path.put_digest() if isinstance(path, S3Location) else None
    return known or sha256(path)
