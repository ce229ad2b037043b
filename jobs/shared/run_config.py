"""The run configuration (`--config`): the options of `detect` and all settings in one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from scenesweep.jobs.shared.ground_arguments import LAYER_OPTIONS, MASK_OPTIONS
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
    "GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_BEARER_TOKEN": (
        "Credentials for Google Cloud Storage: a file, or a short-lived token. A login by `gcloud` "
        "and the account of the machine work too."
    ),
    "AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN": (
        "Account of Azure, and its key or a signature. AZURE_STORAGE_CONNECTION_STRING and the "
        "identity of the machine work too."
    ),
    "AWS_NO_SIGN_REQUEST, GS_NO_SIGN_REQUEST, AZURE_NO_SIGN_REQUEST": (
        "`YES` reads open buckets without credentials."
    ),
    "AWS_REQUEST_PAYER, GS_USER_PROJECT": "Who pays for buckets where the requester pays.",
    "STORAGE_EMULATOR_HOST, AZURE_STORAGE_ENDPOINT": "Another server for Google, for Azure.",
    "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL": "Address of an S3 service other than Amazon's.",
    "AWS_S3_ENDPOINT, AWS_HTTPS, AWS_VIRTUAL_HOSTING": "The same in GDAL's words.",
    "SCENESWEEP_HTTP_HEADERS": (
        "HTTP headers for some hosts, such as a token, as JSON or as the path of a YAML file: "
        "[inputs](inputs.md#headers-for-a-host)."
    ),
    "SCENESWEEP_NOTIFY": "Address that the summary of each run is posted to, as `notify`.",
    "RAY_ADDRESS": "Cluster to use when `--address` is not given; `ray job submit` sets it.",
    "RAY_JOB_STOP_WAIT_TIME_S": (
        "Seconds from SIGTERM to SIGKILL after `ray job stop`. Default: 3. The current piece "
        "gets half of it, unless `engine.stop_grace_s` is set."
    ),
}
"""Environment variables that a run reads; set those of the network on the workers too."""
_OPTIONS = (
    "model",
    "out",
    "aoi",
    "address",
    "allow_failed",
    "canary",
    "expected",
    "shard",
    "only_new",
    "newest_first",
    "limit",
    "deadline",
    "notify",
)


class RunConfig(Settings):
    """The keys of a run configuration. Options of the command line win over them.

    Relative paths start at the working directory, as on the command line. The groups below
    belong to the same file.
    """

    sources: tuple[str, ...] = ()
    """Scenes: files, folders, globs, addresses, lists or STAC, as on the command line."""
    choose: Choice = Choice()
    search: Search | None = None
    model: str | None = Field(None, min_length=1)
    """Name of a built-in model, or a model file."""
    out: str | None = Field(None, min_length=1)
    """Output: a folder, or a prefix in a cloud: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or
    `az://CONTAINER/PREFIX`."""
    aoi: Path | None = None
    """Area of interest: a vector file with polygons. Empty: the whole scenes."""
    address: str | None = None
    """Ray cluster, as `--address`."""
    retention: Retention = Retention()
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the run in monitoring. With a name, each run writes OUT/runs/NAME.prom."""
    allow_failed: int | str = Field(0)
    """Scenes that may fail while the exit code stays 0: a number, or a share such as `5%`."""
    quarantine_after: int | None = Field(None, ge=1)
    """After so many failures in a row for the same reason, runs skip a scene until its files
    change. Empty: every run tries it."""

    canary: Literal["off", "warn", "stop"] | None = None
    """Sweep a painted scene with known detections first. `warn`: report a difference. `stop`: end
    the run with exit code 7 then. Empty: `warn` for runs with a `name`, otherwise `off`."""
    expected: tuple[str, ...] = ()
    """Scenes that should have been published, named as `sources`. The report says which of them
    are done, failed, late or missing."""
    expected_search: Search | None = None
    """The same, as a search of a STAC API."""
    shard: str = Field("", pattern=r"^([1-9]\d*/[1-9]\d*)?$")
    """`i/n`: sweep only the i-th of n parts of the scenes. A scene is always in the same part."""
    only_new: bool = False
    """Keep what other models, settings and versions published: only scenes that were never
    published, or whose files changed since, are swept."""
    newest_first: bool = False
    """Sweep the scenes that were acquired last first, for backfills: by the time in the catalog or
    list, otherwise by the modification time of the file."""
    limit: int | None = Field(None, ge=1)
    """Sweep at most so many scenes that are not up to date."""
    deadline: str | int = ""
    """Time at which the run stops, such as `"05:30"` in the machine's time zone, or a time with
    date and zone. Put it in quotes: YAML reads 15:30 as a number."""
    notify: str | None = Field(None, pattern=r"^https?://")
    """Address that the summary of each run is posted to as JSON. If it is secret, set the variable
    SCENESWEEP_NOTIFY instead."""

    @property
    def canary_policy(self) -> Literal["off", "warn", "stop"]:
        """What to do with the canary scene."""
        return self.canary or ("warn" if self.name else "off")

    @property
    def settings(self) -> Settings:
        """The settings without the other keys: only they may change a fingerprint."""
        given = {name: getattr(self, name) for name in Settings.model_fields}
        count = self.choose.in_model_order
        if count and self.read.bands is None:
            in_order = {"bands": tuple(range(1, count + 1))}
            given["read"] = self.read.model_copy(update=in_order)
        return Settings(**given)

    @property
    def named(self) -> Named:
        """The scenes as the user names them.

        Raises:
            UsageError: when there are none.
        """
        if not (self.sources or self.search):
            raise UsageError("no scenes: expected SCENE, --stac-api, or `sources` in --config")
        return Named(self.sources, self.choose, self.search, self.mask)


def read_run_config(arguments: argparse.Namespace) -> RunConfig:
    """Read `--config`, then apply `--set`, then the other options.

    Raises:
        UsageError: for a missing file, an unknown key or a value of the wrong kind.
    """
    tree = settings_tree(arguments.config, arguments.set)
    _put(tree, "choose", arguments, dict.fromkeys(Choice.model_fields))
    _put(tree, "search", arguments, dict.fromkeys(Search.model_fields) | {"url": "stac_api"})
    _put(tree, "mask", arguments, dict(MASK_OPTIONS))
    _put(tree, "layers", arguments, dict(LAYER_OPTIONS))
    search = tree.get("search")
    if isinstance(search, dict) and search and "url" not in search:
        option = next(iter(search)).replace("_", "-")
        raise UsageError(f"--{option} needs --stac-api, or `search.url` in --config")
    given: dict[str, Any] = {"sources": tuple(arguments.scenes)}
    given |= {name: getattr(arguments, name, None) for name in _OPTIONS}
    config = validated(RunConfig, tree | {name: value for name, value in given.items() if value})
    scenes = config.scenes.model_copy(
        update={
            "drivers": tuple(dict.fromkeys([*config.scenes.drivers, *arguments.driver])),
            "pixel_coordinates": config.scenes.pixel_coordinates or arguments.pixel_coordinates,
        }
    )
    return config.model_copy(update={"scenes": scenes})


def _put(
    tree: dict[str, Any], group: str, arguments: argparse.Namespace, names: dict[str, str | None]
) -> None:
    """Replace values of a group of the file by those of the command line."""
    given = {name: getattr(arguments, option or name, None) for name, option in names.items()}
    given = {name: value for name, value in given.items() if value not in (None, "")}
    if given and isinstance(tree.get(group) or {}, dict):
        tree[group] = (tree.get(group) or {}) | given


def required(value: T | None, key: str, option: str) -> T:
    """Return a value that the command line or the file must give.

    Raises:
        UsageError: when neither gives it.
    """
    if not value:
        raise UsageError(f"{option} is missing: give it, or `{key}` in --config")
    return value
