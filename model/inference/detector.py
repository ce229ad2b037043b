"""Detector: chips in, boxes out. Owns device, precision and batching."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from scenesweep.model.boxes import Boxes, ChipBoxes, Detected
from scenesweep.model.card import Inference, ModelCard, explain
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.inference.fold import fold_batch_norms
from scenesweep.model.inference.process import set_up_process
from scenesweep.model.inference.winograd import use_winograd
from scenesweep.model.networks.alternatives import TorchvisionNetwork
from scenesweep.model.networks.network import normalisation
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.private_apis.torch import cpu_computes_bfloat16
from scenesweep.model.settings import DetectorSettings


class Detector:
    """A network on a device, which becomes the detector's own, run on full batches.

    A batch is always filled up to the same number of chips, so what is found in a chip never
    depends on its companions.
    """

    def __init__(
        self,
        network: RetinaNet | TorchvisionNetwork,
        card: ModelCard,
        settings: DetectorSettings,
        *,
        inference: Inference | None = None,
    ) -> None:
        self.card = card
        self.device = pick_device(settings.device)
        self.dtype = _network_precision(settings.precision, self.device, card)
        self.batch = settings.batch or (16 if self.device.type == "cuda" else 1)
        network = network.eval()
        fold_batch_norms(network)
        network = network.to(memory_format=torch.channels_last)
        self.network = network.to(self.device, self.dtype)
        self.winograd = bool(self._may_use_winograd(settings) and use_winograd(self.network))
        mean, std = normalisation(self.card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self._inference = inference or self.card.inference

    @classmethod
    def load(cls, model: str, **settings: Any) -> Self:
        """Load a detector by the name of a built-in model or the path of a model file.

            detector = Detector.load("naip-trees")
            found = detector.detect(chips)  # (N, 4, H, W) uint8: red, green, blue, near infrared
            found.boxes.xyxy[found.boxes.chip == 0]

        Its card says what it must be shown: `detector.card.bands`, `detector.card.gsd_m`.
        On a CPU it runs on the threads that torch has in this process; `threads=4` sets their
        number, for all of torch in this process. `use_process` does more.

        Args:
            model: such as `naip-trees`; `scenesweep models list` has the names.
            settings: fields of `DetectorSettings`, such as `device="cuda"` or `threads=4`.

        Raises:
            ModelError: when there is no such model or setting, or its device is not there.
        """
        file = open_model(model)
        try:
            how = DetectorSettings(**{"threads": torch.get_num_threads()} | settings)
        except ValidationError as error:
            raise ModelError(f"detector settings: {explain(error, DetectorSettings)}") from error
        if "threads" in settings:
            torch.set_num_threads(how.threads)
        return cls(load_network(file), file.card, how)

    @property
    def runs_on(self) -> str:
        """Return the device, precision and convolutions that the settings became."""
        how = " winograd" if self.winograd else ""
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}{how}"

    def _may_use_winograd(self, settings: DetectorSettings) -> bool:
        plain = self.device.type == "cpu" and self.dtype == torch.float32
        return settings.convolution == "auto" and plain and settings.threads == 1

    def detect(self, chips: NDArray[np.uint8]) -> Detected:
        """Find boxes in (N, bands, H, W) uint8; xyxy float32 in chip pixels.

        H and W are multiples of the network's stride.
        """
        bands, stride = len(self.card.bands), self.card.stride_px
        if chips.shape[1] != bands or any(side % stride for side in chips.shape[2:]):
            raise ValueError(
                f"chips must be (N, {bands}, H, W), sides multiples of {stride}, got {chips.shape}"
            )
        found: list[Boxes] = []
        capped = np.zeros(len(chips), np.bool_)
        for start in range(0, len(chips), self.batch):
            part = chips[start : start + self.batch]
            for chip, one in enumerate(self._detect_batch(part), start=start):
                found.append(_boxes(one, chip))
                capped[chip] = one.capped
        return Detected(Boxes.join(Boxes.none(), *found), capped)

    @torch.inference_mode()
    def _detect_batch(self, chips: NDArray[np.uint8]) -> list[ChipBoxes]:
        return self.network.find(self.prepare(chips), self._inference)[: len(chips)]

    def prepare(self, chips: NDArray[np.uint8]) -> Tensor:
        """Return a batch (batch, bands, H, W) on the device: normalised, filled up with zeros."""
        missing = self.batch - len(chips)
        if missing:
            chips = np.concatenate([chips, np.zeros((missing, *chips.shape[1:]), np.uint8)])
        pixels = torch.from_numpy(np.ascontiguousarray(chips)).to(self.device)
        normal = (pixels.float() - self._mean) / self._std
        return normal.to(self.dtype, memory_format=torch.channels_last)


def use_process(settings: DetectorSettings) -> None:
    """Set up this process for one detector: torch's threads, and freed memory that is kept.

    For processes of our own (a detector actor, a command): both hold for all of the process.
    Without effect where the detector runs on a GPU.
    """
    if pick_device(settings.device).type == "cpu":
        set_up_process(settings.threads)


def load_detector(
    model: ModelFile,
    settings: DetectorSettings,
    *,
    inference: Inference | None = None,
) -> Detector:
    """Make a detector from a model file; `inference` replaces the card's thresholds and caps.

    It takes the process as it is: `settings.threads` says how many threads that has, and
    `use_process` gives it so many.
    """
    network = load_network(model)
    return Detector(network, model.card, settings, inference=inference)


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
            fast = cpu_computes_bfloat16()
        name = "bfloat16" if fast else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _network_precision(name: str, device: torch.device, card: ModelCard) -> torch.dtype:
    """torchvision's detectors decode in the precision of their weights: float32 alone will do."""
    kind = card.architecture.kind
    if kind == "retinanet":
        return pick_precision(name, device)
    if name == "bfloat16":
        raise ModelError(f"detect.precision: {kind} runs in float32 only, got bfloat16")
    return torch.float32


def _boxes(found: ChipBoxes, chip: int) -> Boxes:
    n = len(found.scores)
    return Boxes(
        found.boxes.cpu().numpy(),
        found.scores.float().cpu().numpy(),
        found.labels.cpu().numpy().astype(np.int16),
        np.full(n, chip, np.int32),
    )
