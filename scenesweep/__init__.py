"""Detect objects in satellite and aerial scenes of any size.

    from scenesweep import sweep

    run = sweep("scenes/", "naip-trees", "OUT")
    print(run.results[0].files["detections"])

`sweep` runs a model over whole scenes and publishes one table of georeferenced detections.
`Detector` runs a model on arrays of pixels. All names are loaded at first use, so
`import scenesweep` costs little.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenesweep.model.boxes import Boxes, DetectorOutput
    from scenesweep.model.card import ModelCard
    from scenesweep.model.files.model_file import ModelFile, open_model
    from scenesweep.model.inference.detector import Detector
    from scenesweep.pipeline import errors
    from scenesweep.pipeline.runs.report import Run, SceneResult
    from scenesweep.pipeline.settings import Settings, load_settings
    from scenesweep.pipeline.sweep import sweep

__all__ = [
    "Boxes",
    "Detector",
    "DetectorOutput",
    "ModelCard",
    "ModelFile",
    "Run",
    "SceneResult",
    "Settings",
    "errors",
    "load_settings",
    "open_model",
    "sweep",
]
__version__ = "0.1.0"

_HOMES = {
    "Boxes": "scenesweep.model.boxes",
    "DetectorOutput": "scenesweep.model.boxes",
    "Detector": "scenesweep.model.inference.detector",
    "ModelCard": "scenesweep.model.card",
    "ModelFile": "scenesweep.model.files.model_file",
    "Run": "scenesweep.pipeline.runs.report",
    "SceneResult": "scenesweep.pipeline.runs.report",
    "Settings": "scenesweep.pipeline.settings",
    "load_settings": "scenesweep.pipeline.settings",
    "open_model": "scenesweep.model.files.model_file",
    "sweep": "scenesweep.pipeline.sweep",
}


def __getattr__(name: str) -> object:
    if name != "errors" and name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "scenesweep.pipeline.errors")
    try:
        module = import_module(home)
    except AttributeError as error:
        # Python would report it as "cannot import name", without the cause.
        raise ImportError(f"{home} cannot be imported: {error}") from error
    return module if name == "errors" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
