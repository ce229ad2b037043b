"""Estimate forward passes on an H200 by arithmetic. Nothing is measured; it needs no GPU.

Each operation takes as long as its arithmetic or its bytes, whichever is longer (Williams et al.
2009, "Roofline"). Constants: 790 TFLOP/s of bfloat16 matrix product, 85 % of 4.3 TB/s, and
convolutions at 0.75 (3 x 3 and larger) or 0.60 (1 x 1) of the matrix rate; these two are guesses.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.figures import Figure, tell
from benchmarks.gpu_timing import make_network, resnet
from scenesweep.model.card import ModelCard
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.fuse import move

MATMUL, COPY = 790e12, 0.85 * 4.3e12
BATCH = 16
_PASSES = {"relu_": 2, "relu": 2, "add_": 3, "add": 3, "native_group_norm": 7}
"""Reads and writes of the result's size. A group norm of torch 2.11 copies to NCHW and back."""
_IN_KERNELS = ("bias", "relu_", "add_")
"""What fused layers leave to cuDNN's kernels."""


class Times(TorchDispatchMode):
    """Adds up the estimated seconds of each kind of operation in its block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._previous = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.seconds["convolution"] += _convolution(args[0], args[1], output)
            if args[2] is not None:
                self.seconds["bias"] += 2 * output.nbytes / COPY
        elif name in _PASSES:
            result = output[0] if isinstance(output, tuple) else output
            after_norm = name == "relu_" and self._previous == "native_group_norm"
            kind = "relu after a norm" if after_norm else name
            self.seconds[kind] += _PASSES[name] * result.nbytes / COPY
        elif "pool" in name or "upsample" in name:
            result = output[0] if isinstance(output, tuple) else output
            self.seconds[name] += (args[0].nbytes + result.nbytes) / COPY
        self._previous = name
        return output


def _convolution(maps: Tensor, weight: Tensor, output: Tensor) -> float:
    flops = 2 * output.numel() * weight[0].numel()
    share = 0.75 if weight.shape[-1] > 1 else 0.60
    nbytes = maps.nbytes + weight.nbytes + output.nbytes
    return max(flops / (MATMUL * share), nbytes / COPY)


def estimate(card: ModelCard) -> list[Figure]:
    """Return the estimated rates of a network: plain, and with fused layers."""
    network = make_network(card)
    move(network, torch.device("cpu"), torch.bfloat16)
    network.to("meta")
    shape = (BATCH, len(card.bands), card.chip_px, card.chip_px)
    with torch.no_grad(), Times() as times:
        network(torch.empty(shape, dtype=torch.bfloat16, device="meta"))
    plain = sum(times.seconds.values())
    fused = plain - sum(times.seconds[name] for name in _IN_KERNELS)
    alone = times.seconds["convolution"]
    return [
        Figure(f"{card.name}: {what}, batch of {BATCH}", BATCH / seconds, "chips/s")
        for what, seconds in (("plain", plain), ("fused", fused), ("convolutions alone", alone))
    ]


def main() -> None:
    cards = (resnet(False), open_model("naip-trees").card, open_model("overhead-buildings").card)
    figures = [figure for card in cards for figure in estimate(card)]
    tell("gpu-estimate", figures, note="estimated by arithmetic for an H200; nothing was measured")


if __name__ == "__main__":
    main()
