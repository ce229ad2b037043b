"""The error tree.

    ScenesweepError            anything the user has to mend; never shown with a traceback
    ├── UsageError             the command or its settings are wrong: nothing was run
    ├── MissingExtra           the packages of an optional extra are not installed
    ├── ModelError             a model file or card cannot be used
    ├── LabelError             training or evaluation labels cannot be used
    ├── OutputError            the output cannot be written: full, read-only, not permitted
    │   └── OutputInUse        another run is writing it
    ├── UnreadableOutput       published files cannot be read back
    └── SceneError             one scene cannot be swept: it fails alone
        ├── UnreadableScene    not a raster of an allowed format, truncated, corrupt
        ├── NoGeoreference     no CRS or transform, and pixel coordinates were not asked for
        ├── WrongBands         the bands that the model asks for are not there
        └── DamagedPart        what was staged of it is not what is there now

Each takes one string, so that it pickles. Errors of other libraries are mapped where they are
called, with `raise ... from`.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from scenesweep.model.errors import (
    LabelError,
    MissingExtra,
    ModelError,
    ScenesweepError,
)

__all__ = [
    "UNWRITABLE",
    "DamagedPart",
    "Exit",
    "LabelError",
    "MissingExtra",
    "ModelError",
    "NoGeoreference",
    "OutputError",
    "OutputInUse",
    "SceneError",
    "ScenesweepError",
    "UnreadableOutput",
    "UnreadableScene",
    "UsageError",
    "WrongBands",
    "exit_for",
]

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only a write gets: disk full, quota exceeded, file too large, read-only."""


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    BUG = 1
    """An error of ours, in the run or in one of its scenes."""
    USAGE = 2
    """Nothing was run: the command, a setting or the model is wrong, or no scene was named."""
    SOME_FAILED = 3
    """Some scenes failed, or `verify` found something amiss."""
    ALL_FAILED = 4
    IN_USE = 5
    """Another run is writing the output."""
    OUTPUT = 6
    """The output cannot be written: full, read-only, not permitted."""
    STOPPED = 130
    """Ctrl-C, SIGTERM or `ray job stop`; the same command goes on from there."""


def exit_for(error: ScenesweepError) -> Exit:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, OutputInUse):
        return Exit.IN_USE
    return Exit.OUTPUT if isinstance(error, OutputError) else Exit.USAGE


class UsageError(ScenesweepError):
    """The command or its settings are wrong: nothing was run."""


class OutputError(ScenesweepError):
    """The output cannot be written: it is full, read-only, or may not be written to."""


class OutputInUse(OutputError):
    """Another run is writing the output."""


class UnreadableOutput(ScenesweepError):
    """Published files cannot be read back."""


class SceneError(ScenesweepError):
    """One scene cannot be swept: it fails alone."""


class UnreadableScene(SceneError):
    """The file is not a raster of an allowed format, or is truncated or corrupt."""


class NoGeoreference(SceneError):
    """The raster has no CRS or no transform."""


class WrongBands(SceneError):
    """The bands that the model asks for are not there."""


class DamagedPart(SceneError):
    """What was staged of a scene is missing, or is not what is there now."""
