"""Arguments of the commands that take scenes; `jobs.shared.run_config` reads them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name scenes and say how to open them."""
    parser.add_argument(
        "scenes",
        nargs="*",
        metavar="SCENE",
        help="scenes: files, folders, globs, https://, s3://, gs:// or az:// addresses, lists "
        "(@list.txt, @list.yaml) or STAC (.json, .geojson, .parquet)",
    )
    _add_choice_arguments(parser)
    parser.add_argument(
        "--config", type=Path, help="run configuration (YAML): scenes, model, output and settings"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="one setting; may be repeated",
    )
    parser.add_argument(
        "--driver",
        action="append",
        default=[],
        metavar="NAME",
        help="also open files of this GDAL format; VRT is off by default, because a VRT file can "
        "make GDAL read any other file",
    )
    parser.add_argument(
        "--pixel-coordinates",
        action="store_true",
        help="treat scenes as plain pictures: boxes are in pixels, and there is no GeoJSON",
    )


def _add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which files make a scene, and those of a STAC search."""
    group = parser.add_argument_group("files of a scene (docs/inputs.md)")
    group.add_argument("--asset", metavar="KEY", help="key or role of the STAC asset to read")
    group.add_argument(
        "--bands-from",
        metavar="B04,B03,...",
        help="each band is a file or a STAC asset of its own: list them in the model's order, or "
        "by name (red=B04,green=B03)",
    )
    group.add_argument("--mosaic", metavar="ID", help="join all files into one scene with this id")
    group.add_argument(
        "--max-cloud", type=float, metavar="PERCENT", help="skip STAC items with more cloud"
    )
    group = parser.add_argument_group("search of a STAC API")
    group.add_argument("--stac-api", metavar="URL", help="address of the API to search")
    group.add_argument("--collections", nargs="+", metavar="ID", help="collections to search")
    group.add_argument(
        "--bbox",
        nargs=4,
        type=float,
        metavar=("WEST", "SOUTH", "EAST", "NORTH"),
        help="area to search, in degrees",
    )
    group.add_argument("--datetime", help="time or interval, such as 2026-06-01/2026-06-30")
    group.add_argument("--query", nargs="+", metavar="COND", help="such as 'eo:cloud_cover<20'")
    group.add_argument("--max-items", type=int, metavar="N", help="largest number of items")
