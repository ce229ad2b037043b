"""How much is in progress follows from measured times."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from scenesweep.pipeline.engine.pace import Pace
from scenesweep.pipeline.engine.workers import Cluster


@dataclass(frozen=True)
class Piece:
    windows: int = 16


def pace(read_s: float, detect_s: float, size: int = 0, *, batch: int | None = None) -> Pace:
    """Return the pace after a read and a detection of 16 windows that took so long."""
    measured = Pace(batch)
    measured.has_read([Piece()], read_s, size)
    measured.has_detected([Piece()], detect_s)
    return measured


def test_reads_in_progress_cover_the_time_of_a_read() -> None:
    """By Little's law, and two more for each detector."""
    assert pace(0.2, 0.01).reads(8, 0, Cluster()) == 8 * (20 + 2) + 1
    assert pace(0.2, 8.0).reads(2, 0, Cluster()) == 2 * (1 + 2) + 1
    assert Pace(None).reads(8, 0, Cluster()) == 17
    assert pace(0.2, 0.01).reads(0, 0, Cluster()) == 1


def test_reads_that_wait_for_a_cpu_are_as_many_as_run() -> None:
    """So an autoscaler sees that more CPUs are wanted, and never thousands of tasks."""
    assert pace(0.2, 0.01).reads(8, 0, Cluster(readers=30)) == 60
    assert pace(0.2, 0.01).reads(8, 0, Cluster(readers=0)) == 17


def test_pixels_have_room_in_the_object_store() -> None:
    measured = pace(0.2, 0.05, size=10_000_000)
    room = Cluster(store_bytes=1_000_000_000)
    assert measured.windows_of_batch(8) == 16
    assert measured.reads(8, 16, room) == 50 - 16
    assert measured.reads(8, 16, Cluster(store_bytes=1000)) == 9


@pytest.mark.parametrize(
    ("detect_s", "detectors", "windows"),
    [(8.0, 1, 16), (0.016, 1, 50), (0.016, 64, 128), (0.0001, 1, 256), (0.016, 1000, 256)],
)
def test_a_batch_takes_its_detector_50_ms_and_longer_among_many(
    detect_s: float, detectors: int, windows: int
) -> None:
    assert pace(0.2, detect_s).windows_of_batch(detectors) == windows


def test_a_size_that_was_set_is_kept() -> None:
    assert pace(0.2, 0.0001, batch=5).windows_of_batch(64) == 5


def test_short_calls_get_company() -> None:
    assert Pace(None).calls_each(1) == 2
    assert pace(0.2, 8.0).calls_each(1) == 2
    assert pace(0.2, 0.016).calls_each(1) == 3
    assert pace(0.2, 0.0001).calls_each(1) == 4
