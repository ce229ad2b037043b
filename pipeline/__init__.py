"""From a scene to published detections.

`sweep` does all of it. It is loaded when it is asked for, so that the package stays light.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenesweep.pipeline.sweep import sweep

__all__ = ["sweep"]


def __getattr__(name: str) -> object:
    if name == "sweep":
        from scenesweep.pipeline.sweep import sweep

        return sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
