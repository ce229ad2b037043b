"""Arguments of the jobs that take scenes; `jobs.night` makes a night's work of them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe which scenes, and how they are opened: for all jobs that take scenes."""
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help="file, folder, glob, @list.txt")
    parser.add_argument("--config", type=Path, help="a night's work or settings alone (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="one setting; may be repeated"
    )
    parser.add_argument(
        "--driver",
        action="append",
        default=[],
        metavar="NAME",
        help="open this GDAL format too; VRT can read any other file, so it must be named",
    )
    parser.add_argument(
        "--pixel-coordinates",
        action="store_true",
        help="take scenes as plain pictures: boxes in pixels, no GeoJSON",
    )
