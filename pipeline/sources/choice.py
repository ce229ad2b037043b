"""Which of the files that are named make a scene, and what a catalog is searched for."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import Field

from scenesweep.model.architecture import Frozen
from scenesweep.pipeline.errors import UsageError


class Choice(Frozen):
    """Which of the files that are named make a scene."""

    asset: str = ""
    """Key or role of the STAC asset to sweep."""
    bands_from: str = ""
    """A file or asset a band: `B04,B03` in the model's order, or `red=B04,green=B03` by name."""
    mosaic: str = ""
    """All files are one scene of this id."""
    max_cloud: float | None = Field(None, ge=0, le=100)
    """Leave items out that say they have more cloud, in percent."""

    @property
    def bands(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a band's name and of what says where it is.

        Raises:
            UsageError: when `bands_from` has another form.
        """
        return parse_bands(self.bands_from) if self.bands_from else ()

    @property
    def in_model_order(self) -> int:
        """How many bands are given in the model's order, without names."""
        return len(self.bands) if "=" not in self.bands_from else 0


class Search(Frozen):
    """What a STAC API is asked for.

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
    """Scenes as a user names them: words, which files of them make a scene, and a search."""

    words: tuple[str, ...] = ()
    choice: Choice = field(default_factory=Choice)
    search: Search | None = None


def parse_bands(text: str) -> tuple[tuple[str, str], ...]:
    """Read `red=B04,nir=B08`; `B04,B08` names bands by where they are.

    Raises:
        UsageError: when a part is empty or a name comes twice.
    """
    pairs = []
    for word in text.split(","):
        name, sign, place = (part.strip() for part in word.partition("="))
        place = place if sign else name
        if not name or not place:
            raise UsageError(f"--bands-from {text}: expected the form B04,B03 or red=B04,green=B03")
        pairs.append((name, place))
    if len({name.lower() for name, _ in pairs}) < len(pairs):
        raise UsageError(f"--bands-from {text}: a band is named twice")
    return tuple(pairs)
