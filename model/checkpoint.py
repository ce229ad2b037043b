"""Model files: safetensors with the card in the header. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model.card import ModelCard, parse_card
from model.errors import ModelError
from model.retinanet import RetinaNet, build

CARD_KEY = "scenesweep_card"
SUFFIX = ".safetensors"
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
    folder = Path(str(resources.files("model"))) / "weights"
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


def load_network(model: ModelFile) -> RetinaNet:
    """Build the card's network with the file's weights, in float32 and evaluation mode.

    Raises:
        ModelError: listing the parameters that are missing, extra or of another shape.
    """
    weights = safetensors.torch.load(model.content)
    network = build(model.card)
    wanted = network.state_dict()
    differences = _differences(weights, wanted)
    if differences:
        raise ModelError(
            f"model {model.card.name}: weights do not fit the card: " + "; ".join(differences)
        )
    network.load_state_dict(
        {key: value.to(wanted[key].dtype) for key, value in weights.items()}, strict=True
    )
    return network.eval()


def save_model(path: Path, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write weights (convolutions in half precision) and card to one file."""
    halved = {
        key: (value.half() if value.ndim > 1 and value.is_floating_point() else value).contiguous()
        for key, value in weights.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(halved, path, metadata={CARD_KEY: card.model_dump_json()})


def _card(content: bytes, path: Path) -> ModelCard:
    """Read the card out of a safetensors header (8 bytes of length, then JSON)."""
    try:
        safetensors.torch.load(content)  # checks header, offsets and dtypes
    except SafetensorError as error:
        raise ModelError(f"{path}: expected a safetensors file: {error}") from error
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + min(length, _HEADER_LIMIT)]).get("__metadata__", {})
    if CARD_KEY not in metadata:
        raise ModelError(f"{path}: a safetensors file without a scenesweep model card inside")
    return parse_card(json.loads(metadata[CARD_KEY]), origin=str(path))


def _differences(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    found = [f"{key} is missing" for key in wanted.keys() - weights.keys()]
    found += [f"{key} is not part of the network" for key in weights.keys() - wanted.keys()]
    for key in weights.keys() & wanted.keys():
        if weights[key].shape != wanted[key].shape:
            came, expected = tuple(weights[key].shape), tuple(wanted[key].shape)
            found.append(f"{key} has shape {came}, expected {expected}")
        elif not bool(torch.isfinite(weights[key].float()).all()):
            found.append(f"{key} holds NaN or infinity")
    return sorted(found)
