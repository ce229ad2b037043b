"""How often the host waits for a GPU in a training step, counted without a GPU.

The backward pass is not counted: torch runs it on a real GPU only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scenesweep.model.card import ModelCard
from scenesweep.model.losses.truth import Truth
from scenesweep.model.networks.network import Network, build
from scenesweep.model.networks.retinanet import _anchors_on
from scenesweep.model.settings import Recipe
from scenesweep.model.training.batches import Batch
from scenesweep.model.training.colour import Colour
from scenesweep.model.training.learner import Learner
from tests.rasters import make_card

READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "unique",
    "equal",
    "is_nonzero",
}
COPIES = {"_to_copy", "copy_", "lift_fresh"}
POSITIVES = 7
WAITS = {"giou": 8, "ciou": 8}  # torchvision's own have masks


class DeviceReads(TorchDispatchMode):
    """Counts operations for which host and GPU wait, or could wait, for each other.

    Fake tensors have no values. So an operation whose result depends on values gets one here.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        on_gpu = "cuda" in devices
        if name in READS and on_gpu:
            self.seen[name] += 1
        if name in {"index", "index_put", "index_put_"} and on_gpu:
            masks = [t for t in tree_leaves(args[1]) if t is not None and t.dtype == torch.bool]
            if masks:  # torch calls `nonzero` for it
                self.seen["boolean index"] += 1
                return torch.zeros(POSITIVES, device="cuda") if name == "index" else args[0]
        if name == "_local_scalar_dense":
            return 1.0 if tensors[0].is_floating_point() else 1
        if name == "nonzero":
            return torch.zeros(POSITIVES, tensors[0].dim(), dtype=torch.int64, device="cuda")
        result = func(*args, **kwargs)
        if name in COPIES and isinstance(result, Tensor):
            crossing = {result.device.type, *devices} == {"cpu", "cuda"}
            pinned = kwargs.get("non_blocking", False)  # the loader pins batches: nothing waits
            self.seen["pinned copy" if pinned else "copy"] += crossing
        return result


def fake_batch(card: ModelCard, chips: int) -> Batch:
    change = torch.ones(chips, len(card.bands), 1, 1)
    return Batch(
        torch.zeros(chips, len(card.bands), 64, 64, dtype=torch.uint8),
        Truth(torch.zeros(chips, 5, 4), torch.zeros(chips, 5, dtype=torch.int64)),
        Colour(change, change, change),
    )


def give_gradients(learner: Learner) -> None:
    """Stand for the backward pass, for which torch needs a real GPU."""
    for parameter in learner.network.parameters():
        parameter.grad = torch.zeros_like(parameter)


def count_reads(card: ModelCard, chips: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count in the second step on a fake GPU. The first makes the optimiser's state."""

    def build_on_gpu(card: ModelCard) -> Network:
        with torch.device("cuda"):
            return build(card)

    learner_file = "scenesweep.model.training.learner"
    monkeypatch.setattr(f"{learner_file}.pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(
        f"{learner_file}.build", build_on_gpu
    )  # fake tensors cannot be moved or copied
    monkeypatch.setattr(f"{learner_file}._on_device", lambda network, *_: network)
    monkeypatch.setattr("torch.optim.swa_utils.deepcopy", lambda _: build_on_gpu(card))
    _anchors_on.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        recipe = Recipe(precision="float32")
        learner = Learner(card, recipe, steps=10)
        batch = fake_batch(card, chips)
        monkeypatch.setattr(Tensor, "backward", lambda _: give_gradients(learner))
        with DeviceReads():
            learner.step([batch])
        with DeviceReads() as reads:
            learner.step([batch])
    _anchors_on.cache_clear()  # of fake tensors
    return reads.seen


LOSSES: list[dict[str, Any]] = [
    {},
    {"classification": "quality_focal", "boxes": "giou"},
    {"classification": "class_balanced_focal", "class_counts": (5,), "boxes": "ciou"},
    {"classification": "ghm", "boxes": "l1"},
    {"alpha": "frequency", "class_counts": (5,)},
    {"alpha": (0.2,)},
]


@pytest.mark.parametrize("kind", ["max_iou", "atss"])
@pytest.mark.parametrize("losses", LOSSES, ids=lambda losses: "-".join(map(str, losses.values())))
def test_a_step_waits_a_few_times_for_any_number_of_chips(
    losses: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card(losses=losses, assignment={"kind": kind})
    few, many = (count_reads(card, chips, monkeypatch) for chips in (2, 6))
    assert few == many
    assert few.pop("pinned copy") == 6  # pixels, boxes, labels, and three changes of colour
    assert few["nonzero"] == 1
    assert sum(few.values()) <= WAITS.get(str(card.losses.boxes), 4), few
