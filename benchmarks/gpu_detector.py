"""Measurements of decoding and of whole detectors: boxes, waits, staging, reading, precision."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.figures import Figure
from benchmarks.gpu_networks import BF16, captured
from benchmarks.gpu_readers import Readers, readers
from benchmarks.gpu_timing import (
    SHIPPED,
    Bench,
    detector_for,
    make_network,
    noise,
    noise_chips,
    placed,
    settings_for,
    threshold_for,
)
from scenesweep.model.boxes import DetectorOutput
from scenesweep.model.card import Inference, ModelCard
from scenesweep.model.files.model_file import open_model
from scenesweep.model.inference.arithmetic import flops_per_chip
from scenesweep.model.inference.batch_size import room_on_gpu
from scenesweep.model.inference.detector import Detector, Ticket, load_detector
from scenesweep.model.inference.windows import AnyWindows, Windows, chips_of
from scenesweep.model.losses.criterion import RawOutputs
from scenesweep.model.networks.batched_decode import Packed, Room, decode_batch, unpack
from scenesweep.model.networks.decode import decode
from scenesweep.model.networks.retinanet import ROOM, RetinaNet

_CANDIDATES = (0, 150, 1000)
_READERS = 15


@dataclass(frozen=True, slots=True)
class _Case:
    """A fused network on the device, chips, and thresholds that leave so many candidates."""

    card: ModelCard
    network: RetinaNet
    chips: Tensor
    inference: Inference


def _case(bench: Bench, card: ModelCard, candidates: int) -> _Case:
    network = placed(make_network(card), bench, BF16, fused=True)
    chips = noise(bench, card, bench.batch_of(card), BF16)
    threshold = threshold_for(network, chips, candidates)
    inference = card.inference.model_copy(update={"score_threshold": threshold})
    return _Case(card, network, chips, inference)


@torch.inference_mode()
def decoding(bench: Bench) -> list[Figure]:
    """Measure `decode_batch`, and compare its boxes with those of the CPU on the same logits."""
    figures = []
    for card in bench.cards():
        case = _case(bench, card, 1000)
        outputs = case.network(case.chips)
        forward = bench.seconds(_work(bench, lambda c=case: c.network(c.chips)))  # type: ignore[misc]
        chosen = room_on_gpu(card)
        for room in dict.fromkeys((chosen, Room(512, 12), ROOM, Room(2048, 12))):
            seconds = bench.seconds(
                _work(bench, lambda c=case, o=outputs, r=room: _decoded(c, o, r))  # type: ignore[misc]
            )
            same, again = _compared(case, outputs, _decoded(case, outputs, room))
            pairs = "all pairs" if room.band is None else f"band {room.band}"
            what = f"{card.name}, capacity {room.capacity}, {pairs}"
            figures += [
                Figure(f"{what}: decode", 1000 * seconds, "ms"),
                Figure(f"{what}: decode / forward", seconds / forward, ""),
                Figure(f"{what}: chips with the boxes of the CPU", same, ""),
                Figure(f"{what}: chips that need more room", again, ""),
            ]
            if room == chosen:
                bench.known[f"decode share {card.name}"] = seconds / forward
                bench.known[f"boxes equal {card.name}"] = same
    return figures


def _work(bench: Bench, work: Callable[[], object]) -> Callable[[], object]:
    """Return the work as a CUDA graph where there is a GPU."""
    return captured(work) if bench.on_gpu else work


def _decoded(case: _Case, outputs: list[RawOutputs], room: Room) -> Packed:
    shape = (case.chips.shape[2], case.chips.shape[3])
    anchors = case.network.anchors(shape, case.chips.device)
    return decode_batch(outputs, anchors, case.inference, shape, room=room)


def _compared(case: _Case, outputs: list[RawOutputs], packed: Packed) -> tuple[float, float]:
    """Return the shares of 16 chips with the boxes of the CPU, and of all that need more room."""
    shape = (case.chips.shape[2], case.chips.shape[3])
    anchors = case.network.anchors(shape, torch.device("cpu"))
    on_cpu = [_on_cpu(level) for level in outputs]
    slow: list[int] = []

    def one(chip: int) -> object:
        return decode([level.of(chip) for level in on_cpu], anchors, case.inference, shape)

    def again(chip: int) -> object:
        slow.append(chip)
        return one(chip)

    ready = Packed(packed.rows.cpu(), packed.count.cpu(), packed.flags.cpu())
    found = unpack(ready, again)  # type: ignore[arg-type]
    same = [_equal(chip, one(number)) for number, chip in enumerate(found[:16])]
    return float(np.mean(same)), len(slow) / len(found)


def _on_cpu(raw: RawOutputs) -> RawOutputs:
    quality = None if raw.quality is None else raw.quality.cpu()
    return RawOutputs(raw.logits.cpu(), raw.deltas.cpu(), quality)


def _equal(a: object, b: object) -> bool:
    names = ("boxes", "scores", "labels")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def bare(bench: Bench) -> list[Figure]:
    """G1, G4: network and decoding on chips that are on the device, in a CUDA graph."""
    figures = []
    for card in bench.cards():
        chosen = bench.batch_of(card)
        for batch in (chosen,) if bench.quick else sorted({16, 64, 128, chosen}):
            if batch * bench.px(card) ** 2 > 64 * 800**2:
                continue
            rate = _bare_rate(bench, card, batch)
            what = f"{card.name}: network and decoding, batch of {batch}"
            flops = flops_per_chip(card) * (bench.px(card) / card.chip_px) ** 2
            share = rate * flops / bench.known["matmul"]
            pixels = rate * bench.px(card) ** 2
            figures += [
                Figure(what, rate, "chips/s"),
                Figure(f"{what}: of matmul", share, ""),
                Figure(f"{what}: pixels", pixels / 1e6, "Mpx/s"),
            ]
            for name, value in (("rate", rate), ("share", share), ("px/s", pixels)):
                key = f"{name} {card.name}"
                bench.known[key] = max(value, bench.known.get(key, 0.0))
            if batch == chosen:
                bench.known[f"bare {card.name}"] = rate
    return figures


@torch.inference_mode()
def _bare_rate(bench: Bench, card: ModelCard, batch: int) -> float:
    case = _case(bench, card, 150)
    chips = noise(bench, card, batch, BF16)
    anchors = case.network.anchors((chips.shape[2], chips.shape[3]), chips.device)
    room = room_on_gpu(card)
    work = _work(bench, lambda: case.network.find_packed(chips, case.inference, anchors, room))
    return batch / bench.seconds(work)


def detecting(bench: Bench) -> list[Figure]:
    """Measure `Detector.detect` on chips in memory, and count how often it waits for the GPU."""
    figures = []
    for card in bench.cards():
        batch = bench.batch_of(card)
        chips = noise_chips(bench, card, 2 * batch)
        plain = detector_for(bench, card)
        for candidates in _CANDIDATES:
            inference = inference_for(plain, chips[:batch], candidates)
            detector = detector_for(bench, card, inference)
            boxes = len(detector.detect(chips).boxes) / len(chips)
            rate = len(chips) / bench.seconds(lambda d=detector, c=chips: d.detect(c))  # type: ignore[misc]
            what = f"{card.name}: detect, {candidates} candidates a chip"
            figures += [
                Figure(f"{what}: chips", rate, "chips/s"),
                Figure(f"{what}: boxes", boxes, "boxes a chip"),
            ]
        if bench.on_gpu:
            waits = count_syncs(lambda d=detector, c=chips: d.detect(c))  # type: ignore[misc]
            bench.known[f"syncs {card.name}"] = waits / 2
            figures.append(Figure(f"{card.name}: syncs in a batch", waits / 2, ""))
    return figures


def inference_for(detector: Detector, chips: NDArray[np.uint8], candidates: int) -> Inference:
    """Return thresholds that leave about so many candidates in each chip of a batch."""
    network = detector.network
    if not isinstance(network, RetinaNet):
        raise TypeError(f"expected a RetinaNet, got {type(network).__name__}")
    threshold = threshold_for(network, detector.prepare(chips), candidates)
    return detector.card.inference.model_copy(update={"score_threshold": threshold})


def calibrated(
    bench: Bench, card: ModelCard, chips: NDArray[np.uint8], candidates: int
) -> Detector:
    """Return a detector whose threshold leaves about so many candidates in each chip."""
    inference = inference_for(detector_for(bench, card), chips, candidates)
    return detector_for(bench, card, inference)


def count_syncs(work: Callable[[], object]) -> int:
    """Count the waits of the host for the GPU, as torch's debug mode reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def stream(detector: Detector, shards: Iterable[AnyWindows]) -> Iterator[DetectorOutput]:
    """Detect on shards: the next one is submitted before one is collected."""
    waiting: deque[Ticket] = deque()
    for shard in shards:
        waiting.append(detector.submit(shard))
        if len(waiting) == 2:
            yield detector.collect(waiting.popleft())
    while waiting:
        yield detector.collect(waiting.popleft())


def staging(bench: Bench) -> list[Figure]:
    """G2: shards in the host's memory, staged, detected and collected."""
    figures = []
    for card in bench.cards():
        shard = noise_chips(bench, card, bench.batch_of(card))
        ring = [chips_of(np.roll(shard, step, axis=0)) for step in range(4)]
        detector = calibrated(bench, card, shard, 150)
        rate = _stream_rate(bench, detector, ring)
        share = rate / bench.known[f"bare {card.name}"]
        bench.known[f"staged share {card.name}"] = share
        figures += [
            Figure(f"{card.name}: from shards in memory", rate, "chips/s"),
            Figure(f"{card.name}: from shards in memory / bare", share, ""),
        ]
    return figures


def windows_rate(bench: Bench, detector: Detector, shard: AnyWindows) -> float:
    """Return chips per second of one shard again and again, over about three seconds."""
    return _stream_rate(bench, detector, [shard], seconds=3)


def _stream_rate(
    bench: Bench, detector: Detector, ring: Sequence[AnyWindows], *, seconds: float = 5
) -> float:
    """Return chips per second over about so many seconds."""
    for _ in stream(detector, ring):
        pass
    rounds = 1 if bench.quick else 8
    started, chips = time.perf_counter(), 0
    while chips == 0 or (not bench.quick and time.perf_counter() - started < seconds):
        chips += sum(len(output.capped) for output in stream(detector, [*ring] * rounds))
    return chips / (time.perf_counter() - started)


def reading(bench: Bench) -> list[Figure]:
    """G2: shards that reader processes decompress meanwhile."""
    card = bench.cards()[1 if bench.quick else 0]
    batch = bench.batch_of(card)
    shard = noise_chips(bench, card, batch)
    detector = calibrated(bench, card, shard, 150)
    count = 1 if bench.quick else _READERS
    shards = 4 if bench.quick else 400
    with readers(shard, count) as running:
        for _ in stream(detector, _read(running, 1)):
            pass
        before, started = running.busy_s.value, time.perf_counter()
        for _ in stream(detector, _read(running, shards)):
            pass
        seconds = time.perf_counter() - started
        busy = running.busy_s.value - before
    rate = shards * batch / seconds
    share = rate / bench.known[f"bare {card.name}"]
    bench.known["read share"] = share
    pixels = shards * batch * bench.px(card) ** 2
    return [
        Figure(f"{card.name}: with {count} readers", rate, "chips/s"),
        Figure(f"{card.name}: with {count} readers / bare", share, ""),
        Figure("a reader's rate", pixels / max(busy, 1e-9) / 1e6, "Mpx/s a core"),
    ]


def _read(running: Readers, shards: int) -> Iterator[Windows]:
    """Yield shards as they are read. `submit` copies a shard, so its slot is free afterwards."""
    for _ in range(shards):
        slot = running.full.get(timeout=60)
        yield chips_of(running.slots[slot])
        running.free.put(slot)


def precision(bench: Bench) -> list[Figure]:
    """Compare the boxes of bfloat16 with those of float32, on noise.

    The figure is the share of boxes that have a box of the other precision with an IoU of at least
    0.5.
    """
    card = bench.cards()[1]
    chips = noise_chips(bench, card, bench.batch_of(card))
    inference = inference_for(detector_for(bench, card), chips, 150)
    settings = settings_for(bench)
    found = [
        load_detector(
            open_model(SHIPPED),
            settings.model_copy(update={"precision": name}),
            inference=inference,
        )
        .detect(chips)
        .boxes
        for name in ("float32", "bfloat16")
    ]
    with_partner = 0
    for chip in range(len(chips)):
        a, b = (torch.from_numpy(boxes.take(boxes.chip == chip).xyxy) for boxes in found)
        near = box_iou(a, b) >= 0.5
        with_partner += int(near.any(dim=0).sum() + near.any(dim=1).sum())
    score = with_partner / max(1, sum(map(len, found)))
    return [
        Figure("boxes in float32", len(found[0]), ""),
        Figure("bfloat16 and float32: boxes with a partner, noise", score, ""),
    ]
