"""The manifest of a scene: its published files with their SHA-256, in the form of `sha256sum`.

    OUT/checksums/<scene_id>.sha256     # cd OUT && sha256sum --check checksums/*.sha256

The manifest is deleted before the scene's files change and written after all of them; if it
exists, all files are complete and from one publication. Its first line is the fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from scenesweep.pipeline.storage.commit import atomic_write
from scenesweep.pipeline.storage.location import Location, name_in
from scenesweep.pipeline.storage.objects import ObjectLocation
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
        """Say whether the manifest lists a file."""
        return name_in(out, path) in self.digests

    def damage(self, out: Location) -> dict[str, Damage]:
        """Return the files that are missing or differ from the manifest. Reads all files."""
        return self._differing(out, sha256)

    def changed(self, out: Location) -> dict[str, Damage]:
        """Return the files that are missing or differ from the manifest.

        The content of an object in a cloud is not read: its stored SHA-256 is compared.
        """
        return self._differing(out, known_sha256)

    def _differing(self, out: Location, digest_of: Callable[[Location], str]) -> dict[str, Damage]:
        damage: dict[str, Damage] = {}
        for name, digest in self.digests.items():
            path = out / name
            try:
                exists = isinstance(path, ObjectLocation) or path.is_file()
                if exists and digest_of(path) != digest:
                    damage[name] = "damaged"
            except FileNotFoundError:
                exists = False
            if not exists:
                damage[name] = "missing"
        return damage


def write_manifest(
    out: Location, scene_id: str, fingerprint: str, digests: Mapping[Location, str]
) -> None:
    """Write the manifest of a scene, whose files are in place, given their SHA-256."""
    lines = [f"# fingerprint {fingerprint}"]
    lines += [f"{digest}  {name_in(out, path)}" for path, digest in digests.items()]
    with atomic_write(Output(out).manifest(scene_id), Output(out).aside) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_manifest(path: Location) -> Manifest | None:
    """Read a manifest; None when it does not exist or is damaged."""
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
    """Return the SHA-256 of a file; for an object in a cloud the stored one, if there is one."""
    known = path.put_digest() if isinstance(path, ObjectLocation) else None
    return known or sha256(path)
