"""Measure one GPU in under 8 minutes: networks, decoding, whole detectors, and targets G1 to G5.

    python -m benchmarks.gpu [--out FILE.json] [--quick] [--peers] [--only ITEM ...]

Needs torch, torchvision, numpy, safetensors, pydantic and pyyaml, and of this repository `model/`,
`benchmarks/` and `scenesweep/`: neither Ray nor rasterio. Each item stands alone: an error in one
is one line of the table, and the others go on. `--quick` runs tiny sizes on any machine, also on a
CPU; its figures mean nothing. `--peers` adds DeepForest and SAHI where they are installed.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks import gpu_detector, gpu_develop, gpu_networks, gpu_peers
from benchmarks.figures import RESULTS, Figure, at_least, at_most, machine
from benchmarks.gpu_timing import Bench, NeedsGpu


@dataclass(frozen=True, slots=True)
class Item:
    """One measurement, and the seconds after which it is stopped."""

    name: str
    measure: Callable[[Bench], list[Figure]]
    budget_s: float


ITEMS = (
    Item("ceilings", gpu_networks.ceilings, 30),
    Item("plain forward", gpu_networks.plain_forward, 40),
    Item("fused forward", gpu_networks.fused_forward, 60),
    Item("graphs", gpu_networks.graphs, 30),
    Item("decoding", gpu_detector.decoding, 35),
    Item("bare", gpu_detector.bare, 40),
    Item("detecting", gpu_detector.detecting, 45),
    Item("invariance", gpu_networks.invariance, 45),
    Item("staging", gpu_detector.staging, 40),
    Item("developing", gpu_develop.developing, 30),
    Item("reading", gpu_detector.reading, 40),
    Item("precision", gpu_detector.precision, 25),
    Item("norms", gpu_networks.norms, 20),
)
COMPILED = Item("compiled", gpu_networks.compiled, 90)
PEERS = Item("peers", gpu_peers.peers, 300)
TOTAL_S = 480
"""Seconds for all items without peers; an item that comes later is left out."""
H200_MATMUL = 790e12
G1_SHARE = 0.45
G4_SHARE = 1e9 * 111e3 / H200_MATMUL
"""Least arithmetic as a share of the matrix rate. On an H200, G1 is 1,400
chips/s, and G4 is 1 gigapixel/s of naip-trees, which has 111 GFLOP per megapixel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json", help="JSON to write")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, also on a CPU")
    parser.add_argument("--peers", action="store_true", help="also DeepForest and SAHI (G5)")
    parser.add_argument("--only", nargs="+", metavar="ITEM", help="these items, after 'ceilings'")
    arguments = parser.parse_args()
    items = chosen(arguments.only, peers=arguments.peers)
    if items is None:
        parser.error(f"--only: expected some of {', '.join(i.name for i in (*ITEMS, COMPILED))}")
    if not arguments.quick and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, found none; --quick runs on a CPU")
    bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), arguments.quick)
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        results = run(items, bench)
    figures = targets(bench)
    print("\ntargets")
    for figure in figures:
        print(line(figure))
    document = {
        "machine": {**machine(), "gpu": gpu(bench)},
        "quick": arguments.quick,
        "items": results,
        "targets": {figure.what.split(":")[0]: _measured(figure) for figure in figures},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {arguments.out}")


def chosen(names: list[str] | None, *, peers: bool) -> list[Item] | None:
    """Return the items to run; None when there is no item of such a name."""
    every = [*ITEMS, COMPILED, *([PEERS] if peers else [])]
    if names is None:
        return every
    if not set(names) <= {item.name for item in every}:
        return None
    return [item for item in every if item.name in {"ceilings", *names}]


def run(items: list[Item], bench: Bench) -> dict[str, Any]:
    """Measure all items. The result has figures, seconds and error of each, by its name."""
    started, results = time.monotonic(), {}
    for item in items:
        before = time.monotonic()
        figures: list[Figure] = []
        error = ""
        print(f"\n{item.name}", flush=True)
        try:
            left = TOTAL_S - (before - started)
            if item is not PEERS and left < item.budget_s / 2:
                raise TimeoutError(f"left out: {left:.0f} s are left of {TOTAL_S}")
            with time_limit(item.budget_s):
                figures = item.measure(bench)
        except NeedsGpu as reason:
            error = f"needs a GPU: {reason}"
        except Exception as reason:
            error = f"{type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0]}"
        for figure in figures:
            print(line(figure))
        if error:
            print(f"  {error}", flush=True)
        results[item.name] = {
            "seconds": time.monotonic() - before,
            "error": error,
            "figures": [asdict(figure) for figure in figures],
        }
        if bench.on_gpu:
            torch.cuda.empty_cache()
    return results


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in this block after so many seconds."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def targets(bench: Bench) -> list[Figure]:
    """Return G1 to G5 with their verdicts. A target that was not measured has value NaN."""
    first, second = (card.name for card in bench.cards())

    def known(key: str) -> float:
        return bench.known.get(key, float("nan"))

    return [
        at_least(f"G1: {first}, share of the matrix rate", known(f"share {first}"), "", G1_SHARE),
        at_least("G2: from shards in memory / bare", known(f"staged share {first}"), "", 0.95),
        at_least("G2 readers: / bare", known("read share"), "", 0.85),
        at_most("G3: decoding / forward", known(f"decode share {first}"), "", 0.08),
        at_most("G3 syncs: in a batch", known(f"syncs {first}"), "", 1),
        at_least("G3 boxes: equal to the CPU's", known(f"boxes equal {first}"), "", 1),
        at_least(f"G4: {second}, share of the matrix rate", known(f"share {second}"), "", G4_SHARE),
        at_least("G5: over the faster of DeepForest and SAHI", known("peers"), "x", 10),
    ]


def line(figure: Figure) -> str:
    """Return a figure as a line of the table."""
    if math.isnan(figure.value):
        return f"  {figure.what:<66} not measured"
    verdict = "" if figure.met is None else "met" if figure.met else "NOT MET"
    value = f"{figure.value:,.4g} {figure.unit}"
    return f"  {figure.what:<66} {value:<22} {figure.target:<10} {verdict}".rstrip()


def _measured(figure: Figure) -> dict[str, Any]:
    """Return a target as JSON; value and verdict are null where it was not measured."""
    empty = {"value": None, "met": None} if math.isnan(figure.value) else {}
    return asdict(figure) | empty


def gpu(bench: Bench) -> dict[str, Any]:
    """Return what the GPU is, and the versions of CUDA and cuDNN."""
    if not bench.on_gpu:
        return {}
    facts = torch.cuda.get_device_properties(bench.device)
    return {
        "name": facts.name,
        "memory_GiB": facts.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


if __name__ == "__main__":
    main()
