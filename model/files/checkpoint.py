"""Weights: out of model files and others', into networks and back. Nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from scenesweep.model.card import ModelCard, parse_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.model_file import (
    CARD_KEY,
    SCALE,
    SUFFIX,
    ModelFile,
    metadata,
    replacing,
)
from scenesweep.model.networks.alternatives import TorchvisionNetwork
from scenesweep.model.networks.backbone import adapt_first_convolution
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet

_BROKEN = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AssertionError),
    *(pickle.UnpicklingError, struct.error),
)

_LARGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by parameter name, and the bands that the first convolution takes, if known."""

    tensors: dict[str, Tensor]
    bands: tuple[str, ...] = ()


def load_network(model: ModelFile) -> RetinaNet | TorchvisionNetwork:
    """Build the card's network with the file's weights, in float32 and evaluation mode.

    Raises:
        ModelError: listing the parameters that are missing, extra or of another shape.
    """
    weights = _in_full(safetensors.torch.load(model.content))
    with torch.device("meta"):  # a card may ask for any size: shapes first, then memory
        differences = differences_of(weights, build(model.card).state_dict())
    if differences:
        raise ModelError(
            f"model {model.card.name}: weights do not fit the card: " + "; ".join(differences)
        )
    network = build(model.card)
    wanted = network.state_dict()
    network.load_state_dict(
        {key: value.to(wanted[key].dtype) for key, value in weights.items()}, strict=True
    )
    return network.eval()


def save_model(
    path: Path, card: ModelCard, weights: dict[str, Tensor], *, eight_bits: bool = False
) -> None:
    """Write weights (convolutions in half precision) and card to one file.

    With `eight_bits`, convolutions of a million weights and more (the last stages of a
    backbone) are kept as int8 with a scale for each output channel, symmetric about zero: half
    the room, an error of at most 1/254 of the channel's largest weight. They are computed with
    in the detector's precision all the same.
    """
    small: dict[str, Tensor] = {}
    for key, value in weights.items():
        if eight_bits and value.ndim == 4 and value.numel() >= _LARGE:
            small[key], small[key + SCALE] = _in_eight_bits(value)
        elif value.ndim > 1 and value.is_floating_point():
            small[key] = value.half().contiguous()
        else:
            small[key] = value.contiguous()
    write_tensors(path, card, small)


def write_tensors(path: Path, card: ModelCard, tensors: dict[str, Tensor]) -> None:
    """Write tensors as they are, and card, to one file that is there complete or not at all."""
    content = safetensors.torch.save(tensors, metadata={CARD_KEY: card.model_dump_json()})
    with replacing(path) as file:  # not save_file, whose files their owner alone may read
        file.write(content)


def shrink_model(model: ModelFile, path: Path) -> None:
    """Write a model again with its large convolutions in 8 bits.

    Raises:
        ModelError: when its weights do not fit its card.
    """
    save_model(path, model.card, load_network(model).state_dict(), eight_bits=True)


def _in_eight_bits(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 weights, and the scale of each output channel in float32."""
    value = value.float()
    scale = value.abs().amax(dim=(1, 2, 3)) / 127
    steps = value / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None, None]
    return steps.round().to(torch.int8).contiguous(), scale


def _in_full(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply int8 weights by their scales; what does not fit together stays as it is."""
    full = dict(weights)
    for key, value in weights.items():
        scale = weights.get(key + SCALE)
        if scale is not None and value.dtype is torch.int8 and scale.shape == value.shape[:1]:
            full[key] = value * full.pop(key + SCALE).float()[:, None, None, None]
    return full


def read_weights(path: Path) -> Weights:
    """Read the tensors of a safetensors file, or of a PyTorch file without unpickling objects.

    A dictionary under the key `state_dict` or `model` is looked into.

    Raises:
        ModelError: when the file is neither, or holds anything but tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: expected a file with weights, found none")
    if path.suffix == SUFFIX:
        content = path.read_bytes()
        try:
            return Weights(_in_full(safetensors.torch.load(content)), _bands(content))
        except SafetensorError as error:
            raise ModelError(f"{path}: expected a safetensors file: {error}") from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {stranger[1]}, which is code" if stranger else "it cannot be read"
        raise ModelError(
            f"{path}: expected a PyTorch file that holds tensors alone, for nothing is unpickled: "
            f"{why}; save the state_dict by torch.save where the file was made"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, Tensor) for v in data.values()):
        raise ModelError(f"{path}: expected a state_dict, tensors by name, found something else")
    return Weights({str(key): value for key, value in data.items()})


def initialise(
    network: RetinaNet | TorchvisionNetwork, weights: Weights, card: ModelCard
) -> list[str]:
    """Put given weights where they fit, and return the parameters that stay at random.

    Names are those of the network, or of a plain torchvision backbone (an ImageNet
    checkpoint). The first convolution is adapted to the card's bands; without known bands,
    three are taken to be red, green, blue.
    """
    wanted = network.state_dict()
    prefix = next(
        (key[: -len("conv1.weight")] for key in wanted if key.endswith("body.conv1.weight")), ""
    )
    given = dict(weights.tensors)
    if "conv1.weight" in given:
        given = {prefix + key: value for key, value in given.items()}
    first = prefix + "conv1.weight"
    if first in given and first in wanted:
        given[first] = _first_convolution(given[first], weights.bands, card)
    fitting = {
        key: value.to(wanted[key].dtype)
        for key, value in given.items()
        if key in wanted and value.shape == wanted[key].shape
    }
    network.load_state_dict(fitting, strict=False)
    return sorted(key for key in wanted.keys() - fitting.keys() if "num_batches" not in key)


def _first_convolution(weight: Tensor, bands: tuple[str, ...], card: ModelCard) -> Tensor:
    count = weight.shape[1]
    if not bands:
        bands = ("red", "green", "blue") if count == 3 else tuple(map(str, range(1, count + 1)))
    wanted = tuple(map(str, card.bands))
    if count == len(wanted) and not set(wanted) & set(bands):
        return weight.float()  # bands given by number: taken in their order
    return adapt_first_convolution(weight.float(), bands, wanted)


def _bands(content: bytes) -> tuple[str, ...]:
    """Bands of a file of ours; none for other safetensors files."""
    header = metadata(content)
    if CARD_KEY not in header:
        return ()
    return tuple(map(str, parse_card(json.loads(header[CARD_KEY]), origin="weights").bands))


def differences_of(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    found = [f"{key} is missing" for key in wanted.keys() - weights.keys()]
    found += [f"{key} is not part of the network" for key in weights.keys() - wanted.keys()]
    for key in weights.keys() & wanted.keys():
        if weights[key].dtype is torch.int8:
            found.append(f"{key} is in 8 bits without a scale for each output channel")
        elif weights[key].shape != wanted[key].shape:
            came, expected = tuple(weights[key].shape), tuple(wanted[key].shape)
            found.append(f"{key} has shape {came}, expected {expected}")
        elif not bool(torch.isfinite(weights[key].float()).all()):
            found.append(f"{key} holds NaN or infinity")
    return sorted(found)
