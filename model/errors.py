"""The root of the error tree, and the errors about models.

`pipeline.errors` draws the complete tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec


class ScenesweepError(Exception):
    """An error that the user can fix, and no bug of the program.

    Its only argument is one string, so that it pickles. The string says what was expected, what
    came, and what to do.
    """


class MissingExtra(ScenesweepError):
    """Packages of an optional extra are not installed."""


class ModelError(ScenesweepError):
    """A model file or model card cannot be used."""


class LabelError(ScenesweepError):
    """Training or evaluation labels cannot be used."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages inside this block; one that is missing becomes one line.

        with needs_extra("query"):
            import duckdb

    Raises:
        MissingExtra: naming the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(_install_line(error.name or "", extra)) from error


def check_extra(extra: str, packages: Sequence[str]) -> None:
    """Check that optional packages are installed, before work begins that needs them at its end.

    Raises:
        MissingExtra: for the first package that is missing.
    """
    with needs_extra(extra):
        missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingExtra(_install_line(missing[0], extra))


def _install_line(package: str, extra: str) -> str:
    return (
        f"the package {package.partition('.')[0]} is not installed; install it with: "
        f'pip install "scenesweep[{extra}]"'
    )
