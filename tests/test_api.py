"""The public API: names are complete, documented, light to import and seen by type checkers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import scenesweep

SOURCE = Path(scenesweep.__file__)


@pytest.mark.parametrize("name", scenesweep.__all__)
def test_every_public_name_loads_and_has_a_docstring(name: str) -> None:
    value = getattr(scenesweep, name)
    assert value.__doc__
    assert len(inspect.getdoc(value) or "") > 20


def test_type_checkers_see_exactly_the_public_names() -> None:
    """They read the imports under TYPE_CHECKING; at run time `__getattr__` loads the names."""
    blocks = [
        node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = [
        alias.asname or alias.name
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(seen) == scenesweep.__all__ == sorted(scenesweep.__all__)
    assert set(scenesweep.__all__) <= set(dir(scenesweep))
    assert SOURCE.with_name("py.typed").exists()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'scenesweep' has no attribute 'sweeep'"):
        scenesweep.sweeep  # noqa: B018


def test_importing_scenesweep_imports_no_library() -> None:
    code = "import sys, scenesweep; print({name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert not loaded & {"numpy", "pyarrow", "pydantic", "rasterio", "ray", "torch", "yaml"}


def test_the_error_tree_is_drawn_completely() -> None:
    errors = scenesweep.errors
    tree = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)} - {"Exit"}
    assert {name for name in tree if name not in (errors.__doc__ or "")} == set()
    assert all(issubclass(getattr(errors, name), errors.ScenesweepError) for name in tree)


def test_an_attribute_error_inside_an_imported_module_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise AttributeError("module 'torch' has no attribute 'gone'")

    monkeypatch.setattr(scenesweep, "import_module", broken)
    monkeypatch.delitem(vars(scenesweep), "sweep", raising=False)
    with pytest.raises(ImportError, match="'torch' has no attribute 'gone'") as caught:
        from scenesweep import sweep  # noqa: F401
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        scenesweep.unknown  # noqa: B018
