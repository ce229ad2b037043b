"""Model files: safetensors with the card in the header. This module imports no torch."""

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
_ALIGNED_TO = 8  # bytes; the tensors of a safetensors file start at a multiple of it


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file: its bytes, their SHA-256, and its card.

    It is sent to detectors on other machines, which do not need access to the file.
    """

    content: bytes
    sha256: str
    card: ModelCard


def built_in_models() -> dict[str, Path]:
    """Return the paths of the models in this package, by name."""
    folder = Path(str(resources.files("scenesweep.model"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def open_model(name_or_file: str) -> ModelFile:
    """Read a built-in model by its name, or a model file by its path.

    Raises:
        ModelError: when there is no such model, or the file is not a model file of scenesweep.
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
    """Read the card from a safetensors header (8 bytes of length, then JSON)."""
    length = int.from_bytes(content[:8], "little")
    if length > _HEADER_LIMIT:
        raise ModelError(
            f"{path}: expected a safetensors file with a header of at most {_HEADER_LIMIT:,} "
            f"bytes, its header claims {length:,} bytes"
        )
    try:
        deserialize(content)  # type: ignore[no-untyped-call]  # checks header, offsets and dtypes
    except SafetensorError as error:
        raise ModelError(f"{path}: expected a safetensors file: {error}") from error
    header = metadata(content)
    if CARD_KEY not in header:
        raise ModelError(
            f"{path}: expected a model file, this is safetensors without a scenesweep model card; "
            "see `scenesweep models import`"
        )
    try:
        card = json.loads(header[CARD_KEY], parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON as model card: {error}") from error
    return parse_card(card, origin=str(path))


def with_card(model: ModelFile, card: ModelCard) -> ModelFile:
    """Return the model file with another card. The bytes of its weights stay the same.

    Only the header changes: 8 bytes of length, then JSON.
    """
    length = int.from_bytes(model.content[:8], "little")
    header = json.loads(model.content[8 : 8 + length])
    header["__metadata__"][CARD_KEY] = card.model_dump_json()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_TO)
    content = len(text).to_bytes(8, "little") + text + model.content[8 + length :]
    return ModelFile(content, hashlib.sha256(content).hexdigest(), card)


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block succeeds.

    When the block fails, the file at `path` does not change and the temporary file is removed.

    Raises:
        OSError: when the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def metadata(content: bytes) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file."""
    return cast(dict[str, str], _header(content).get("__metadata__", {}))


def parameter_count(content: bytes) -> int:
    """Return the number of weights in a safetensors file, those in 8 bits included."""
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
    raise ValueError(f"{constant} is not a number in JSON")
