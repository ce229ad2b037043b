"""What a detector is: its card, network, weights, training and metrics. Pixels and boxes only.

`Detector` is loaded when it is asked for: it brings torch.
"""

from typing import TYPE_CHECKING

from scenesweep.model.inference.lean import leave_compiler_out

if TYPE_CHECKING:
    from scenesweep.model.inference.detector import Detector

__all__ = ["Detector"]
__version__ = "0.1.0"

leave_compiler_out()


def __getattr__(name: str) -> object:
    if name == "Detector":
        from scenesweep.model.inference.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
