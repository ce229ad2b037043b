"""The text of `scenesweep inspect`: one line for each fact about a scene, with units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from scenesweep.pipeline.errors import printable

_SHOWN_PARTS = 10


def scene_text(facts: Mapping[str, Any]) -> str:
    """Return the text for the facts of a scene that `scene_facts` and `cut_facts` return."""
    lines = [(name, text) for name, text in _scene_lines(facts) if text]
    if "cut" in facts:
        lines += [(f"cut {name}", text) for name, text in _cut_lines(facts["cut"])]
    warnings = [("warning", text) for text in facts["warnings"]]
    indented = [f"  {name}: {text}" for name, text in [*lines, *warnings]]
    return "\n".join(printable(line) for line in [str(facts["id"]), *indented])


def _scene_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    block_rows, block_columns = facts["block"]
    parts = facts["parts"]
    several = len(parts) > 1
    return [
        ("file", str(facts["href"]) if not several else ""),
        (f"files ({facts['join']})", _listed(parts) if several else ""),
        ("format", str(facts["driver"])),
        ("size", _size(facts)),
        ("bands", ", ".join(band["description"] or band["color"] for band in facts["bands"])),
        ("data type", str(facts["dtype"])),
        ("nodata", "none" if facts["nodata"] is None else f"{facts['nodata']:g}"),
        ("valid pixels", _valid(facts)),
        ("coordinate system", str(facts["crs"] or "none: boxes are in pixels")),
        ("upper left corner", _corner(facts["transform"])),
        ("ground sample distance", _gsd(facts["gsd_m"])),
        ("acquired", _time(facts["acquired_at"])),
        ("blocks", f"{block_columns:,} x {block_rows:,} px"),
        ("overviews", _overviews(facts["overviews"])),
        ("fingerprint", str(facts["fingerprint"])),
    ]


def _cut_lines(cut: Mapping[str, Any]) -> list[tuple[str, str]]:
    bands = ["missing" if index is None else str(index) for index in cut["bands"]]
    sx, sy = cut["resampled_by"]
    width, height = cut["grid"]
    scale = "not resampled" if (sx, sy) == (1, 1) else f"{sx:g} x {sy:g} scene pixels each"
    return [
        ("bands", ", ".join(bands)),
        ("grid", f"{width:,} x {height:,} px of the model, {scale}"),
        ("chips", f"{cut['chip']} px, margin {cut['margin']} px"),
        ("windows", f"{cut['windows']:,} to look at, {cut['skipped_windows']:,} skipped"),
        ("shards", f"{cut['shards']:,}"),
        ("pixels to read", f"{cut['bytes_to_read'] / 1e6:,.1f} MB"),
    ]


def _size(facts: Mapping[str, Any]) -> str:
    width, height = facts["width"], facts["height"]
    return f"{width:,} x {height:,} px ({facts['megapixels']:,.6g} Mpx)"


def _valid(facts: Mapping[str, Any]) -> str:
    if not facts["masked"]:
        return "all"
    return f"{100 * facts['valid_share']:.4g} % (estimated from a sample)"


def _corner(transform: Sequence[float] | None) -> str:
    return "" if transform is None else f"{transform[2]:.12g}, {transform[5]:.12g}"


def _gsd(gsd_m: Sequence[float] | None) -> str:
    if gsd_m is None:
        return "unknown"
    across, down = (f"{value:.4g}" for value in gsd_m)
    return f"{across} m" if across == down else f"{across} m across, {down} m down"


def _time(time: datetime | None) -> str:
    return "unknown" if time is None else time.isoformat()


def _overviews(factors: Sequence[int]) -> str:
    return ", ".join(f"1:{factor}" for factor in factors) or "none"


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _SHOWN_PARTS
    listed = ", ".join(parts[:_SHOWN_PARTS])
    return listed if more <= 0 else f"{listed} and {more:,} more"
