"""Arguments of the jobs that take scenes, and the settings that follow from them."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.settings import Settings, load_settings


def add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe which scenes, and how they are opened: for all jobs that take scenes."""
    parser.add_argument("scenes", nargs="+", metavar="SCENE", help="file, folder, glob, @list.txt")
    parser.add_argument("--config", type=Path, help="settings (YAML)")
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


def settings_from(arguments: argparse.Namespace) -> Settings:
    """Put the command line's settings over those of the file."""
    settings = load_settings(arguments.config, arguments.set)
    scenes = settings.scenes.model_copy(
        update={
            "drivers": tuple(dict.fromkeys([*settings.scenes.drivers, *arguments.driver])),
            "pixel_coordinates": settings.scenes.pixel_coordinates or arguments.pixel_coordinates,
        }
    )
    return settings.model_copy(update={"scenes": scenes})
