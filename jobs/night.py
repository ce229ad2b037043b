"""A night's work in one file: what `detect` is told on the command line, and every setting."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from pipeline.errors import UsageError
from pipeline.retain import Retention
from pipeline.settings import Settings, settings_tree, validated

T = TypeVar("T")


class Night(Settings):
    """The tree of `--config`. The command line wins over it.

    Relative paths are taken from the working directory, as on the command line.
    """

    sources: tuple[str, ...] = ()
    """Scenes: files, folders, globs, `@list.txt`."""
    model: str | None = Field(None, min_length=1)
    out: str | None = Field(None, min_length=1)
    aoi: Path | None = None
    address: str | None = None
    retention: Retention = Retention()

    @property
    def settings(self) -> Settings:
        """The settings alone: what a run's fingerprint may depend on."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def read_night(arguments: argparse.Namespace) -> Night:
    """Read `--config`, put `--set` over it, and the other arguments over both.

    Raises:
        UsageError: for a missing file, an unknown key or a value of the wrong kind.
    """
    night = validated(Night, settings_tree(arguments.config, arguments.set))
    given: dict[str, Any] = {"sources": tuple(arguments.scenes)}
    given |= {name: getattr(arguments, name, None) for name in ("model", "out", "aoi", "address")}
    changes = {name: value for name, value in given.items() if value}
    scenes = night.scenes.model_copy(
        update={
            "drivers": tuple(dict.fromkeys([*night.scenes.drivers, *arguments.driver])),
            "pixel_coordinates": night.scenes.pixel_coordinates or arguments.pixel_coordinates,
        }
    )
    return night.model_copy(update=changes | {"scenes": scenes})


def required(value: T | None, key: str, option: str) -> T:
    """Return what the command line or the file must say.

    Raises:
        UsageError: when neither does.
    """
    if not value:
        raise UsageError(f"expected {option}, or `{key}` in --config, found neither")
    return value
