"""Read and write weights, of our model files and of other libraries. Nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from scenesweep.model.card import ModelCard, parse_card
from scenesweep.model.errors import ModelError
from scenesweep.model.files.model_file import (
    CARD_KEY,
    SCALE,
    SUFFIX,
    ModelFile,
    metadata,
    write_atomically,
)
from scenesweep.model.networks.backbone import adapt_first_convolution
from scenesweep.model.networks.network import Network, build

_BROKEN = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AssertionError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load raises for a damaged file."""

_LARGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by parameter name, and the bands of the first convolution, if known."""

    tensors: dict[str, Tensor]
    bands: tuple[str, ...] = ()


def load_network(model: ModelFile) -> Network:
    """Build the card's network with the file's weights, in float32 and evaluation mode.

    Raises:
        ModelError: when the weights do not fit; it lists parameters that are missing, unknown or
            of another shape.
    """
    weights = _in_full(safetensors.torch.load(model.content))
    with torch.device("meta"):  # a card may claim any size: compare shapes before memory is used
        differences = differences_of(weights, build(model.card).state_dict())
    if differences:
        raise ModelError(
            f"model {model.card.name}: weights do not fit the card: " + "; ".join(differences)
        )
    network = build(model.card)
    dtypes = {key: value.dtype for key, value in network.state_dict().items()}
    network.load_state_dict(
        {key: value.to(dtypes[key]) for key, value in weights.items()}, strict=True
    )
    return network.eval()


def save_model(
    path: Path, card: ModelCard, weights: dict[str, Tensor], *, eight_bits: bool = False
) -> None:
    """Write weights and card to one file. Convolutions are written in half precision.

    With `eight_bits`, convolutions with at least a million weights (the last stages of a backbone)
    are written as int8 with one scale for each output channel, symmetric about zero. This takes
    half the space; the error is at most 1/254 of the channel's largest weight. The detector still
    computes in its own precision.
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
    """Write tensors, unchanged, and card to one file, atomically."""
    content = safetensors.torch.save(tensors, metadata={CARD_KEY: card.model_dump_json()})
    with write_atomically(path) as file:  # save_file would make a file that only its owner can read
        file.write(content)


def shrink_model(model: ModelFile, path: Path) -> None:
    """Write a copy of a model with its large convolutions in 8 bits.

    Raises:
        ModelError: when the weights do not fit the card.
    """
    save_model(path, model.card, load_network(model).state_dict(), eight_bits=True)


def _in_eight_bits(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 weights and the scale of each output channel in float32."""
    value = value.float()
    scale = value.abs().amax(dim=(1, 2, 3)) / 127
    steps = value / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None, None]
    return steps.round().to(torch.int8).contiguous(), scale


def _in_full(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply int8 weights by their scales. Tensors without a fitting scale stay unchanged."""
    full = dict(weights)
    for key, value in weights.items():
        scale = weights.get(key + SCALE)
        if scale is not None and value.dtype is torch.int8 and scale.shape == value.shape[:1]:
            full[key] = value * full.pop(key + SCALE).float()[:, None, None, None]
    return full


def read_weights(path: Path) -> Weights:
    """Read the tensors of a safetensors file, or of a PyTorch file without unpickling objects.

    The tensors may lie in a dictionary under the key `state_dict` or `model`.

    Raises:
        ModelError: when the file is neither, or contains anything but tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: expected a file with weights, there is no such file")
    if path.suffix == SUFFIX:
        content = path.read_bytes()
        try:
            return Weights(_in_full(safetensors.torch.load(content)), _bands(content))
        except SafetensorError as error:
            raise ModelError(f"{path}: expected a safetensors file: {error}") from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it contains {code[1]}, which is code" if code else "it cannot be read"
        raise ModelError(
            f"{path}: expected a PyTorch file of tensors only, because nothing is unpickled, but "
            f"{reason}; save the state_dict with torch.save on the machine that made the file"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, Tensor) for v in data.values()):
        raise ModelError(f"{path}: expected a state_dict (tensors by name), got another object")
    return Weights({str(key): value for key, value in data.items()})


def initialise(network: Network, weights: Weights, card: ModelCard) -> list[str]:
    """Load the weights that fit, and return the names of the parameters that stay random.

    Names are those of the network, or of its plain backbone (an ImageNet checkpoint of torchvision
    or timm). The first convolution is adapted to the card's bands. If its own bands are not known
    and there are three, they are taken to be red, green, blue.
    """
    own = network.state_dict()
    prefix = backbone_prefix(own)
    given = dict(weights.tensors)
    if not own.keys() & given.keys():
        given = _named_as_in(network.get_submodule(prefix[:-1]), given, prefix)
    first = first_convolution(network)
    if first in given:
        given[first] = _first_convolution(given[first], weights.bands, card)
    fitting = {
        key: value.to(own[key].dtype)
        for key, value in given.items()
        if key in own and value.shape == own[key].shape
    }
    network.load_state_dict(fitting, strict=False)
    return sorted(key for key in own.keys() - fitting.keys() if "num_batches" not in key)


def backbone_prefix(names: Iterable[str]) -> str:
    """Return the prefix of the parameters of a network's backbone, such as `backbone.body.`."""
    inside = next(name for name in names if ".body." in name)
    return inside[: inside.index(".body.") + len(".body.")]


def first_convolution(network: Network) -> str:
    """Return the name of the weight of the convolution that sees the bands."""
    prefix = backbone_prefix(network.state_dict())
    layers = network.get_submodule(prefix[:-1]).named_modules()
    name = next(name for name, layer in layers if isinstance(layer, nn.Conv2d))
    return f"{prefix}{name}.weight"


def _named_as_in(body: nn.Module, given: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Add the prefix to names of a plain backbone. Some of timm's have `stages_0` for `stages.0`"""
    children = dict(body.named_children())
    named = {}
    for key, value in given.items():
        head, *rest = key.split(".")
        if head not in children and rest and f"{head}_{rest[0]}" in children:
            key = key.replace(".", "_", 1)
        named[prefix + key] = value
    return named


def _first_convolution(weight: Tensor, bands: tuple[str, ...], card: ModelCard) -> Tensor:
    count = weight.shape[1]
    if not bands:
        bands = ("red", "green", "blue") if count == 3 else tuple(map(str, range(1, count + 1)))
    needed = tuple(map(str, card.bands))
    if count == len(needed) and not set(needed) & set(bands):
        return weight.float()  # bands are numbers: use the weights in their order
    return adapt_first_convolution(weight.float(), bands, needed)


def _bands(content: bytes) -> tuple[str, ...]:
    """Return the bands of a model file of ours; empty for other safetensors files."""
    header = metadata(content)
    if CARD_KEY not in header:
        return ()
    return tuple(map(str, parse_card(json.loads(header[CARD_KEY]), origin="weights").bands))


def differences_of(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Describe each parameter of `weights` that does not fit the `expected` ones; sorted."""
    problems = [f"{key} is missing" for key in expected.keys() - weights.keys()]
    problems += [f"{key} is not part of the network" for key in weights.keys() - expected.keys()]
    for key in weights.keys() & expected.keys():
        if weights[key].dtype is torch.int8:
            problems.append(f"{key} is in 8 bits without a scale for each output channel")
        elif weights[key].shape != expected[key].shape:
            shapes = tuple(weights[key].shape), tuple(expected[key].shape)
            problems.append(f"{key} has shape {shapes[0]}, expected {shapes[1]}")
        elif not bool(torch.isfinite(weights[key].float()).all()):
            problems.append(f"{key} contains NaN or infinity")
    return sorted(problems)
