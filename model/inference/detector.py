"""A detector: chips in, boxes out. It chooses device, precision and batches."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from scenesweep.model.boxes import Boxes, ChipBoxes, DetectorOutput
from scenesweep.model.card import Inference, ModelCard, explain
from scenesweep.model.errors import ModelError
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import ModelFile, open_model
from scenesweep.model.inference.fold import fold_batch_norms
from scenesweep.model.inference.fuse import place
from scenesweep.model.inference.process import set_up_process
from scenesweep.model.inference.winograd import use_winograd
from scenesweep.model.networks.network import Network, normalisation
from scenesweep.model.private_apis.torch import cpu_computes_bfloat16
from scenesweep.model.settings import DetectorSettings


class Detector:
    """Runs a network on chips, in batches of fixed size.

    Every batch is filled up to the same number of chips, so the boxes of a chip do not depend on
    the other chips. The detector changes the network that it is given: it moves it to the device
    and folds its batch normalisation.
    """

    def __init__(
        self,
        network: Network,
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
        self.network = place(network, self.device, self.dtype)
        self.winograd = bool(self._may_use_winograd(settings) and use_winograd(self.network))
        mean, std = normalisation(self.card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self._inference = inference or self.card.inference

    @classmethod
    def load(cls, model: str, **settings: Any) -> Self:
        """Load a detector by the name of a built-in model or the path of a model file.

            detector = Detector.load("naip-trees")
            output = detector.detect(chips)  # (N, 4, H, W) uint8: red, green, blue, near infrared
            output.boxes.xyxy[output.boxes.chip == 0]

        The card says which imagery the detector needs: `detector.card.bands` and
        `detector.card.gsd_m`. On a CPU the detector uses torch's threads as they are in this
        process. `threads=4` changes their number for everything that uses torch in this process.
        Nothing else of the process changes.

        Args:
            model: for example `naip-trees`; `scenesweep models list` prints the names.
            settings: fields of `DetectorSettings`, for example `device="cuda"` or `threads=4`.

        Raises:
            ModelError: when there is no such model, setting or device.
        """
        file = open_model(model)
        try:
            chosen = DetectorSettings(**{"threads": torch.get_num_threads()} | settings)
        except ValidationError as error:
            raise ModelError(f"detector settings: {explain(error, DetectorSettings)}") from error
        if "threads" in settings:
            torch.set_num_threads(chosen.threads)
        return cls(load_network(file), file.card, chosen)

    @property
    def runs_on(self) -> str:
        """Return the device, precision and kind of convolutions in use."""
        convolution = " winograd" if self.winograd else ""
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}{convolution}"

    def _may_use_winograd(self, settings: DetectorSettings) -> bool:
        plain = self.device.type == "cpu" and self.dtype == torch.float32
        return settings.convolution == "auto" and plain and settings.threads == 1

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips (N, bands, H, W) uint8. Boxes are xyxy float32 in chip pixels.

        H and W must be multiples of the network's stride.
        """
        bands, stride = len(self.card.bands), self.card.stride_px
        if chips.shape[1] != bands or any(side % stride for side in chips.shape[2:]):
            raise ValueError(
                f"expected chips (N, {bands}, H, W) with sides that are multiples of {stride}, "
                f"got {chips.shape}"
            )
        boxes: list[Boxes] = []
        capped = np.zeros(len(chips), np.bool_)
        for start in range(0, len(chips), self.batch):
            batch = chips[start : start + self.batch]
            for chip, result in enumerate(self._detect_batch(batch), start=start):
                boxes.append(_boxes(result, chip))
                capped[chip] = result.capped
        return DetectorOutput(Boxes.join(Boxes.none(), *boxes), capped)

    @torch.inference_mode()
    def _detect_batch(self, chips: NDArray[np.uint8]) -> list[ChipBoxes]:
        return self.network.find(self.prepare(chips), self._inference)[: len(chips)]

    def prepare(self, chips: NDArray[np.uint8]) -> Tensor:
        """Normalise chips and fill up the batch with zeros: (batch, bands, H, W) on the device."""
        missing = self.batch - len(chips)
        if missing:
            chips = np.concatenate([chips, np.zeros((missing, *chips.shape[1:]), np.uint8)])
        pixels = torch.from_numpy(np.ascontiguousarray(chips)).to(self.device)
        normal = (pixels.float() - self._mean) / self._std
        return normal.to(self.dtype, memory_format=torch.channels_last)


def use_process(settings: DetectorSettings) -> None:
    """Set up this process for one detector: set torch's threads and keep freed memory.

    Only for processes of our own (a detector actor, a command), because it changes the complete
    process. Does nothing when the detector runs on a GPU.
    """
    if pick_device(settings.device).type == "cpu":
        set_up_process(settings.threads)


def load_detector(
    model: ModelFile,
    settings: DetectorSettings,
    *,
    inference: Inference | None = None,
) -> Detector:
    """Make a detector from a model file. `inference` replaces the card's thresholds and limits.

    The process does not change. `settings.threads` must be the number of torch's threads in it;
    `use_process` sets that number.
    """
    network = load_network(model)
    return Detector(network, model.card, settings, inference=inference)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU if there is one.

    Raises:
        ModelError: when `name` is a GPU and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("detect.device: expected a CUDA GPU, found none (use 'auto' or 'cpu')")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision called `name`; `auto` is bfloat16 if the processor computes in it."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = cpu_computes_bfloat16()
        name = "bfloat16" if fast else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _network_precision(name: str, device: torch.device, card: ModelCard) -> torch.dtype:
    """Return the precision of the network. torchvision's detectors need float32 to decode boxes."""
    kind = card.architecture.kind
    if kind == "retinanet":
        return pick_precision(name, device)
    if name == "bfloat16":
        raise ModelError(f"detect.precision: expected float32 for {kind}, got bfloat16")
    return torch.float32


def _boxes(result: ChipBoxes, chip: int) -> Boxes:
    n = len(result.scores)
    return Boxes(
        result.boxes.cpu().numpy(),
        result.scores.float().cpu().numpy(),
        result.labels.cpu().numpy().astype(np.int16),
        np.full(n, chip, np.int32),
    )
