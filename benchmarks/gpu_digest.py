"""Print a digest of a network's outputs, for `gpu_networks.invariance`, which runs it twice."""

from __future__ import annotations

import hashlib
import sys

import torch

from benchmarks.gpu_timing import Bench, make_network, noise, placed


def main() -> None:
    bench = Bench(torch.device(sys.argv[1]), quick="--quick" in sys.argv)
    digest = hashlib.sha256()
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        for card in bench.cards():
            network = placed(make_network(card), bench, torch.bfloat16, fused=True)
            for level in network(noise(bench, card, bench.batch_of(card), torch.bfloat16)):
                digest.update(level.logits.cpu().numpy().tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
