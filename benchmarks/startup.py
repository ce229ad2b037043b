"""P11: what the command line costs before it does anything, above a bare Python."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from benchmarks.figures import Figure, at_most, best_of, tell

COMMAND = str(Path(sys.executable).with_name("scenesweep"))
LOADED = """
import sys
sys.argv = {argv}
import scenesweep.jobs.cli
try:
    scenesweep.jobs.cli.main()
except SystemExit:
    pass
print([name for name in ("torch", "ray", "geopandas") if name in sys.modules], file=sys.stderr)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.tif"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "crs": "EPSG:32611"}
        place = from_origin(4e5, 4e6, 0.6, 0.6)
        with rasterio.open(scene, "w", width=2000, height=2000, transform=place, **profile) as out:
            out.write(np.zeros((3, 2000, 2000), np.uint8))
        floor = best_of(5, lambda: run(sys.executable, "-c", "pass"))
        help_s = best_of(5, lambda: run(COMMAND, "--help"))
        inspect_s = best_of(5, lambda: run(COMMAND, "inspect", str(scene)))
        heavy = {
            name: loaded(name, *rest) for name, *rest in (("--help",), ("inspect", str(scene)))
        }
    tell(
        "startup",
        [
            Figure("python -c pass", floor, "s"),
            at_most("scenesweep --help above it", help_s - floor, "s", 0.5),
            at_most("scenesweep inspect above it", inspect_s - floor, "s", 1.0),
        ],
        heavy_modules_loaded=heavy,
    )


def run(*command: str) -> None:
    """Run a command to its end, its output dropped."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def loaded(*argv: str) -> str:
    """Say which of torch, ray and geopandas a command line imports."""
    code = LOADED.format(argv=["scenesweep", *argv])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
