"""scenesweep: object detectors over satellite and aerial scenes of any size."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenesweep.model.inference.detector import Detector
    from scenesweep.pipeline.sweep import sweep

__all__ = ["Detector", "sweep"]
__version__ = "0.1.0"

_HOMES = {
    "Detector": "scenesweep.model.inference.detector",
    "sweep": "scenesweep.pipeline.sweep",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
