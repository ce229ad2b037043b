"""S7: a run over scenes that are all up to date, as a command with and without Ray.

python -m benchmarks.up_to_date [SCENES]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, at_most, tell
from benchmarks.pipeline import MODEL, run_command, write_chip
from scenesweep.jobs.suburb import paint_suburb

SIDE_PX = 128
TARGETS_S = {"none": 4.0, "local": 10.0}


def main(scenes: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        across = int(scenes**0.5) + 1
        suburb = paint_suburb(across * SIDE_PX, seed=5)
        for number in range(scenes):
            y, x = (SIDE_PX * place for place in divmod(number, across))
            pixels = suburb.pixels[:, y : y + SIDE_PX, x : x + SIDE_PX]
            write_chip(folder / "scenes" / f"chip-{number:05d}.tif", pixels, x, y)
        figures = [Figure(f"{scenes:,} new scenes", seconds(folder, "none"), "s")]
        for address, most in TARGETS_S.items():
            what = f"the same again, all up to date, --address {address}"
            figures.append(at_most(what, seconds(folder, address), "s", most))
    tell("up-to-date", figures)


def seconds(folder: Path, address: str) -> float:
    """Return the wall-clock time of the whole command, start of Python included."""
    started = time.monotonic()
    out = str(folder / "out")
    run_command(str(folder / "scenes"), "--model", MODEL, "--out", out, "--address", address)
    return time.monotonic() - started


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
