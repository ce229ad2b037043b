"""A night's work in one file: what `detect` is told on the command line, and every setting."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from scenesweep.pipeline.errors import UsageError
from scenesweep.pipeline.runs.retention import Retention
from scenesweep.pipeline.settings import Settings, settings_tree, validated
from scenesweep.pipeline.sources import Choice, Named, Search

T = TypeVar("T")

ENVIRONMENT = {
    "GDAL_HTTP_TIMEOUT": "Seconds to wait for an answer over the network. Default: 60.",
    "GDAL_HTTP_CONNECTTIMEOUT": "Seconds to wait for a connection. Default: 10.",
    "GDAL_HTTP_MAX_RETRY": "Number of retries after a failed request. Default: 4.",
    "GDAL_HTTP_RETRY_DELAY": "Seconds before the first retry. Default: 1.",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION": (
        "Credentials, profile and region for S3, as for every AWS tool. Profiles in `~/.aws` and "
        "the role of the machine work too."
    ),
    "AWS_NO_SIGN_REQUEST": "`YES` reads open buckets without credentials.",
    "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL": "Address of an S3 service other than Amazon's.",
    "AWS_S3_ENDPOINT, AWS_HTTPS, AWS_VIRTUAL_HOSTING": "The same in GDAL's words.",
    "RAY_ADDRESS": "Cluster to use when `--address` is not given; `ray job submit` sets it.",
    "RAY_JOB_STOP_WAIT_TIME_S": (
        "Seconds from SIGTERM to SIGKILL after `ray job stop`. Default: 3. The current piece "
        "gets half of it, unless `engine.stop_grace_s` is set."
    ),
}
"""Environment variables that a run reads; set those of the network on the workers too."""
_OPTIONS = ("model", "out", "aoi", "address", "allow_failed")


class RunConfig(Settings):
    """The tree of `--config`. The command line wins over it.

    Relative paths are taken from the working directory, as on the command line.
    """

    sources: tuple[str, ...] = ()
    """Scenes: whatever docs/inputs.md has."""
    choose: Choice = Choice()
    search: Search | None = None
    model: str | None = Field(None, min_length=1)
    out: str | None = Field(None, min_length=1)
    aoi: Path | None = None
    address: str | None = None
    retention: Retention = Retention()
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """What monitoring calls this night; with a name there is OUT/runs/NAME.prom."""
    allow_failed: int | str = Field(0)
    """Scenes that may fail without the run's exit code saying so: a number, or `5%`."""
    quarantine_after: int | None = Field(None, ge=1)
    """Failures in a row for one reason after which a scene is not tried until it changes."""

    @property
    def settings(self) -> Settings:
        """The settings alone: what a run's fingerprint may depend on."""
        given = {name: getattr(self, name) for name in Settings.model_fields}
        count = self.choose.in_model_order
        if count and self.read.bands is None:
            in_order = {"bands": tuple(range(1, count + 1))}
            given["read"] = self.read.model_copy(update=in_order)
        return Settings(**given)

    @property
    def named(self) -> Named:
        """The scenes as they are named.

        Raises:
            UsageError: when none are.
        """
        if not (self.sources or self.search):
            raise UsageError("expected SCENE, --stac-api, or `sources` in --config, found none")
        return Named(self.sources, self.choose, self.search)


def read_run_config(arguments: argparse.Namespace) -> RunConfig:
    """Read `--config`, put `--set` over it, and the other arguments over both.

    Raises:
        UsageError: for a missing file, an unknown key or a value of the wrong kind.
    """
    tree = settings_tree(arguments.config, arguments.set)
    _put(tree, "choose", arguments, dict.fromkeys(Choice.model_fields))
    _put(tree, "search", arguments, dict.fromkeys(Search.model_fields) | {"url": "stac_api"})
    search = tree.get("search")
    if isinstance(search, dict) and search and "url" not in search:
        option = next(iter(search)).replace("_", "-")
        raise UsageError(f"--{option} goes with --stac-api, or with `search.url` in --config")
    night = validated(RunConfig, tree)
    given: dict[str, Any] = {"sources": tuple(arguments.scenes)}
    given |= {name: getattr(arguments, name, None) for name in _OPTIONS}
    changes = {name: value for name, value in given.items() if value}
    scenes = night.scenes.model_copy(
        update={
            "drivers": tuple(dict.fromkeys([*night.scenes.drivers, *arguments.driver])),
            "pixel_coordinates": night.scenes.pixel_coordinates or arguments.pixel_coordinates,
        }
    )
    return night.model_copy(update=changes | {"scenes": scenes})


def _put(
    tree: dict[str, Any], group: str, arguments: argparse.Namespace, names: dict[str, str | None]
) -> None:
    """Put what the command line says over a group of the file."""
    given = {name: getattr(arguments, option or name, None) for name, option in names.items()}
    given = {name: value for name, value in given.items() if value not in (None, "")}
    if given and isinstance(tree.get(group) or {}, dict):
        tree[group] = (tree.get(group) or {}) | given


def required(value: T | None, key: str, option: str) -> T:
    """Return what the command line or the file must say.

    Raises:
        UsageError: when neither does.
    """
    if not value:
        raise UsageError(f"expected {option}, or `{key}` in --config, found neither")
    return value
