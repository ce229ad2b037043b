"""Keys of a profile in `~/.aws`, which obstore does not read.

A profile with a role, a login or a `credential_process` needs another program, and scenesweep
starts none: the AWS command line can put such credentials into the environment.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path

from scenesweep.pipeline.errors import OutputError

_KEYS = ("aws_access_key_id", "aws_secret_access_key")
_OTHER_KINDS = ("sso_session", "sso_start_url", "role_arn", "login_session", "credential_process")


def profile_value(name: str) -> str:
    """Return a value of the profile in use, such as `region`; empty when there is none."""
    return _profile().get(name, "")


def profile_keys() -> dict[str, str]:
    """Return the keys of the profile in use, by obstore's names; none when it has none.

    Raises:
        OutputError: when AWS_PROFILE names a profile that does not exist, or the profile has no
            keys but names a way to get some.
    """
    profile, name = _profile(), _name()
    if not profile and name != "default":
        raise OutputError(f"the profile ({name}) of AWS could not be found in ~/.aws")
    if all(profile.get(key) for key in _KEYS):
        keys = {"access_key_id": profile[_KEYS[0]], "secret_access_key": profile[_KEYS[1]]}
        token = profile.get("aws_session_token")
        return keys | ({"session_token": token} if token else {})
    if any(profile.get(key) for key in _OTHER_KINDS):
        raise OutputError(
            f"the profile ({name}) of AWS has no keys: expected AWS_ACCESS_KEY_ID and its "
            "companions in the environment, which this command puts there: "
            f'eval "$(aws configure export-credentials --profile {name} --format env)"'
        )
    return {}


def _name() -> str:
    return os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"


def _profile() -> dict[str, str]:
    """Return the values of the profile in use, of both files of `~/.aws`."""
    name = _name()
    own = "default" if name == "default" else f"profile {name}"
    return _section("AWS_CONFIG_FILE", "config", own) | _section(
        "AWS_SHARED_CREDENTIALS_FILE", "credentials", name
    )


def profile_changed() -> tuple[int, ...]:
    """Return when the files of profiles were modified, in ns; 0 for one that does not exist."""
    paths = (
        _path("AWS_CONFIG_FILE", "config"),
        _path("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    )
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


def _path(variable: str, file: str) -> Path:
    return Path(os.environ.get(variable) or f"~/.aws/{file}").expanduser()


def _section(variable: str, file: str, section: str) -> dict[str, str]:
    path = _path(variable, file)
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser[section]) if parser.has_section(section) else {}
