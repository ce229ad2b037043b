"""Networks of timm under our pyramid and heads: maps, freezing, folding, fusing, training."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import MissingExtra, ModelError
from scenesweep.model.files.checkpoint import Weights, initialise
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.inference.fold import fold, fold_batch_norms
from scenesweep.model.inference.fuse import difference, fuse, is_fused
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.backbone import synchronise_norms
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.settings import Recipe
from scenesweep.model.training.learner import unused_parameters
from scenesweep.model.training.train import Trainer
from tests.model.training.test_train import squares
from tests.rasters import SMALL, make_card

timm = pytest.importorskip("timm")

NAMES = {
    "resnet10t": "a ResNet with a stem of several layers",
    "efficientnet_lite0": "one norm per convolution, with ReLU6 inside",
    "mobilenetv4_conv_small": "a stem whose norm is a map",
    "ghostnetv2_100": "flat names of blocks",
    "convnext_atto": "layer norms only, no map of stride 2",
    "regnety_004": "squeeze and excitation",
    "mobileone_s0": "branches that start with a norm",
}


def card_of(name: str, **changes: Any) -> ModelCard:
    settings = {"backbone": f"timm/{name}", "levels": (2, 4)}
    sizes = {"anchor_sizes_px": ((12.0,), (), ())}
    return make_card(
        bands=("red", "green", "blue", "nir"),
        architecture=SMALL.model_copy(update=settings | sizes | changes),
    )


def of_timm(card: ModelCard) -> RetinaNet:
    torch.manual_seed(0)
    network = build(card)
    assert isinstance(network, RetinaNet)
    return network


def give_statistics(network: nn.Module) -> None:
    layers: list[Any] = [p for p in network.modules() if hasattr(p, "running_mean")]
    for layer in layers:
        nn.init.normal_(layer.running_mean, std=0.1)
        nn.init.uniform_(layer.running_var, 0.5, 2.0)
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_timm_gives_the_maps_that_timm_gives(name: str) -> None:
    network = of_timm(card_of(name)).eval()
    theirs = timm.create_model(name, features_only=True, in_chans=4).eval()
    theirs.load_state_dict(network.backbone.body.state_dict(), strict=False)
    chips = torch.randn(2, 4, 96, 64)
    with torch.no_grad():
        ours = list(network.backbone.body(chips))
        every = {96 // level.shape[2]: level for level in theirs(chips)}
        assert [level.shape[2:] for level in ours] == [(24, 16), (12, 8), (6, 4)]
        for stride, level in zip((4, 8, 16), ours, strict=True):
            torch.testing.assert_close(level, every[stride])
    assert unused_parameters(network) == []
    assert flops_per_chip(network.card) > 0


@pytest.mark.parametrize("name", NAMES)
def test_folded_norms_of_timm_give_the_same(name: str, caplog: pytest.LogCaptureFixture) -> None:
    network = of_timm(card_of(name)).eval()
    give_statistics(network)
    plain = copy.deepcopy(network)
    folded = fold(network)
    norms = [layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) < len(before) or not before
    if name != "mobileone_s0":  # it also has norms without a convolution
        assert not norms
    chips = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        for one, other in zip(plain(chips), folded(chips), strict=True):
            torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(one.deltas, other.deltas, rtol=1e-3, atol=1e-4)
    assert not caplog.messages


def test_a_fold_that_changes_the_maps_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    network = of_timm(card_of("efficientnet_lite0")).eval()
    give_statistics(network)
    # a ReLU between convolution and norm, which the order of the layers does not show
    network.backbone.body.get_submodule("conv_stem").register_forward_hook(lambda *a: a[2].relu())
    with caplog.at_level(logging.WARNING):
        assert fold(network) is network
    assert "are not folded" in caplog.text
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "efficientnet_lite0", "convnext_atto"])
def test_fused_layers_give_the_same_on_a_backbone_of_timm(name: str) -> None:
    network = of_timm(card_of(name)).eval()
    give_statistics(network)
    fold_batch_norms(network)
    fused = copy.deepcopy(network)
    replaced = fuse(fused)
    assert is_fused(fused)
    in_body = 10 if name == "mobilenetv4_conv_small" else 0  # the others have no plain ReLU
    assert replaced >= 3 + in_body  # pyramid, two heads
    assert difference(network, fused, torch.randn(2, 4, 64, 64)) == ""


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("efficientnet_lite0", [0, 3, 4, 5, 7]),
        ("convnext_atto", [0, 2, 3, 4, 5]),
        ("resnet10t", [0, 3, 5, 6, 7]),
    ],
)
@pytest.mark.parametrize("converted", [False, True], ids=["batch", "sync"])
def test_frozen_stages_of_timm_do_not_change(name: str, last: list[int], converted: bool) -> None:
    """`last` counts the parts with parameters or without that each number of stages freezes."""
    for stages in (0, 2, 4):
        card = card_of(name, frozen_stages=stages)
        network: Any = of_timm(card)
        assert len(network.backbone.frozen) >= (last[stages] if stages else 0)
        if converted:
            synchronise_norms(network)
        network.train()
        before = {key: value.clone() for key, value in network.backbone.body.state_dict().items()}
        if converted:  # synchronised norms run on GPUs only: what is trained is enough here
            changed = {k for k, p in network.backbone.body.named_parameters() if p.requires_grad}
        else:
            network.backbone(torch.randn(2, 4, 64, 64))["0"].square().mean().backward()
            with torch.no_grad():
                for parameter in network.backbone.body.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad + 1e-3)
            after = network.backbone.body.state_dict()
            changed = {key for key in before if not torch.equal(before[key], after[key])}
        frozen = tuple(f"{part}." for part in network.backbone.frozen)
        assert not [key for key in changed if key.startswith(frozen or ("-",))]
        rest = {k for k, _ in network.backbone.body.named_parameters()} - changed
        assert not [key for key in rest if not key.startswith(frozen or ("-",))]


def test_synchronised_norms_of_timm_keep_their_activation() -> None:
    network = of_timm(card_of("efficientnet_lite0"))
    activations = len([p for p in network.modules() if isinstance(p, nn.ReLU6)])
    synchronise_norms(network)
    assert not [p for p in network.modules() if type(p) is nn.BatchNorm2d]
    assert len([p for p in network.modules() if isinstance(p, nn.ReLU6)]) == activations > 0


@pytest.mark.parametrize("kind", ["frozen", "group"])
def test_norms_of_timm_are_frozen_or_replaced(kind: str) -> None:
    network = of_timm(card_of("efficientnet_lite0", backbone_norm=kind)).train()
    assert not [p for p in network.backbone.body.modules() if isinstance(p, nn.BatchNorm2d)]
    groups = [p for p in network.backbone.body.modules() if isinstance(p, nn.GroupNorm)]
    assert bool(groups) == (kind == "group")
    before = copy.deepcopy(dict(network.backbone.body.named_buffers()))
    assert len(network(torch.randn(2, 4, 64, 64))) == 1
    for key, value in network.backbone.body.named_buffers():
        assert torch.equal(value, before[key])
    with pytest.raises(ModelError, match="has no batch normalisation"):
        build(card_of("convnext_atto", backbone_norm=kind))


def test_the_epsilon_of_the_card_is_that_of_the_norms() -> None:
    network = of_timm(card_of("efficientnet_lite0", norm_eps=1e-3))
    norms = [p for p in network.backbone.body.modules() if isinstance(p, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext_atto"])
def test_weights_in_timms_names_start_the_backbone(name: str) -> None:
    plain = timm.create_model(name)
    card = card_of(name)
    network = of_timm(card)
    left = initialise(network, Weights(plain.state_dict()), card)
    assert left
    assert not [key for key in left if key.startswith("backbone.body")]
    first = "conv_stem" if name == "efficientnet_lite0" else "stem.0"
    given = plain.get_submodule(first).weight.detach()
    body = network.backbone.body
    ours = body.get_parameter(f"{first.replace('.', '_')}.weight").detach()
    assert torch.allclose(ours[:, :3], given * 0.75)
    assert torch.allclose(ours[:, 3], given.mean(1) * 0.75)


def test_twenty_steps_on_painted_chips_lower_the_loss() -> None:
    card = make_card(
        architecture=SMALL.model_copy(update={"backbone": "timm/mobilenetv4_conv_small"})
    )
    recipe = Recipe(epochs=2, batch=4, learning_rate=4e-3, ema_decay=0.0, precision="float32")
    trainer = Trainer(card, squares(40), recipe, validate=lambda _: 0.0)
    first, second = trainer.epochs()  # of ten steps each
    assert sum(second.losses.values()) < 0.7 * sum(first.losses.values())


@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn", "ssd"])
def test_torchvisions_detectors_take_a_backbone_of_timm(kind: str) -> None:
    architecture = {
        "kind": kind,
        "backbone": "timm/efficientnet_lite0",
        "levels": (3, 5),
        "channels": 32,
        "anchor_sizes_px": ((16,), (32,), (64,)),
        "aspect_ratios": (1.0,),
    }
    network = build(make_card(architecture=architecture))
    truth = Truth.pad([(torch.tensor([[10.0, 12, 40, 44]]), torch.tensor([0]))] * 2)
    losses = network.losses(torch.randn(2, 1, 64, 64), truth)
    assert all(torch.isfinite(value) for value in losses.values())
    assert fold(network.eval()) is not network


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lit", "similar names: timm/efficientnet_lite"),
        ("vit_tiny_patch16_224", "expected levels with strides"),
        ("swin_tiny_patch4_window7_224", "cannot be used"),
        ("xception41", "taken by hooks"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(card_of(name))
    with pytest.raises(ModelError, match="is not a sequence of stages"):
        build(card_of("hrnet_w18_small", frozen_stages=1))


@pytest.mark.parametrize("name", ["resnet19", "timm/hf-hub:someone/some", "timm/../x", "timm/"])
def test_other_backbones_are_refused_by_the_card(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of resnet18"):
        ModelCard.model_validate(make_card().model_dump() | {"architecture": {"backbone": name}})


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r'pip install "scenesweep\[timm\]"'):
        build(card_of("efficientnet_lite1"))


def test_timm_is_imported_only_for_a_card_that_names_it() -> None:
    code = (
        "import sys; from scenesweep.model.inference.detector import Detector; "
        "import scenesweep.jobs.train; Detector.load('naip-trees', device='cpu'); "
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
