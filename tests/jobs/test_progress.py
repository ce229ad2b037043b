"""What is said of a run while it goes on: pace, time left, log lines, bars on a terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from scenesweep.jobs.shared.progress import Display, Pace
from scenesweep.pipeline.engine.steps import Progress
from scenesweep.pipeline.runs.report import SceneResult, one_line


def far(windows: int, *, scenes: int = 0, planned: int = 1, known: int = 100) -> Progress:
    return Progress(scenes, windows, known, 2, planned, windows * 250_000)


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.megapixels_per_s is None
    pace.add(far(0), 0)
    assert pace.seconds_left(1) is None
    for second in range(200):  # nothing, while detectors come up
        pace.add(far(0), second)
    assert pace.megapixels_per_s is None
    for second in range(200, 301):
        pace.add(far(second - 199, known=1000), second)
    assert pace.megapixels_per_s == pytest.approx(0.25)
    assert pace.seconds_left(1) == pytest.approx(1000 - 101)


def test_scenes_that_are_not_planned_yet_take_as_long_as_the_others() -> None:
    pace = Pace()
    pace.add(far(0, planned=2, known=100), 0)
    pace.add(far(50, planned=2, known=100), 50)
    assert pace.seconds_left(2) == pytest.approx(50)
    assert pace.seconds_left(10) == pytest.approx(450)
    assert pace.seconds_left(0) == pytest.approx(50)


def test_a_log_gets_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 12.0])
    monkeypatch.setattr("scenesweep.jobs.shared.progress.time.monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO)
    with Display(3, stream=io.StringIO()) as display:
        display.update(far(0))
        display.update(far(10))
        display.count(SceneResult("a.tif", "a", "done", detections=1234, windows=10))
        display.count(SceneResult("b.tif", "b", "failed", reason="b.tif: no such file"))
        display.update(far(20))
        display.update(far(40, scenes=2, planned=3))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "0 of 3 scenes, 10 of at least 100 windows, 1 scene planned, 2 detectors, 0.50 Mpx/s, "
        "about 0:02:25 left, 0 detections published",
        "done: a: 1,234 detections in 10 windows",
        "failed: b.tif: no such file",
        "2 of 3 scenes, 40 of 100 windows, 2 detectors, 0.91 Mpx/s, 0:00:16 left, "
        "1,234 detections published, 1 failed",
    ]


def test_once_all_windows_are_done_the_line_says_that_it_is_publishing() -> None:
    display = Display(2, stream=io.StringIO())
    line = display.line(Progress(1, 24, 24, 0, 2, 24))
    assert line == "1 of 2 scenes, 24 of 24 windows, publishing 1 scene, 0 detections published"
    assert display.line(Progress(2, 24, 24, 0, 2, 24)) == (
        "2 of 2 scenes, 24 of 24 windows, 0 detections published"
    )
    # another scene has yet to be planned: its windows are not known
    assert "publishing" not in display.line(Progress(0, 24, 24, 1, 1, 24))
    begins = Display(1, stream=io.StringIO()).line(Progress(0, 0, 0, 0))
    assert begins == "0 of 1 scene, 0 scenes planned, 0 detectors, 0 detections published"


def test_scenes_that_are_up_to_date_have_one_line_in_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Display(200, stream=io.StringIO()) as display:
        for number in range(200):
            display.count(SceneResult(f"{number}.tif", str(number), "up-to-date", windows=1))
    assert caplog.messages == ["up to date, nothing to do: 200 scenes"]


@pytest.mark.parametrize(
    ("windows", "skipped", "said"),
    [
        (0, 4, "nothing was looked at (4 of 4 windows have no valid pixels to look at)"),
        (12, 353, "nothing was found in 12 windows (353 of 365 windows have no valid pixels to "
         "look at)"),
        (1, 0, "nothing was found in 1 window"),
    ],
)  # fmt: skip
def test_a_result_says_what_was_looked_at(windows: int, skipped: int, said: str) -> None:
    result = SceneResult("a.tif", "a", "done", windows=windows, skipped_windows=skipped)
    assert one_line(result) == f"done: a: {said}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal that the log goes to as well."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)
    assert handler.stream is stream


def test_a_terminal_gets_bars_and_whole_log_lines_above_them(terminal: Terminal) -> None:
    with Display(3, stream=terminal) as display:
        display.update(far(0))
        display.update(far(10, scenes=1))
        display.count(SceneResult("a.tif", "[red]a[/red]", "done", detections=7, windows=10))
        display.update(far(20, scenes=1))
        assert display._bars is not None
        display._bars.refresh()
    text = terminal.getvalue()
    assert "done: [red]a[/red]: 7 detections in 10 windows\n" in text
    assert "20/100" in text
    assert "7 detections published" in text
    assert "Mpx/s" in text
