"""Slots on streams that run as late as they may: order, limits, and results as without slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scenesweep.model.boxes import DetectorOutput
from scenesweep.model.inference.detector import Detector, load_detector
from scenesweep.model.inference.slots import Batch, Slots
from scenesweep.model.inference.windows import Windows, chips_of, windows_of
from scenesweep.model.networks import retinanet
from scenesweep.model.networks.batched_decode import Room
from scenesweep.model.settings import DetectorSettings
from tests.model.inference.lazy_streams import LazyStreams
from tests.small_models import a_model, noise

FLOAT32 = DetectorSettings(device="cpu", precision="float32", convolution="direct", batch=2)


def with_slots(folder: Path, streams: LazyStreams) -> tuple[Detector, Detector]:
    """Return a detector without slots, and one with slots on `streams`."""
    plain, slotted = (load_detector(a_model(folder), FLOAT32) for _ in range(2))
    slotted.slots = Slots(slotted.gpu_pass(), streams, slotted.batch_of)
    return plain, slotted


def assert_equal(one: DetectorOutput, other: DetectorOutput) -> None:
    assert len(one.boxes)
    for name in ("xyxy", "score", "label", "chip"):
        np.testing.assert_array_equal(getattr(one.boxes, name), getattr(other.boxes, name))
    np.testing.assert_array_equal(one.capped, other.capped)


@pytest.mark.parametrize("late", [True, False])
def test_results_are_those_without_slots(tmp_path: Path, late: bool) -> None:
    plain, slotted = with_slots(tmp_path, LazyStreams(late=late))
    pixels = noise(1, size=128)[0]
    corners = np.array([[0, 0], [16, 32], [64, 64], [32, 8], [0, 64]])
    shard = windows_of(pixels, corners, size=(64, 64))
    other = chips_of(noise(4)[1:])
    tickets = [slotted.submit(shard), slotted.submit(other, shard), slotted.submit(other)]
    wanted = [
        plain.detect(shard.chips()),
        plain.detect(np.concatenate([other.chips(), shard.chips()])),
        plain.detect(other.chips()),
    ]
    for ticket, output in reversed(list(zip(tickets, wanted, strict=True))):
        assert_equal(slotted.collect(ticket), output)
        assert_equal(slotted.collect(ticket), output)  # a second time too
    assert_equal(slotted.detect(noise(3)), plain.detect(noise(3)))


@pytest.mark.parametrize("room", [Room(1, 1), Room(40, 1), Room(1024, 50, band=1)])
def test_little_room_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: Room
) -> None:
    """Chips that need more are decoded again in the same way, and only the rest chip by chip."""
    plain, slotted = with_slots(tmp_path, LazyStreams())
    little = replace(slotted.gpu_pass(), room=room)
    slotted.slots = Slots(little, LazyStreams(), slotted.batch_of)
    wanted, chips = plain.detect(noise(5)), chips_of(noise(5))
    monkeypatch.delattr(retinanet, "decode")
    assert_equal(slotted.collect(slotted.submit(chips)), wanted)
    monkeypatch.undo()
    monkeypatch.setattr(retinanet, "_MORE_ROOM", room)
    assert_equal(slotted.collect(slotted.submit(chips)), wanted)


def test_one_batch_computes_while_the_other_is_handled(tmp_path: Path) -> None:
    streams = LazyStreams()
    _, detector = with_slots(tmp_path, streams)
    shards = [chips_of(noise(8)[i : i + 2]) for i in range(0, 8, 2)]
    first = detector.submit(shards[0])
    streams.log.clear()
    for shard in shards[1:]:
        second = detector.submit(shard)
        detector.collect(first)
        first = second
    assert streams.log == ["upload", "compute", "download", "wait"] * 3


def test_at_most_two_batches_are_in_flight(tmp_path: Path) -> None:
    streams = LazyStreams()
    _, detector = with_slots(tmp_path, streams)
    detector.submit(chips_of(noise(12)))
    in_flight = np.cumsum([{"download": 1, "wait": -1}.get(step, 0) for step in streams.log])
    assert in_flight.max() == 2
    assert streams.log.count("compute") == 6


def test_a_batch_is_waited_for_once(tmp_path: Path) -> None:
    streams = LazyStreams()
    _, detector = with_slots(tmp_path, streams)
    detector.detect(noise(9))
    assert streams.log.count("wait") == streams.log.count("compute") == 5


def test_a_slot_that_is_filled_too_early_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, detector = with_slots(tmp_path, LazyStreams())
    monkeypatch.setattr(Batch, "boxes", lambda _: [])  # the third batch takes the first one's slot
    ticket = detector.submit(chips_of(noise(6)))
    monkeypatch.undo()
    first = ticket.batches[0].boxes()[0].scores.numpy()
    assert not np.array_equal(first, plain.detect(noise(1)).boxes.score)


def test_each_shape_has_slots_of_its_own_and_they_are_made_once(tmp_path: Path) -> None:
    streams = LazyStreams()
    plain, detector = with_slots(tmp_path, streams)
    tall = np.ascontiguousarray(noise(2, size=128)[..., :64])
    tickets = [detector.submit(chips_of(chips)) for chips in (noise(2), tall, noise(2), tall)]
    assert streams.log.count("capture") == 4
    for ticket, chips in zip(tickets, (noise(2), tall) * 2, strict=True):
        assert_equal(detector.collect(ticket), plain.detect(chips))


@pytest.mark.parametrize("slotted", [True, False])
def test_no_windows_have_no_boxes(tmp_path: Path, slotted: bool) -> None:
    detector = with_slots(tmp_path, LazyStreams())[slotted]
    none = chips_of(noise(1)[:0])
    assert len(detector.collect(detector.submit(none)).capped) == 0
    assert len(detector.collect(detector.submit()).boxes) == 0
    assert len(detector.detect(noise(1)[:0]).boxes) == 0


def test_windows_of_two_shapes_are_refused(tmp_path: Path) -> None:
    detector, _ = with_slots(tmp_path, LazyStreams())
    parts: list[Windows] = [chips_of(noise(1)), chips_of(noise(1, size=128))]
    with pytest.raises(ValueError, match="one shape"):
        detector.submit(*parts)
    with pytest.raises(ValueError, match="multiples of"):
        detector.submit(chips_of(noise(1, size=60)))
