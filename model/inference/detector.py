"""A detector: chips in, boxes out. It chooses device, precision and batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from scenesweep.model.inference.batch_size import batch_on_gpu, room_on_gpu
from scenesweep.model.inference.fold import fold
from scenesweep.model.inference.fuse import place
from scenesweep.model.inference.gpu_pass import GpuPass
from scenesweep.model.inference.process import set_up_process
from scenesweep.model.inference.slots import Batch, Shape, Slots
from scenesweep.model.inference.streams import CudaStreams, reproducible
from scenesweep.model.inference.windows import AnyWindows, chips_of
from scenesweep.model.inference.winograd import use_winograd
from scenesweep.model.networks.network import Network, normalisation
from scenesweep.model.networks.retinanet import RetinaNet
from scenesweep.model.private_apis.torch import cpu_computes_bfloat16
from scenesweep.model.settings import DetectorSettings

_TORCHVISIONS_BATCH = 16
"""Chips of a batch of torchvision's detectors on a GPU: their work is not known without a run."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Windows on which a detector has started. `Detector.collect` returns their boxes."""

    batches: tuple[Batch, ...]
    output: DetectorOutput | None
    """Set by a detector without slots: it has computed already."""

    @property
    def is_done(self) -> bool:
        """Say whether `Detector.collect` returns without waiting."""
        return all(batch.is_done for batch in self.batches)


class Detector:
    """Runs a network on chips, in batches of fixed size.

    Every batch is filled up to the same number of chips, so the boxes of a chip do not depend on
    the other chips. On a GPU, `submit` starts a batch and `collect` waits for it, so that the host
    works on one batch while the GPU computes the next (`slots.py`). One thread at a time may use a
    detector. The detector changes the network that it is given: it moves it to the device
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
        self._fixed_batch = settings.batch
        network = fold(network.eval())
        self.network = place(network, self.device, self.dtype)
        self.winograd = bool(self._may_use_winograd(settings) and use_winograd(self.network))
        mean, std = normalisation(self.card)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self._inference = inference or self.card.inference
        self.batch = self.batch_of((len(card.bands), card.chip_px, card.chip_px))
        self.slots = self._make_slots()

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
        """Return the device, the precision, and what else decides the last bits of a score."""
        parts = [f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"]
        if self.winograd:
            parts[0] += " winograd"
        if self.device.type == "cuda":
            parts += [
                torch.cuda.get_device_name(self.device),
                f"batch {self.batch}",
                f"torch {torch.__version__}",
                f"cuDNN {torch.backends.cudnn.version()}",
            ]
        return ", ".join(parts)

    def batch_of(self, shape: Shape) -> int:
        """Return how many chips of `shape` (bands, height, width) are computed together."""
        if self._fixed_batch or self.device.type == "cpu":
            return self._fixed_batch or 1
        if not isinstance(self.network, RetinaNet):
            return _TORCHVISIONS_BATCH
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return batch_on_gpu(self.card, shape[1:], memory)

    def _make_slots(self) -> Slots | None:
        """Return slots for a RetinaNet on a GPU, ready for chips of the card's size."""
        if self.device.type != "cuda" or not isinstance(self.network, RetinaNet):
            return None
        slots = Slots(self.gpu_pass(), CudaStreams(self.device), self.batch_of)
        slots.prepare((len(self.card.bands), self.card.chip_px, self.card.chip_px))
        return slots

    def gpu_pass(self) -> GpuPass:
        """Return what a GPU computes for a batch. The network must be a RetinaNet."""
        if not isinstance(self.network, RetinaNet):
            raise TypeError(f"expected a RetinaNet, got {self.card.architecture.kind}")
        room = room_on_gpu(self.card)
        return GpuPass(self.network, self._inference, self._mean, self._std, self.dtype, room)

    def _may_use_winograd(self, settings: DetectorSettings) -> bool:
        plain = self.device.type == "cpu" and self.dtype == torch.float32
        return settings.convolution == "auto" and plain and settings.threads == 1

    def detect(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        """Detect boxes in chips (N, bands, H, W) uint8. Boxes are xyxy float32 in chip pixels.

        H and W must be multiples of the network's stride.
        """
        self._check(chips.shape)
        if self.slots is None:
            return self._detect_now(chips)
        return self.collect(self.submit(chips_of(chips)))

    def submit(self, *parts: AnyWindows) -> Ticket:
        """Start on windows of one shape. Returns before a GPU is done; a CPU computes now.

        Each part has its own block of pixels; several small parts share a batch. At most two
        batches of a shape are in flight: with more, this waits for the oldest.
        """
        for part in parts:
            self._check((len(part), *part.shape))
        if len({part.shape for part in parts}) > 1:
            raise ValueError("expected windows of one shape in one call")
        if self.slots is not None and any(map(len, parts)):
            return Ticket(tuple(self.slots.submit(parts)), None)
        chips = [part.chips() for part in parts]
        if not chips:
            return Ticket((), _output([]))
        return Ticket((), self._detect_now(chips[0] if len(chips) == 1 else np.concatenate(chips)))

    def collect(self, ticket: Ticket) -> DetectorOutput:
        """Wait for a ticket and return its boxes; `chip` counts the windows of all its parts."""
        if ticket.output is not None:
            return ticket.output
        return _output([chip for batch in ticket.batches for chip in batch.boxes()])

    def _check(self, shape: tuple[int, ...]) -> None:
        bands, stride = len(self.card.bands), self.card.stride_px
        if len(shape) != 4 or shape[1] != bands or any(side % stride for side in shape[2:]):
            raise ValueError(
                f"expected chips (N, {bands}, H, W) with sides that are multiples of {stride}, "
                f"got {shape}"
            )

    def _detect_now(self, chips: NDArray[np.uint8]) -> DetectorOutput:
        batch = self.batch_of(chips.shape[1:])
        results: list[ChipBoxes] = []
        for start in range(0, len(chips), batch):
            results += self._detect_batch(chips[start : start + batch], batch)
        return _output(results)

    @torch.inference_mode()
    def _detect_batch(self, chips: NDArray[np.uint8], batch: int) -> list[ChipBoxes]:
        with reproducible() if self.device.type == "cuda" else nullcontext():
            return self.network.find(self.prepare(chips, batch), self._inference)[: len(chips)]

    def prepare(self, chips: NDArray[np.uint8], batch: int | None = None) -> Tensor:
        """Normalise chips and fill up the batch with zeros: (batch, bands, H, W) on the device."""
        missing = (batch or self.batch) - len(chips)
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


def _output(results: Sequence[ChipBoxes]) -> DetectorOutput:
    boxes = [_boxes(result, chip) for chip, result in enumerate(results)]
    capped = np.array([result.capped for result in results], np.bool_)
    return DetectorOutput(Boxes.join(Boxes.none(), *boxes), capped)


def _boxes(result: ChipBoxes, chip: int) -> Boxes:
    n = len(result.scores)
    return Boxes(
        result.boxes.cpu().numpy(),
        result.scores.float().cpu().numpy(),
        result.labels.cpu().numpy().astype(np.int16),
        np.full(n, chip, np.int32),
    )
