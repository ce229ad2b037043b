"""Postpone the import of torch's compiler, `torch._dynamo`, until something uses it.

`torchvision.ops.roi_align` imports `torch._dynamo.utils` to ask whether torch can compile for a
device. That import takes 3 s, longer than the import of torch itself, and no detector compiles.
A stand-in module in `sys.modules` answers instead and imports the compiler on first use.

This module imports no torch, because the stand-in must be there before torchvision is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


def postpone_compiler_import() -> None:
    """Put the stand-in into `sys.modules` of this process.

    Only for processes of our own: the commands and the detector actors. `import scenesweep` never
    does it. Call it before torchvision is imported. If the compiler is already there, it stays.
    """
    sys.modules.setdefault(_COMPILER, _StandIn(_COMPILER))


class _StandIn(ModuleType):
    """Imports the compiler when its one function is called or any other name is looked up."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return bool(_compiler().is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks every module for such names
            raise AttributeError(name)
        return getattr(_compiler(), name)


def _compiler() -> ModuleType:
    """Import the compiler, and first remove the stand-in if it is still there."""
    if isinstance(sys.modules.get(_COMPILER), _StandIn):
        del sys.modules[_COMPILER]
    return import_module(_COMPILER)
