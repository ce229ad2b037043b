"""Detector: chips in, boxes out. Owns device, precision and batching."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from model.boxes import Boxes, Detected
from model.card import Inference, ModelCard
from model.checkpoint import ModelFile, load_network
from model.errors import ModelError
from model.retinanet import RetinaNet, anchors, normalisation
from model.settings import DetectorSettings

_LARGEST_DELTA = float(np.log(1000.0 / 16))  # torchvision's clamp: a box grows at most 62.5-fold


class Detector:
    """A network on a device, run on batches of one fixed shape.

    A batch is always filled up to the same shape, so what is found in a chip never depends on
    its companions.
    """

    def __init__(
        self,
        network: RetinaNet,
        card: ModelCard,
        settings: DetectorSettings,
        *,
        chip_px: int,
        inference: Inference | None = None,
    ) -> None:
        self.card = card
        self.device = pick_device(settings.device)
        self.dtype = pick_precision(settings.precision, self.device)
        self.batch = settings.batch or (16 if self.device.type == "cuda" else 1)
        self._chip_px = chip_px
        if self.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        network = network.eval().to(memory_format=torch.channels_last)
        self._network = network.to(self.device, self.dtype)
        self._anchors = [a.to(self.device) for a in anchors(self.card.architecture, chip_px)]
        mean, std = normalisation(self.card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self._inference = inference or self.card.inference

    def detect(self, chips: NDArray[np.uint8]) -> Detected:
        """Find boxes in (N, bands, chip, chip) uint8; xyxy float32 in chip pixels."""
        bands, size = len(self.card.bands), self._chip_px
        if chips.shape[1:] != (bands, size, size):
            raise ValueError(f"chips must be (N, {bands}, {size}, {size}), got {chips.shape}")
        found: list[Boxes] = []
        capped = np.zeros(len(chips), np.bool_)
        for start in range(0, len(chips), self.batch):
            part = chips[start : start + self.batch]
            for i, (boxes, cap) in enumerate(self._detect_batch(part)):
                n = len(boxes.score)
                found.append(
                    Boxes(boxes.xyxy, boxes.score, boxes.label, np.full(n, start + i, np.int32))
                )
                capped[start + i] = cap
        return Detected(Boxes.join(Boxes.none(), *found), capped)

    @torch.inference_mode()
    def _detect_batch(self, chips: NDArray[np.uint8]) -> list[tuple[Boxes, bool]]:
        logits, deltas = self._network(self._prepare(chips))
        return [
            _decode(
                [level[i].float() for level in logits],
                [level[i].float() for level in deltas],
                self._anchors,
                self._inference,
                self._chip_px,
            )
            for i in range(len(chips))
        ]

    def _prepare(self, chips: NDArray[np.uint8]) -> Tensor:
        missing = self.batch - len(chips)
        if missing:
            chips = np.concatenate([chips, np.zeros((missing, *chips.shape[1:]), np.uint8)])
        pixels = torch.from_numpy(np.ascontiguousarray(chips)).to(self.device)
        normal = (pixels.float() - self._mean) / self._std
        return normal.to(self.dtype, memory_format=torch.channels_last)


def load_detector(
    model: ModelFile,
    settings: DetectorSettings,
    *,
    chip_px: int,
    inference: Inference | None = None,
) -> Detector:
    """Make a detector from a model file; `inference` replaces the card's thresholds and caps."""
    network = load_network(model)
    return Detector(network, model.card, settings, chip_px=chip_px, inference=inference)


def pick_device(name: str) -> torch.device:
    """Resolve `auto` to a GPU where there is one.

    Raises:
        ModelError: when a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("detect.device: expected a CUDA GPU, found none (use 'auto' or 'cpu')")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto` to bfloat16 where the processor computes in it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "bfloat16" if fast else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _decode(
    logits: list[Tensor],
    deltas: list[Tensor],
    level_anchors: list[Tensor],
    inference: Inference,
    chip_px: int,
) -> tuple[Boxes, bool]:
    """Turn one chip's raw outputs (per level (A, classes) and (A, 4)) into boxes.

    The boolean says whether a cap cut candidates off.
    """
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0), bbox_xform_clip=_LARGEST_DELTA)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    capped = False
    for level_logits, level_deltas, level in zip(logits, deltas, level_anchors, strict=True):
        scores = level_logits.sigmoid().flatten()
        above = torch.nonzero(scores > inference.score_threshold).squeeze(1)
        if len(above) > inference.topk_per_level:
            capped = True
            best = scores[above].topk(inference.topk_per_level).indices
            above = above[best]
        cell = above // level_logits.shape[1]
        parts.append(
            (
                coder.decode_single(level_deltas[cell], level[cell]),
                scores[above],
                above % level_logits.shape[1],
            )
        )
    boxes = clip_boxes_to_image(torch.cat([p[0] for p in parts]), (chip_px, chip_px))
    scores = torch.cat([p[1] for p in parts])
    labels = torch.cat([p[2] for p in parts])
    kept = batched_nms(boxes, scores, labels, inference.nms_iou)
    if len(kept) > inference.max_detections_per_chip:
        capped = True
        kept = kept[: inference.max_detections_per_chip]
    return (
        Boxes(
            boxes[kept].cpu().numpy(),
            scores[kept].cpu().numpy(),
            labels[kept].cpu().numpy().astype(np.int16),
            np.zeros(len(kept), np.int32),
        ),
        capped,
    )
