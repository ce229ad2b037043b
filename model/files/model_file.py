"""Model files: safetensors with the card in the header. Reading one needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from safetensors import SafetensorError, deserialize

from scenesweep.model.card import ModelCard, parse_card
from scenesweep.model.errors import ModelError

CARD_KEY = "scenesweep_card"
SUFFIX = ".safetensors"
SCALE = ".scale_of_int8"
_HEADER_LIMIT = 10_000_000


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file as it lies on disk: bytes, their SHA-256, and the card inside.

    It travels to detectors on other machines, which need not see the file.
    """

    content: bytes
    sha256: str
    card: ModelCard


def built_in_models() -> dict[str, Path]:
    """Return the models that come with the package, by name."""
    folder = Path(str(resources.files("scenesweep.model"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def open_model(name_or_file: str) -> ModelFile:
    """Read a model by the name of a built-in one or by the path of a file.

    Raises:
        ModelError: when there is no such model or the file is not one of ours.
    """
    path = built_in_models().get(name_or_file, Path(name_or_file))
    if not path.is_file():
        names = ", ".join(built_in_models()) or "none"
        raise ModelError(
            f"model {name_or_file!r}: expected a file or a built-in model ({names}), found neither"
        )
    content = path.read_bytes()
    return ModelFile(content, hashlib.sha256(content).hexdigest(), _card(content, path))


def _card(content: bytes, path: Path) -> ModelCard:
    """Read the card out of a safetensors header (8 bytes of length, then JSON)."""
    length = int.from_bytes(content[:8], "little")
    if length > _HEADER_LIMIT:
        raise ModelError(
            f"{path}: expected a safetensors file: its header claims {length:,} bytes, at most "
            f"{_HEADER_LIMIT:,} are read"
        )
    try:
        deserialize(content)  # type: ignore[no-untyped-call]  # checks header, offsets and dtypes
    except SafetensorError as error:
        raise ModelError(f"{path}: expected a safetensors file: {error}") from error
    header = metadata(content)
    if CARD_KEY not in header:
        raise ModelError(f"{path}: a safetensors file without a scenesweep model card inside")
    try:
        card = json.loads(header[CARD_KEY], parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its model card is not JSON: {error}") from error
    return parse_card(card, origin=str(path))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which becomes `path` when the block succeeds.

    Otherwise what was at `path` stays there, and nothing is left of the new file.

    Raises:
        OSError: when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def metadata(content: bytes) -> dict[str, str]:
    """Return the free text in the header of a safetensors file."""
    return cast(dict[str, str], _header(content).get("__metadata__", {}))


def parameter_count(content: bytes) -> int:
    """Return how many weights the tensors of a safetensors file hold, also those in 8 bits."""
    tensors = {key: value for key, value in _header(content).items() if key != "__metadata__"}
    return sum(
        prod(tensor["shape"])
        for key, tensor in tensors.items()
        if tensor["dtype"].startswith(("F", "BF", "I8")) and not key.endswith(SCALE)
    )


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return cast(dict[str, Any], json.loads(content[8 : 8 + min(length, _HEADER_LIMIT)]))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
