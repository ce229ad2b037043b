"""What tests share."""

from __future__ import annotations

import re

from scenesweep.pipeline.storage.location import Location

COMPACT = "compact/date=*/detections.parquet"


PLAIN = "detections/date=*/*.parquet"


def date_of(path: Location) -> str:
    """Return the date in the name of a table's folder: YYYY-MM-DD, or `unknown`."""
    return path.parent.name.removeprefix("date=")


def is_day(text: str) -> bool:
    """Say whether a folder's date is a day, and not `unknown`."""
    return re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None
