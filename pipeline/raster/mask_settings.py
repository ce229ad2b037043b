"""Settings of the quality raster that says which ground clouds or snow hide, and its presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scenesweep.model.architecture import Frozen

Preset = Literal["sentinel2-scl", "landsat-qa", "planet-udm2", "hls-fmask"]
PRESETS: dict[Preset, dict[str, Any]] = {
    # ESA, Sentinel-2 Products Specification Document, scene classification: 3 cloud shadow,
    # 8 and 9 cloud of medium and high probability, 10 thin cirrus
    "sentinel2-scl": {"asset": "scl", "file": "*_SCL_20m.jp2", "values": (3, 8, 9, 10)},
    # USGS LSDS-1619, Landsat 8-9 Collection 2 Level 2, QA_PIXEL: 1 dilated cloud, 2 cirrus,
    # 3 cloud, 4 cloud shadow
    "landsat-qa": {"asset": "qa_pixel", "file": "*_QA_PIXEL.TIF", "bits": (1, 2, 3, 4)},
    # Planet, UDM 2 product specification: bands 3 shadow, 5 heavy haze, 6 cloud; 1 means yes
    "planet-udm2": {"asset": "udm2", "file": "*_udm2.tif", "bands": (3, 5, 6), "values": (1,)},
    # NASA, HLS Product User Guide v2, Fmask: 1 cloud, 2 adjacent to cloud or shadow, 3 shadow
    "hls-fmask": {"asset": "Fmask", "file": "*.Fmask.tif", "bits": (1, 2, 3)},
}
_DECIDES = ("asset", "file", "bands", "values", "bits")


class MaskSettings(Frozen):
    """A quality raster for each scene, whose pixels say which ground clouds, shadows or snow hide.

    It may have any resolution and CRS. It is an asset of the STAC item, a file beside the scene, or
    a band of the scene: the first of these that is set. Without it, no ground is masked.
    """

    preset: Preset | None = None
    """Values for a sensor: `asset`, `file`, `bands`, `values` and `bits`. Those that you set win.
    If you set `values` or `bits`, the preset gives neither."""
    asset: str = ""
    """Key or role of the asset of each STAC item."""
    file: str = ""
    """Name of the file for scenes that come from no STAC item. It may have one `*`, which stands
    for the beginning of the scene's own file name: with `*_udm2.tif`, `a_b_udm2.tif` belongs to
    `a_b_SR.tif`. A folder before it starts at the folder of the scene, as in
    `../R20m/*_SCL_20m.jp2`."""
    bands: tuple[str | int, ...] = ()
    """Names or 1-based indices of the bands of the quality raster. If neither `asset` nor `file`
    is set, bands of the scene itself. Empty: 1."""
    values: tuple[int, ...] = ()
    """Values of masked pixels."""
    bits: tuple[Annotated[int, Field(ge=0, le=31)], ...] = ()
    """Bits that are set in masked pixels; 0 is the lowest."""
    policy: Literal["flag", "drop"] = "flag"
    """`flag`: publish all detections; the column `masked` says how much of each is masked. `drop`:
    skip windows that are masked completely, and drop detections by `drop_above`."""
    drop_above: float = Field(0.5, ge=0, lt=1)
    """With the policy `drop`, a detection is dropped if more than this share of its box is
    masked."""

    @model_validator(mode="after")
    def _rule_is_complete(self) -> Self:
        wanted = self.asset or self.file or self.bands
        if self.preset is None and wanted and not (self.values or self.bits):
            raise ValueError("expected values or bits of masked pixels (mask.values, mask.bits)")
        if self.preset is None and (self.values or self.bits) and not wanted:
            raise ValueError(
                "expected where the mask is: mask.asset, mask.file, or mask.bands of the scene"
            )
        return self

    @property
    def is_set(self) -> bool:
        """Say whether scenes have a mask."""
        return bool(self.preset or self.asset or self.file or self.bands)

    def resolved(self) -> MaskSettings:
        """Return these settings with the values of the preset."""
        if self.preset is None:
            return self
        given = {name: getattr(self, name) for name in _DECIDES if getattr(self, name)}
        preset = PRESETS[self.preset]
        if self.values or self.bits:
            preset = {name: preset[name] for name in preset if name not in ("values", "bits")}
        return self.model_copy(update=preset | given)
