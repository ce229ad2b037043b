"""Train the RetinaNet-R50 that the tools are compared with, on painted suburbs.

It is torchvision's own network, seen at twice the scene's scale as DeepForest sees its patches.
What it learns matters little: it must find objects, so that it can be seen whether the tools
agree on them.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from scenesweep.jobs.suburb import PX_M, paint_suburb
from scenesweep.jobs.training.run import Validator
from scenesweep.model.architecture import Architecture, Losses
from scenesweep.model.card import ModelCard, Scaling
from scenesweep.model.evaluate import Rule
from scenesweep.model.files.convert import deepforest_card, import_weights, write_model
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.settings import Augmentation, Recipe
from scenesweep.model.training.train import Trainer

BOX_PX, CHIP_PX = 12.0, 256
LABELS = {"Tree": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".bench/model"))
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    weights = train(arguments.epochs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(weights, arguments.out / "torchvision.pth")
    write_backbone(arguments.out.parent / "torch")
    folder = arguments.out / "deepforest"
    write_deepforest(folder, weights)
    card = deepforest_card(folder, gsd_m=PX_M)
    write_model(arguments.out / "scenesweep.safetensors", card, import_weights(folder, card))


def train(epochs: int) -> dict[str, torch.Tensor]:
    """Return the weights after some epochs, under torchvision's names."""
    card = training_card()
    judge = Validator(card, chips(512, seed=22), Rule(iou=0.5))
    recipe = Recipe(
        epochs=epochs,
        batch=4,
        learning_rate=5e-4,
        ema_decay=0.98,
        augmentation=Augmentation(band_jitter=0.1),
    )
    trainer = Trainer(card, chips(2048, seed=21), recipe, validate=judge)
    for epoch in trainer.epochs():
        logging.info("%s", epoch)
    return trainer.best


def training_card() -> ModelCard:
    """Return a card of torchvision's `retinanet_resnet50_fpn`, with ImageNet's normalisation."""
    thirds = [2 ** (i / 3) for i in range(3)]
    sizes = tuple(tuple(float(int(x * third)) for third in thirds) for x in (32, 64, 128, 256, 512))
    return ModelCard(
        name="peers",
        classes=("Tree",),
        bands=("red", "green", "blue"),
        gsd_m=PX_M / 2,
        chip_px=CHIP_PX,
        margin_px=32,
        architecture=Architecture(
            backbone_norm="batch", extra_levels_from="p5", anchor_sizes_px=sizes
        ),
        losses=Losses(boxes="l1"),
        scaling=Scaling(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )


def chips(side: int, *, seed: int) -> LabelledChips:
    """Return the chips of a painted suburb at twice its scale, a square round every tree."""
    suburb = paint_suburb(side, seed=seed)
    twice = enlarged(suburb.pixels[:3], 2)
    across = 2 * side // CHIP_PX
    grid = twice.reshape(3, across, CHIP_PX, across, CHIP_PX).transpose(1, 3, 0, 2, 4)
    centres = 2 * suburb.trees[:, :2]
    boxes = []
    for row in range(across):
        for column in range(across):
            inside = centres - CHIP_PX * np.array([column, row])
            inside = inside[((inside >= 0) & (inside < CHIP_PX)).all(axis=1)]
            boxes.append(np.hstack([inside - BOX_PX, inside + BOX_PX]).clip(0, CHIP_PX))
    return LabelledChips(
        tuple(map(str, range(across**2))),
        np.ascontiguousarray(grid.reshape(-1, 3, CHIP_PX, CHIP_PX)),
        tuple(part.astype(np.float32) for part in boxes),
        tuple(np.zeros(len(part), np.int64) for part in boxes),
    )


def enlarged(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Return uint8 (bands, H, W) so many times as high and wide, bilinear."""
    scene = torch.from_numpy(pixels[None]).float()
    larger: NDArray[np.uint8] = (
        interpolate(scene, scale_factor=float(times), mode="bilinear")[0].round().byte().numpy()
    )
    return larger


def write_backbone(torch_home: Path) -> None:
    """Put random weights where DeepForest looks for an ImageNet backbone, before it loads its own.

    So it needs no network; they are replaced by those of its folder.
    """
    place = torch_home / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), place)


def write_deepforest(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights as a DeepForest folder, whose batch norm is frozen."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = {k: v.contiguous() for k, v in weights.items() if "num_batches" not in k}
    safetensors.torch.save_file(frozen, folder / "model.safetensors")
    config = {"label_dict": LABELS, "nms_thresh": 0.05, "num_classes": 1, "score_thresh": 0.3}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
