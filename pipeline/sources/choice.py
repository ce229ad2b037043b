"""What a user requests: which files or assets make a scene, and the search of a STAC API."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import Field

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.raster.mask_settings import MaskSettings


class Choice(Frozen):
    """Which of the named files or assets make a scene."""

    asset: str = ""
    """Key or role of the STAC asset to read."""
    bands_from: str = ""
    """One file or asset for each band: `B04,B03` in the model's order, or by name
    `red=B04,green=B03`."""
    mosaic: str = ""
    """Join all files into one scene with this id."""
    max_cloud: float | None = Field(None, ge=0, le=100)
    """Skip STAC items with more cloud, in percent."""

    @property
    def bands(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a band's name, and of its asset or of the word for it in file names.

        Raises:
            UsageError: when `bands_from` has another form.
        """
        return parse_bands(self.bands_from) if self.bands_from else ()

    @property
    def in_model_order(self) -> int:
        """Number of bands that are given in the model's order, without names."""
        return len(self.bands) if "=" not in self.bands_from else 0


class Search(Frozen):
    """A search of a STAC API."""

    url: str
    """Address of the API."""
    collections: tuple[str, ...] = ()
    """Ids of the collections to search. Empty: all."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east and north in degrees."""
    datetime: str | None = None
    """RFC 3339 time, or an interval such as `2026-06-01/2026-06-30`."""
    query: tuple[str, ...] = ()
    """Conditions on properties, such as `eo:cloud_cover<20`."""
    max_items: int | None = Field(None, ge=1)
    """Largest number of items. Empty: all that match."""


@dataclass(frozen=True, slots=True)
class Named:
    """Scenes as a user names them: words of the command line, a choice of files, and a search.

    `mask` says which file or asset is the mask of each scene.
    """

    words: tuple[str, ...] = ()
    choice: Choice = field(default_factory=Choice)
    search: Search | None = None
    mask: MaskSettings = field(default_factory=MaskSettings)


def parse_bands(text: str) -> tuple[tuple[str, str], ...]:
    """Read `red=B04,nir=B08`, or `B04,B08`, where the words are the names as well.

    Raises:
        UsageError: when a part is empty or a name comes twice.
    """
    pairs = []
    for word in text.split(","):
        name, sign, asset = (part.strip() for part in word.partition("="))
        asset = asset if sign else name
        if not name or not asset:
            raise UsageError(f"--bands-from {text}: expected the form B04,B03 or red=B04,green=B03")
        pairs.append((name, asset))
    if len({name.lower() for name, _ in pairs}) < len(pairs):
        raise UsageError(f"--bands-from {text}: a band is named twice")
    return tuple(pairs)
