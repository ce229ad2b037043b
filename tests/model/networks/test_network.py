"""Networks against torchvision's own, and every option of the architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import Weights, initialise
from scenesweep.model.inference.detector import Detector
from scenesweep.model.inference.fold import fold_batch_norms
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.anchors import anchors
from scenesweep.model.networks.backbone import adapt_first_convolution
from scenesweep.model.networks.decode import decode
from scenesweep.model.networks.network import build
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.settings import DetectorSettings
from tests.rasters import SMALL, make_card

TORCHVISIONS_SIZES = tuple(
    (float(x), float(int(x * 2 ** (1 / 3))), float(int(x * 2 ** (2 / 3))))
    for x in (32, 64, 128, 256, 512)
)
KINDS = ["retinanet", "fcos", "faster_rcnn", "ssd"]


def torchvisions(version: str) -> tuple[ModelCard, Any]:
    """Return the card of torchvision's RetinaNet, and torchvision's module for 192 px chips."""
    make = torchvision.models.detection.retinanet_resnet50_fpn
    if version == "v2":
        make = torchvision.models.detection.retinanet_resnet50_fpn_v2
    torch.manual_seed(0)
    theirs = make(weights=None, weights_backbone=None, num_classes=2).eval()
    # A larger deviation makes scores near 1, which tie in float32.
    nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.05)
    nn.init.constant_(theirs.head.classification_head.cls_logits.bias, -1.5)
    theirs.transform = GeneralizedRCNNTransform(192, 192, [0.5] * 3, [0.25] * 3)
    card = ModelCard.model_validate(
        {
            "name": "theirs",
            "classes": ("a", "b"),
            "bands": (1, 2, 3),
            "gsd_m": 1,
            "chip_px": 192,
            "architecture": {
                "anchor_sizes_px": TORCHVISIONS_SIZES,
                "extra_levels_from": "p5" if version == "v1" else "c5",
                "head_norm": "none" if version == "v1" else "group",
            },
            "inference": {"max_detections_per_chip": 300},
        }
    )
    return card, theirs


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_torchvisions_retinanet_finds_the_same(version: str) -> None:
    card, theirs = torchvisions(version)
    network = build(card)
    network.load_state_dict(theirs.state_dict(), strict=True)
    chips = torch.randint(0, 256, (2, 3, 192, 192), dtype=torch.uint8)
    settings = DetectorSettings(device="cpu", precision="float32", batch=2)
    ours = Detector(network, card, settings).detect(chips.numpy()).boxes
    with torch.no_grad():
        expected = theirs(list(chips.float() / 255))
    for chip, one in enumerate(expected):
        here = ours.take(ours.chip == chip)
        assert len(here) == len(one["scores"]) > 50
        # Nearly equal scores may change places, so each of theirs is looked for among ours.
        distance = abs(one["boxes"].numpy()[:, None] - here.xyxy[None]).max(axis=2)
        same = distance.argmin(axis=1)
        assert sorted(same) == list(range(len(here)))
        assert distance.min(axis=1).max() < 1e-3
        assert abs(here.score[same] - one["scores"].numpy()).max() < 1e-5
        assert (here.label[same] == one["labels"].numpy()).all()


def small(**changes: Any) -> ModelCard:
    return make_card(architecture=SMALL.model_copy(update=changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet34"},
        {"backbone": "resnext50_32x4d"},
        {"backbone_norm": "frozen"},
        {"backbone_norm": "group"},
        {"backbone_norm": "sync", "norm_eps": 1e-3},
        {"levels": (2, 4), "anchor_sizes_px": ((8.0,), (), ())},
        {"levels": (4, 6), "anchor_sizes_px": ((8.0,),) * 3},
        {"levels": (5, 7), "anchor_sizes_px": ((8.0,),) * 3, "extra_levels_from": "p5"},
        {"levels": (3, 7), "anchor_sizes_px": ((8.0,), (), (), (), (8.0,))},
        {"head_channels": 32, "head_norm": "group", "head_convs": 3},
        {"iou_branch": True},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_every_option_builds_a_network_that_trains_and_finds(changes: dict[str, Any]) -> None:
    card = small(**changes)
    torch.manual_seed(0)
    network = build(card)
    assert isinstance(network, RetinaNet)
    pixels = torch.randn(2, 1, 128, 128)
    truth = Truth.pad(
        [
            (torch.tensor([[10.0, 12, 40, 44]]), torch.zeros(1, dtype=torch.int64)),
            (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
        ]
    )
    losses = network.losses(pixels, truth)
    assert ("iou" in losses) == card.architecture.iou_branch
    sum(losses.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    with torch.no_grad():
        levels = network.eval()(pixels)
    places = anchors(card.architecture, (128, 128))
    assert [level.deltas.shape[1] for level in levels] == [len(place) for place in places]
    low = card.inference.model_copy(update={"score_threshold": 0.001})
    with torch.no_grad():
        assert sum(len(found.scores) for found in network.find(pixels, low))


@pytest.mark.parametrize("converted", [False, True], ids=["batch", "sync"])
@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages_do_not_change(stages: int, converted: bool) -> None:
    """Also when batch norms are replaced by synchronised ones, as for training on several GPUs."""
    card = small(frozen_stages=stages, levels=(4, 5), anchor_sizes_px=((16.0,), (32.0,)))
    network: Any = build(card)
    if converted:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    truth = Truth.pad([(torch.tensor([[10.0, 12, 40, 44]]), torch.zeros(1, dtype=torch.int64))] * 2)
    losses = network.losses(torch.randn(2, 1, 64, 64), truth)
    sum(losses.values(), torch.zeros(())).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad + 1e-3)
    parts = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for number, part in enumerate(parts, start=1):
        names = ("conv1", "bn1") if part == "conv1" else (part,)
        mine = [k for k in before if k.startswith(tuple(f"backbone.body.{n}." for n in names))]
        changed = any(not torch.equal(before[k], network.state_dict()[k]) for k in mine)
        assert changed == (number > stages), part


@pytest.mark.parametrize("kind", KINDS[1:])
def test_torchvisions_other_detectors_run_behind_the_same_card(kind: str) -> None:
    architecture = {
        "kind": kind,
        "backbone": "resnet18",
        "levels": (3, 5),
        "channels": 32,
        "anchor_sizes_px": ((16,), (32,), (64,)),
        "aspect_ratios": (1.0,),
    }
    card = make_card(classes=("a", "b"), architecture=architecture)
    torch.manual_seed(0)
    network = build(card)
    truth = Truth.pad(
        [
            (torch.tensor([[10.0, 12, 40, 44]]), torch.tensor([1])),
            (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
        ]
    )
    pixels = torch.randn(2, 1, 64, 64)
    losses = network.losses(pixels, truth)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values(), torch.zeros(())).backward()
    low = card.inference.model_copy(update={"score_threshold": 0.0, "max_detections_per_chip": 9})
    settings = DetectorSettings(device="cpu")
    detector = Detector(network, card, settings, inference=low)
    found = detector.detect((pixels * 50 + 120).clamp(0, 255).byte().numpy())
    assert 0 < len(found.boxes) <= 18
    assert set(found.boxes.label) <= {0, 1}
    assert (found.boxes.xyxy >= 0).all()
    assert (found.boxes.xyxy <= 64).all()
    with pytest.raises(ModelError, match="expected float32"):
        Detector(network, card, DetectorSettings(device="cpu", precision="bfloat16"))


def test_an_untrained_network_scores_the_prior() -> None:
    network = build(small(prior=0.03)).eval()
    with torch.no_grad():
        for level in network(torch.zeros(1, 1, 64, 64)):
            assert torch.allclose(level.logits.sigmoid(), torch.tensor(0.03), atol=1e-3)


def test_the_iou_branch_multiplies_the_score() -> None:
    plain, branched = build(small()).eval(), build(small(iou_branch=True)).eval()
    branched.load_state_dict(plain.state_dict(), strict=False)
    nn.init.zeros_(branched.get_parameter("head.regression_head.iou_pred.weight"))
    nn.init.constant_(branched.get_parameter("head.regression_head.iou_pred.bias"), 0.4)
    low = make_card().inference.model_copy(update={"score_threshold": 0.0, "nms_iou": 1.0})
    pixels = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        (one,), (other,) = plain.find(pixels, low), branched.find(pixels, low)
    share = torch.sigmoid(torch.tensor(0.4))
    assert torch.allclose(one.scores * share, other.scores, atol=1e-6)
    assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.65, 0.7, 0.95])
def test_levels_without_candidates_are_not_regressed(threshold: float, dtype: torch.dtype) -> None:
    sizes = ((8.0,), (16.0,))
    torch.manual_seed(1)
    network = build(small(anchor_sizes_px=sizes)).eval().to(dtype)
    assert isinstance(network, RetinaNet)
    nn.init.constant_(network.get_parameter("head.classification_head.cls_logits.bias"), 0.0)
    nn.init.normal_(network.get_parameter("head.classification_head.cls_logits.weight"), std=0.02)
    inference = make_card().inference.model_copy(update={"score_threshold": threshold})
    regressed = 0

    def count(*_: Any) -> None:
        nonlocal regressed
        regressed += 1

    network.head.regression_head.register_forward_hook(count)
    with torch.no_grad():
        for seed in range(4):
            pixels = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
            outputs = network(pixels.to(dtype))
            regressed = 0
            (found,) = network.find(pixels.to(dtype), inference)
            scores = [level.logits.float().sigmoid() for level in outputs]
            assert regressed >= sum(bool((s > threshold).any()) for s in scores)
            assert regressed <= sum(bool((s > threshold - 0.02).any()) for s in scores)
            places = network.anchors((64, 64), pixels.device)
            of_all = decode([level.of(0) for level in outputs], places, inference, (64, 64))
            assert torch.equal(found.boxes, of_all.boxes)
            assert torch.equal(found.scores, of_all.scores)
            assert found.capped == of_all.capped


def test_boxes_of_two_classes_suppress_each_other_when_asked() -> None:
    card = make_card(classes=("a", "b"))
    torch.manual_seed(0)
    network = build(card).eval()
    nn.init.constant_(network.get_parameter("head.classification_head.cls_logits.bias"), 0.0)
    per_class = card.inference.model_copy(update={"nms_iou": 0.3})
    agnostic = per_class.model_copy(update={"class_agnostic": True})
    pixels = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        (every,), (fewer,) = network.find(pixels, per_class), network.find(pixels, agnostic)
    assert len(fewer.scores) < len(every.scores)
    overlap = torchvision.ops.box_iou(fewer.boxes, fewer.boxes).fill_diagonal_(0)
    assert overlap.max() <= 0.3


def test_a_first_convolution_takes_other_bands() -> None:
    weight = torch.randn(64, 3, 7, 7)
    rgb = ("red", "green", "blue")
    same = adapt_first_convolution(weight, rgb, ("blue", "green", "red"))
    assert torch.equal(same, weight.flip(1))
    four = adapt_first_convolution(weight, rgb, (*rgb, "nir"))
    assert torch.allclose(four[:, :3], weight * 3 / 4)
    assert torch.allclose(four[:, 3], weight.mean(1) * 3 / 4)
    grey = torch.randn(1, 1, 32, 32)
    for bands in (rgb, (*rgb, "nir"), ("nir",), ("red", "nir")):
        adapted = adapt_first_convolution(weight, rgb, bands)
        given = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
        now = nn.functional.conv2d(grey.expand(-1, len(bands), -1, -1), adapted)
        if len(set(bands) & set(rgb)) in (0, 3):  # otherwise only about the same
            assert torch.allclose(given, now, atol=1e-3), bands


def test_a_plain_backbone_checkpoint_initialises_the_backbone() -> None:
    card = make_card(bands=("red", "green", "blue", "nir"), architecture=SMALL)
    plain = torchvision.models.resnet18(weights=None).state_dict()
    network = build(card)
    left = initialise(network, Weights(plain), card)
    assert left
    assert not [name for name in left if name.startswith("backbone.body")]
    ours = network.state_dict()
    assert torch.equal(ours["backbone.body.layer1.0.conv1.weight"], plain["layer1.0.conv1.weight"])
    assert torch.allclose(ours["backbone.body.conv1.weight"][:, :3], plain["conv1.weight"] * 0.75)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_folded_batch_norm_gives_the_same(backbone: str, norm: str) -> None:
    torch.manual_seed(2)
    network = build(small(backbone=backbone, backbone_norm=norm)).eval()
    layers: list[Any] = [layer for layer in network.modules() if hasattr(layer, "running_mean")]
    for layer in layers:
        nn.init.normal_(layer.running_mean, std=0.1)
        nn.init.uniform_(layer.running_var, 0.5, 2.0)
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.1)
    pixels = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        before = network(pixels)
        folded = fold_batch_norms(network)
        after = network(pixels)
    blocks = {"resnet18": 1 + 2 * 4 + 1, "resnet50": 1 + 3 * 7 + 2}
    assert folded == blocks.get(backbone, blocks["resnet50"])
    assert not any(hasattr(layer, "running_mean") for layer in network.modules())
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one.logits, other.logits, rtol=1e-3, atol=1e-5)
        assert torch.allclose(one.deltas, other.deltas, rtol=1e-3, atol=1e-5)


def test_group_norm_is_not_folded() -> None:
    assert fold_batch_norms(build(small(backbone_norm="group"))) == 0


def test_nan_in_one_chip_does_not_change_the_others() -> None:
    torch.manual_seed(2)
    network = build(small()).eval()
    nn.init.constant_(network.get_parameter("head.classification_head.cls_logits.bias"), 0.0)
    inference = make_card().inference.model_copy(update={"score_threshold": 0.45})
    pixels = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        (alone,) = network.find(pixels[1:], inference)
        pixels[0] = torch.nan
        broken, other = network.find(pixels, inference)
    assert len(alone.scores)
    torch.testing.assert_close(other.boxes, alone.boxes)
    assert not len(broken.scores)
