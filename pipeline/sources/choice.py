"""What a user requests: which files or assets make a scene, and the search of a STAC API."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import Field

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.errors import UsageError


class Choice(Frozen):
    """Which of the named files or assets make a scene."""

    asset: str = ""
    """Key or role of the STAC asset to sweep."""
    bands_from: str = ""
    """A file or asset for each band: `B04,B03` in the model's order, or `red=B04` by name."""
    mosaic: str = ""
    """Make one scene of all files, with this id."""
    max_cloud: float | None = Field(None, ge=0, le=100)
    """Leave out items with more cloud cover than this, in percent."""

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
    """A search of a STAC API.

    `bbox` is west, south, east, north in degrees; `datetime` an RFC 3339 time or an interval
    `2026-06-01/2026-06-30`; `query` has conditions such as `eo:cloud_cover<20`.
    """

    url: str
    collections: tuple[str, ...] = ()
    bbox: tuple[float, float, float, float] | None = None
    datetime: str | None = None
    query: tuple[str, ...] = ()
    max_items: int | None = Field(None, ge=1)


@dataclass(frozen=True, slots=True)
class Named:
    """Scenes as a user names them: words of the command line, a choice of files, and a search."""

    words: tuple[str, ...] = ()
    choice: Choice = field(default_factory=Choice)
    search: Search | None = None


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
