"""What keeps a process of a detector lean: fast to start, and quick with its memory.

`torchvision.ops.roi_align` imports torch's compiler, 3 s of a core and more than torch itself, to
ask whether a device is one that it compiles for. No detector here does unless it is told to be
deterministic, and then the answer is the compiler's own.
"""

from __future__ import annotations

import ctypes
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


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


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to 1 GiB, for what is allocated next.

    A network allocates the same maps for every chip. Given back to the system, they come back as
    pages that must be cleared: a tenth of a detector's time, in some processes and not in others.
    Without effect where there is no glibc (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**30)
