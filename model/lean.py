"""Keep torch's compiler out of a process until something asks for it.

`torchvision.ops.roi_align` imports it, 3 s of a core and more than torch itself, to ask whether a
device is one that it compiles for. No detector here does unless it is told to be deterministic,
and then the answer is the compiler's own.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


def leave_compiler_out() -> None:
    """Put something in the compiler's place that becomes it as soon as it is used.

    Done before torchvision is imported; without effect where the compiler is there already.
    """
    sys.modules.setdefault(_COMPILER, _Later(_COMPILER))


class _Later(ModuleType):
    """Stands for the compiler: any name but the one that torchvision imports brings it in."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return bool(_compiler().is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)
        return getattr(_compiler(), name)


def _compiler() -> ModuleType:
    """Import the compiler where its place is still taken."""
    if isinstance(sys.modules.get(_COMPILER), _Later):
        del sys.modules[_COMPILER]
    return import_module(_COMPILER)
