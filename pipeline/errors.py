"""The error tree.

    ScenesweepError            anything the user has to mend; never shown with a traceback
    ├── UsageError             the command or its settings are wrong: nothing was run
    ├── ModelError             a model file or card cannot be used
    ├── LabelError             training or evaluation labels cannot be used
    └── SceneError             one scene cannot be swept: it fails alone
        ├── UnreadableScene    not a raster of an allowed format, truncated, corrupt
        ├── NoGeoreference     no CRS or transform, and pixel coordinates were not asked for
        └── WrongBands         the bands that the model asks for are not there

Each takes one string, so that it pickles. Errors of other libraries are mapped where they are
called, with `raise ... from`.
"""

from model.errors import LabelError, ModelError, ScenesweepError

__all__ = [
    "LabelError",
    "ModelError",
    "NoGeoreference",
    "SceneError",
    "ScenesweepError",
    "UnreadableScene",
    "UsageError",
    "WrongBands",
]


class UsageError(ScenesweepError):
    """The command or its settings are wrong: nothing was run."""


class SceneError(ScenesweepError):
    """One scene cannot be swept: it fails alone."""


class UnreadableScene(SceneError):
    """The file is not a raster of an allowed format, or is truncated or corrupt."""


class NoGeoreference(SceneError):
    """The raster has no CRS or no transform."""


class WrongBands(SceneError):
    """The bands that the model asks for are not there."""
