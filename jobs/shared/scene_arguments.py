"""Arguments of the jobs that take scenes; `jobs.shared.run_config` makes a night's work of them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe which scenes, and how they are opened: for all jobs that take scenes."""
    parser.add_argument(
        "scenes",
        nargs="*",
        metavar="SCENE",
        help="file, folder, glob, https:// or s3:// address, @list.txt, @list.yaml, STAC "
        "(.json, .geojson, .parquet)",
    )
    _add_choice_arguments(parser)
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


def _add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe which files make a scene, and how a catalog is searched."""
    group = parser.add_argument_group("which files make a scene (docs/inputs.md)")
    group.add_argument("--asset", metavar="KEY", help="STAC: key or role of the asset to sweep")
    group.add_argument(
        "--bands-from",
        metavar="B04,B03,...",
        help="a file or asset a band, in the model's order, or by name: red=B04,green=B03",
    )
    group.add_argument("--mosaic", metavar="ID", help="all files are one scene")
    group.add_argument(
        "--max-cloud", type=float, metavar="PERCENT", help="STAC: leave items with more out"
    )
    group = parser.add_argument_group("search of a STAC API")
    group.add_argument("--stac-api", metavar="URL")
    group.add_argument("--collections", nargs="+", metavar="ID")
    group.add_argument("--bbox", nargs=4, type=float, metavar=("WEST", "SOUTH", "EAST", "NORTH"))
    group.add_argument("--datetime", help="time or interval, such as 2026-06-01/2026-06-30")
    group.add_argument("--query", nargs="+", metavar="COND", help="such as 'eo:cloud_cover<20'")
    group.add_argument("--max-items", type=int, metavar="N")
