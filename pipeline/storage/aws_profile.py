"""Credentials of a profile in `~/.aws`, which obstore does not read.

Keys in the files are used as they are. For every other kind of profile (a role, a login), the
command in `credential_process` gives them, or else `aws configure export-credentials`, which is
part of the AWS command line.
"""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scenesweep.pipeline.errors import OutputError

if TYPE_CHECKING:
    from obstore.store import S3Credential

_KEYS = ("aws_access_key_id", "aws_secret_access_key")
_BY_LOGIN = ("sso_session", "sso_start_url", "role_arn", "login_session")
_COMMAND_TIMEOUT_S = 60


def profile_value(name: str) -> str:
    """Return a value of the profile in use, such as `region`; empty when there is none."""
    return _profile().get(name, "")


def aws_credentials() -> Callable[[], S3Credential] | None:
    """Return what gives the credentials of the profile in use; None when it has none.

    Raises:
        OutputError: when AWS_PROFILE names a profile that does not exist.
    """
    profile = _profile()
    name = _name()
    if not profile and name != "default":
        raise OutputError(f"The config profile ({name}) could not be found in ~/.aws")
    if all(profile.get(key) for key in _KEYS):
        return lambda: _static(profile)
    command = shlex.split(profile.get("credential_process", ""))
    if not command and any(profile.get(key) for key in _BY_LOGIN):
        command = ["aws", "configure", "export-credentials", "--profile", name]
        if shutil.which("aws") is None:
            raise OutputError(
                f"the profile ({name}) needs the command aws (AWS CLI 2) to log in: install it, "
                "or set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
            )
    return (lambda: _of_command(command)) if command else None


def _static(profile: Mapping[str, str]) -> S3Credential:
    return {
        "access_key_id": profile[_KEYS[0]],
        "secret_access_key": profile[_KEYS[1]],
        "token": profile.get("aws_session_token") or None,
        "expires_at": None,
    }


def _of_command(command: list[str]) -> S3Credential:
    """Run a command that prints credentials as JSON: AWS's `credential_process`.

    Its error text is not shown, because it may contain secrets.
    """
    try:
        done = subprocess.run(  # noqa: S603  # the command is in the user's own configuration
            command, capture_output=True, check=True, timeout=_COMMAND_TIMEOUT_S
        )
        given = json.loads(done.stdout)
        expires = given.get("Expiration")
        return {
            "access_key_id": given["AccessKeyId"],
            "secret_access_key": given["SecretAccessKey"],
            "token": given.get("SessionToken"),
            "expires_at": datetime.fromisoformat(expires).astimezone(UTC) if expires else None,
        }
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        raise OutputError(
            f"the command {command[0]} of the AWS profile gave no credentials: "
            f"{type(error).__name__}"
        ) from None


def _name() -> str:
    return os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"


def _profile() -> dict[str, str]:
    """Return the values of the profile in use, of both files of `~/.aws`."""
    name = _name()
    own = "default" if name == "default" else f"profile {name}"
    return _section("AWS_CONFIG_FILE", "config", own) | _section(
        "AWS_SHARED_CREDENTIALS_FILE", "credentials", name
    )


def _section(variable: str, file: str, section: str) -> dict[str, str]:
    path = Path(os.environ.get(variable) or f"~/.aws/{file}").expanduser()
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser[section]) if parser.has_section(section) else {}
