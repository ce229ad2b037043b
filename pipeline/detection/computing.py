"""How a run computes: device kind and precision, one choice for all of its detectors.

The setting `auto` means something else on each machine. So it is decided once in a run, and parts
of an earlier run are reused only if they were computed in the same way: docs/decisions/0007.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from scenesweep.model.card import ModelCard
from scenesweep.pipeline.errors import UnfitMachine
from scenesweep.pipeline.settings import DetectSettings


@dataclass(frozen=True, slots=True)
class Computing:
    """A device kind, `cuda` or `cpu`, and a precision, `bfloat16` or `float32`."""

    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.device} {self.precision}"

    @classmethod
    def of(cls, ran_on: str) -> Self | None:
        """Return what a detector's `runs_on` says; None if it names no device and precision.

        Its other words (kind of convolutions, GPU, versions) change the last bits of scores only.
        """
        words = ran_on.replace(",", " ").split()
        devices = [word for word in words if word in ("cuda", "cpu")]
        precisions = [word for word in words if word in ("bfloat16", "float32")]
        return cls(devices[0], precisions[0]) if devices and precisions else None

    def within(self, settings: DetectSettings) -> DetectSettings:
        """Return settings with this device and precision in place of `auto`."""
        decided = {"device": self.device, "precision": self.precision}
        return settings.model_copy(update=decided)


def _own_choice(proposed: str) -> str:
    return proposed


@dataclass(frozen=True, slots=True)
class DetectorHost:
    """What the detectors of a run need to know of where they run.

    `own_process` says that each has a process of its own, in which it computes in a thread of its
    own. `gpu_share` is the share of a GPU that is reserved for each, 0 for none. `agree` takes
    what a detector would choose and returns what the run has chosen; a detector that is alone
    chooses itself. `computing` is set if it had to be known before the run: parts of an earlier
    run are there.
    """

    own_process: bool = False
    gpu_share: float = 0.0
    agree: Callable[[str], str] = _own_choice
    computing: Computing | None = None

    def device_for(self, settings: DetectSettings) -> str:
        """Return the device, or `auto` if the process may take the one that it finds.

        A process that reserved no GPU must not use one, and one that did must use it.
        """
        if self.gpu_share:
            return "cuda"
        if self.own_process and settings.device == "auto":
            return "cpu"
        return settings.device

    def computing_named_by(self, settings: DetectSettings) -> Computing | None:
        """Return what settings say without `auto`; None if a machine has to decide."""
        device, precision = self.device_for(settings), settings.precision
        return None if "auto" in (device, precision) else Computing(device, precision)

    def device_of_run(self, settings: DetectSettings) -> str:
        """Return the device of all detectors of the run, or `auto` if this process decides it."""
        return self.computing.device if self.computing else self.device_for(settings)


IN_THIS_PROCESS = DetectorHost()
"""The host of the plain loop's detector, and of all that are alone."""


def computing_here(settings: DetectSettings, card: ModelCard, host: DetectorHost) -> Computing:
    """Return how a detector would compute on this machine. Imports torch.

    Raises:
        UnfitMachine: when a GPU is reserved and cannot be used.
        ModelError: when the settings ask for a GPU that is not there, or do not fit the model.
    """
    from scenesweep.model.inference.detector import pick_device, pick_precision
    from scenesweep.model.inference.gpu import why_no_gpu

    if host.gpu_share and (why := why_no_gpu()):
        raise UnfitMachine(why)
    device = pick_device(host.device_for(settings))
    precision = settings.precision
    if precision == "auto" and card.architecture.kind != "retinanet":
        precision = "float32"  # torchvision's detectors decode boxes in it
    dtype = str(pick_precision(precision, device)).removeprefix("torch.")
    return Computing(device.type, dtype)


def develops(device: str, card: ModelCard) -> bool:
    """Say whether detectors of a run stretch and resample source pixels themselves.

    They do on a GPU; on a CPU, the network takes much longer than readers. `auto` asks torch: use
    it only in a process that has its detector already.
    """
    if card.architecture.kind != "retinanet":
        return False  # torchvision's detectors take chips
    if device == "auto":
        from scenesweep.model.inference.detector import pick_device

        device = pick_device(device).type
    return device == "cuda"


def agreed_computing(settings: DetectSettings, card: ModelCard, host: DetectorHost) -> Computing:
    """Return how this run computes, and check that this machine can do so without emulation.

    Raises:
        UnfitMachine: when it cannot.
        ModelError: as `computing_here`.
    """
    own = computing_here(settings, card, host)
    decided = host.computing or Computing.of(host.agree(str(own)))
    if decided is None:
        return own
    if decided.device == own.device and own.precision in (decided.precision, "bfloat16"):
        return decided
    raise UnfitMachine(
        f"it would compute as {own}, but this run computes as {decided}, as its first detector "
        "does; set detect.device and detect.precision to use all machines"
    )
