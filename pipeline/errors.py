"""The error tree.

    ScenesweepError            an error that the user can fix; shown without a traceback
    ├── UsageError             the command or its settings are wrong: nothing was run
    ├── MissingExtra           the packages of an optional extra are not installed
    ├── ModelError             a model file or card cannot be used
    ├── LabelError             training or evaluation labels cannot be used
    ├── OutputError            the output cannot be written: full, read-only, not permitted
    │   └── OutputInUse        another run is writing to it
    ├── UnreadableOutput       published files cannot be read back
    ├── DetectorLost           a detector's process or machine failed, not a scene: others go on
    │   ├── DetectorOutOfMemory    its GPU has too little memory
    │   └── UnfitMachine           it cannot start on this machine
    └── SceneError             one scene cannot be swept: it fails alone
        ├── UnreadableScene    not a raster of an allowed format, truncated, corrupt
        ├── NoGeoreference     no CRS or transform, and no `--pixel-coordinates`
        ├── WrongBands         the bands that the model asks for are not there
        └── DamagedPart        a part file is missing, or its bytes changed

Each takes one string, so that it can be pickled. The modules that call another library map its
errors, with `raise ... from`.
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
    "DetectorLost",
    "DetectorOutOfMemory",
    "Exit",
    "LabelError",
    "MissingExtra",
    "ModelError",
    "NoGeoreference",
    "OutputError",
    "OutputInUse",
    "SceneError",
    "ScenesweepError",
    "UnfitMachine",
    "UnreadableOutput",
    "UnreadableScene",
    "UsageError",
    "WrongBands",
    "exit_for",
    "printable",
    "shortened",
]

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers that only writing raises: disk full, quota exceeded, file too large, read-only."""


class Exit(IntEnum):
    """The exit codes of the commands."""

    DONE = 0
    """No scene failed, or at most as many as `--allow-failed` allows. Scenes that are up to date or
    quarantined are no failures."""
    BUG = 1
    """An error in scenesweep itself, in the run or in one of its scenes."""
    USAGE = 2
    """Nothing was run: the command, a setting or the model is wrong, or no scene was named."""
    SOME_FAILED = 3
    """Some scenes failed, or `verify` found damage. A scene that you name and that cannot be opened
    is a failed scene."""
    ALL_FAILED = 4
    """All scenes that the run tried failed, whatever `--allow-failed` says: the storage or the
    model is probably wrong."""
    IN_USE = 5
    """Another run is writing some of the scenes; the others are published. Or another command
    needs the output for itself, such as `compact`: then nothing was run."""
    OUTPUT = 6
    """The output cannot be written: full, read-only, not permitted."""
    CANARY = 7
    """The canary scene has other detections than expected or could not be swept, and `canary: stop`
    is set. No other scene was tried."""
    STOPPED = 130
    """Ctrl-C, SIGTERM or `ray job stop`. The same command resumes."""


def exit_for(error: ScenesweepError) -> Exit:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, OutputInUse):
        return Exit.IN_USE
    return Exit.OUTPUT if isinstance(error, OutputError) else Exit.USAGE


def shortened(text: str, most: int = 300) -> str:
    """Return a text on one line, cut after a word where it is longer than `most` characters."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    words, _, _ = text[: most - 1].rpartition(" ")
    return f"{words if 2 * len(words) > most else text[: most - 2]} …"


class UsageError(ScenesweepError):
    """The command or its settings are wrong: nothing was run."""


class OutputError(ScenesweepError):
    """The output cannot be written: the disk is full, read-only, or writing is not permitted."""


class OutputInUse(OutputError):
    """Another run is writing to the output."""


class UnreadableOutput(ScenesweepError):
    """Published files cannot be read back."""


class DetectorLost(ScenesweepError):
    """A detector's process or machine failed, and not the work that it did.

    On Ray, another detector does the work. The plain loop has only one, so the run ends.
    """


class DetectorOutOfMemory(DetectorLost):
    """The GPU of a detector has too little memory."""


class UnfitMachine(DetectorLost):
    """A detector cannot start on this machine: its driver is too old, or it has no GPU."""


class SceneError(ScenesweepError):
    """One scene cannot be swept: it fails alone."""


class UnreadableScene(SceneError):
    """The file is not a raster of an allowed format, or is truncated or corrupt."""


class NoGeoreference(SceneError):
    """The raster has no CRS or no transform."""


class WrongBands(SceneError):
    """The bands that the model asks for are not there."""


class DamagedPart(SceneError):
    """A part file of a scene is missing, or its bytes changed since it was written."""


def printable(text: str) -> str:
    """Escape line breaks and control characters: file names may contain any character."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
