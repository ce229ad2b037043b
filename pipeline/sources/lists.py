"""Read lists of scenes in YAML: scenes of several files, with ids and times."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from scenesweep.model.architecture import Frozen
from scenesweep.model.card import explain
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.scene import Hints, RasterFile, SceneRef
from scenesweep.pipeline.sources.files import check_address


class Entry(Frozen):
    """One scene: a file, a file for each band, or the files of a mosaic."""

    file: str | None = None
    bands: dict[str, str] = Field(default_factory=dict)
    mosaic: tuple[str, ...] = ()
    id: str = ""
    acquired_at: datetime | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Entry:
        if sum(map(bool, (self.file, self.bands, self.mosaic))) != 1:
            raise ValueError("expected one of file, bands and mosaic")
        if not (self.file or self.id):
            raise ValueError("a scene of several files needs an id")
        return self

    def ref(self) -> SceneRef:
        """Return the requested scene."""
        time = self.acquired_at
        if time is not None:
            time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if self.bands:
            files = tuple(RasterFile(href, (name,)) for name, href in self.bands.items())
        else:
            hrefs = (self.file,) if self.file else self.mosaic
            files = tuple(RasterFile(href) for href in hrefs)
        join: Literal["bands", "mosaic"] = "mosaic" if self.mosaic else "bands"
        return SceneRef(files, self.id, join, Hints(acquired_at=time), id_is_final=bool(self.id))


def read_entries(path: Path) -> list[SceneRef]:
    """Read a YAML list of scenes; each entry is a path or the fields of `Entry`.

    Raises:
        UsageError: when the list cannot be read, or an entry is wrong.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"@{path}: expected a YAML list of scenes: {reason}") from error
    if not isinstance(tree, list) or not tree:
        raise UsageError(f"@{path}: expected a YAML list of scenes, found {type(tree).__name__}")
    entries = [{"file": entry} if isinstance(entry, str) else entry for entry in tree]
    try:
        refs = [entry.ref() for entry in TypeAdapter(list[Entry]).validate_python(entries)]
    except ValidationError as error:
        raise UsageError(f"@{path}: {explain(error, Entry)}") from error
    for file in (file for ref in refs for file in ref.files):
        _check_file(path, file.href)
    return refs


def _check_file(path: Path, href: str) -> None:
    """Refuse a list, and an address of a kind that is not read."""
    if href.startswith("@"):
        raise UsageError(
            f"@{path}: expected the file of a scene, found the list {href}; name it by itself"
        )
    try:
        check_address(href)
    except UsageError as error:
        raise UsageError(f"@{path}: {error}") from error
