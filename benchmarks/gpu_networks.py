"""Measurements of networks alone: ceilings, forward passes, layers, graphs, precision."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.figures import Figure
from benchmarks.gpu_timing import Bench, NeedsGpu, make_network, noise, placed
from scenesweep.model.card import ModelCard
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.inference.fuse import difference
from scenesweep.model.inference.fused_layers import ConvRelu, PaddedConv
from scenesweep.model.inference.group_norm import normalise_groups
from scenesweep.model.networks.retinanet import RetinaNet

BF16 = torch.bfloat16
_KINDS = {
    "convolution": ("conv", "cudnn", "xmma", "cutlass", "gemm", "implicit", "sm90", "nvjet"),
    "layout": ("nchw", "nhwc", "transpose"),
    "norm": ("moments", "norm", "welford"),
    "pool or enlarge": ("pool", "upsample"),
    "element by element": ("elementwise", "vectorized"),
}


@torch.inference_mode()
def ceilings(bench: Bench) -> list[Figure]:
    """Measure matrix product, copy, and copies from the host."""
    side = 256 if bench.quick else 8192
    a, b = (torch.randn(side, side, device=bench.device).to(BF16) for _ in range(2))
    rate = 2 * side**3 / bench.seconds(lambda: a @ b)
    bench.known["matmul"] = rate
    source = torch.zeros(2**18 if bench.quick else 2**30, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / bench.seconds(lambda: target.copy_(source))
    figures = [
        Figure(f"matrix product of {side}, bfloat16", rate / 1e12, "TFLOP/s"),
        Figure("copy, read and write", copied / 1e9, "GB/s"),
    ]
    if bench.on_gpu:
        host = torch.zeros(2**28, dtype=torch.uint8)
        pinned, there = host.pin_memory(), torch.empty(2**28, dtype=torch.uint8, device="cuda")
        for name, values in (("pinned", pinned), ("pageable", host)):
            seconds = bench.seconds(lambda v=values: there.copy_(v, non_blocking=True))  # type: ignore[misc]
            figures.append(Figure(f"copy from {name} memory", 2**28 / seconds / 1e9, "GB/s"))
    return figures


@torch.inference_mode()
def _forward(bench: Bench, *, fused: bool) -> list[Figure]:
    figures = []
    for card in bench.cards():
        network = placed(make_network(card), bench, BF16, fused=fused)
        flops = flops_per_chip(card) * (bench.px(card) / card.chip_px) ** 2
        for batch in bench.batches:
            if batch * bench.px(card) ** 2 > 64 * 800**2:
                continue
            chips = noise(bench, card, batch, BF16)
            rate = batch / bench.seconds(lambda c=chips, n=network: n(c))  # type: ignore[misc]
            way = "fused" if fused else "plain"
            bench.known[f"{way} {card.name} {batch}"] = rate
            what = f"{card.name}, {way}, batch of {batch}"
            share = rate * flops / bench.known["matmul"]
            figures += [Figure(what, rate, "chips/s"), Figure(f"{what}: of matmul", share, "")]
    return figures


def plain_forward(bench: Bench) -> list[Figure]:
    """Measure the plain networks, and the time of their kernels by kind."""
    figures = _forward(bench, fused=False)
    if bench.on_gpu:
        for card in bench.cards():
            network = placed(make_network(card), bench, BF16, fused=False)
            chips = noise(bench, card, bench.batch_of(card), BF16)
            figures += _kernel_times(network, chips, card.name)
    return figures


@torch.inference_mode()
def _kernel_times(network: RetinaNet, chips: Tensor, name: str) -> list[Figure]:
    network(chips)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        network(chips)
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    launches = 0
    for event in profile.key_averages():
        kind = _kind(event.key.lower())
        times[kind] += event.self_device_time_total / 1000
        launches += event.count
    figures = [Figure(f"{name}: {kind}", ms, "ms") for kind, ms in times.most_common()]
    return [*figures, Figure(f"{name}: kernels and copies", launches, "")]


def _kind(kernel: str) -> str:
    for kind in ("layout", "norm", "pool or enlarge", "element by element", "convolution"):
        if any(word in kernel for word in _KINDS[kind]):
            return kind
    return "other"


@torch.inference_mode()
def fused_forward(bench: Bench) -> list[Figure]:
    """Measure the fused networks; check them in memory filled with NaN; measure single layers."""
    figures = _forward(bench, fused=True)
    for card in bench.cards():
        plain = make_network(card)
        fused = placed(copy.deepcopy(plain), bench, BF16, fused=True)
        placed(plain, bench, BF16, fused=False)
        chips = noise(bench, card, 2, BF16)
        problem = difference(plain, fused, chips)
        print(f"  {card.name}: {problem or 'fused layers pass the check with NaN'}")
        largest = max(
            float((a.logits - b.logits.float()).abs().max())
            for a, b in zip(fused(chips), plain(chips), strict=True)
        )
        figures += [
            Figure(f"{card.name}: check with NaN passed", float(not problem), ""),
            Figure(f"{card.name}: largest difference of a logit", largest, ""),
        ]
    return figures + _layers(bench)


def _layers(bench: Bench) -> list[Figure]:
    """Measure single convolutions with bias and ReLU: plain and fused."""
    shapes = [(64, 64, 1, 200), (256, 64, 1, 200), (64, 64, 3, 200), (256, 256, 3, 100)]
    shapes += [(512, 2048, 1, 25), (512, 512, 3, 25)]
    if bench.quick:
        shapes = [(16, 16, 3, 16)]
    figures = []
    for inputs, outputs, kernel, cells in shapes:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).requires_grad_(False)
        fused = ConvRelu(conv).to(memory_format=torch.channels_last).to(bench.device, BF16)
        conv.to(memory_format=torch.channels_last).to(bench.device, BF16)
        maps = torch.randn(bench.batch, inputs, cells, cells, device=bench.device).to(
            BF16, memory_format=torch.channels_last
        )
        flops = 2 * bench.batch * inputs * outputs * kernel**2 * cells**2
        plain_s = bench.seconds(lambda c=conv, m=maps: c(m).relu_())  # type: ignore[misc]
        fused_s = bench.seconds(lambda f=fused, m=maps: f(m))  # type: ignore[misc]
        what = f"{kernel}x{kernel}, {inputs} -> {outputs}, {cells} cells"
        figures += [
            Figure(f"{what}: plain", flops / plain_s / 1e12, "TFLOP/s"),
            Figure(f"{what}: fused", flops / fused_s / 1e12, "TFLOP/s"),
        ]
    return figures


@torch.inference_mode()
def graphs(bench: Bench) -> list[Figure]:
    """Measure plain and fused networks in a CUDA graph."""
    if not bench.on_gpu:
        raise NeedsGpu("CUDA graphs")
    figures = []
    for card in bench.cards():
        for fused in (False, True):
            network = placed(make_network(card), bench, BF16, fused=fused)
            batch = bench.batch_of(card)
            chips = noise(bench, card, batch, BF16)
            replay = captured(lambda n=network, c=chips: n(c))  # type: ignore[misc]
            rate = batch / bench.seconds(replay)
            way = "fused" if fused else "plain"
            figures.append(Figure(f"{card.name}, {way}, in a graph", rate, "chips/s"))
            bench.known[f"graph {way} {card.name}"] = rate
    return figures


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """Capture the work in a CUDA graph and return the function that replays it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@torch.inference_mode()
def invariance(bench: Bench) -> list[Figure]:
    """Compare bits: one chip at every place of a batch, two runs, two processes."""
    figures = []
    for card in bench.cards():
        network = placed(make_network(card), bench, BF16, fused=True)
        chips = noise(bench, card, 1, BF16).expand(bench.batch_of(card), -1, -1, -1)
        first = _logits(network, chips)
        same = float((first == first[:1]).all())
        again = float(torch.equal(first, _logits(network, chips)))
        figures += [
            Figure(f"{card.name}: equal at all places of a batch", same, ""),
            Figure(f"{card.name}: equal in two runs", again, ""),
        ]
    digests = {_digest_in_process(bench) for _ in range(2)}
    return [*figures, Figure("equal in two processes", float(len(digests) == 1), "")]


def _logits(network: RetinaNet, chips: Tensor) -> Tensor:
    return torch.cat([level.logits for level in network(chips)], dim=1)


def _digest_in_process(bench: Bench) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu_digest", bench.device.type]
    if bench.quick:
        command.append("--quick")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@torch.inference_mode()
def norms(bench: Bench) -> list[Figure]:
    """Measure group norm with ReLU (torch's, own) and the stem with padded bands and without."""
    cells = 16 if bench.quick else 128
    maps = torch.randn(bench.batch, 96, cells, cells, device=bench.device)
    maps = maps.to(BF16, memory_format=torch.channels_last)
    norm = nn.GroupNorm(32, 96).to(bench.device, BF16).requires_grad_(False)
    copied = 2 * maps.numel() * maps.element_size()
    figures = []
    ways: dict[str, Callable[[], object]] = {
        "torch's": lambda: norm(maps).relu_().contiguous(memory_format=torch.channels_last),
        "own": lambda: normalise_groups(maps, norm).relu_(),
    }
    for name, work in ways.items():
        rate = copied / bench.seconds(work) / 1e9
        figures.append(Figure(f"group norm and ReLU, {name}", rate, "GB/s of one pass"))
    px = 64 if bench.quick else 512
    for bands in (3, 4):
        stem = nn.Conv2d(bands, 64, 7, stride=2, padding=3).requires_grad_(False)
        padded = PaddedConv(stem).to(memory_format=torch.channels_last).to(bench.device, BF16)
        stem.to(memory_format=torch.channels_last).to(bench.device, BF16)
        chips = torch.randn(bench.batch, 8, px, px, device=bench.device)
        chips = chips.to(BF16, memory_format=torch.channels_last)
        few = chips[:, :bands].contiguous(memory_format=torch.channels_last)
        for name, layer, given in (("not padded", stem, few), ("padded", padded, chips)):
            ms = 1000 * bench.seconds(lambda w=layer, c=given: w(c))  # type: ignore[misc]
            figures.append(Figure(f"stem, {bands} bands, {name}", ms, "ms"))
    return figures


@torch.inference_mode()
def compiled(bench: Bench) -> list[Figure]:
    """Measure the first network through torch.compile, with the time to compile it."""
    if not bench.on_gpu:
        raise NeedsGpu("torch.compile")
    card: ModelCard = bench.cards()[0]
    network = placed(make_network(card), bench, BF16, fused=False)
    batch = bench.batch_of(card)
    chips = noise(bench, card, batch, BF16)
    faster = torch.compile(network.forward)
    start = bench.once(lambda: faster(chips))
    rate = batch / bench.seconds(lambda: faster(chips))
    return [
        Figure(f"{card.name}: first call of torch.compile", start, "s"),
        Figure(f"{card.name}: compiled, batch of {batch}", rate, "chips/s"),
    ]
