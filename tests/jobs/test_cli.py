"""A mistyped command gets one line, with a similar option if there is one."""

from __future__ import annotations

import pytest

from scenesweep.jobs import cli


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["query", "OUT", "--minscore", "0.5"],
            "scenesweep query: unrecognized arguments: --minscore 0.5; did you mean --min-score? "
            "(see scenesweep query --help)\n",
        ),
        (
            ["detect", "a.tif", "--modle=naip-trees"],
            "scenesweep detect: unrecognized arguments: --modle=naip-trees; did you mean --model? "
            "(see scenesweep detect --help)\n",
        ),
        (
            ["detect", "a.tif", "--zzz"],
            "scenesweep detect: unrecognized arguments: --zzz (see scenesweep detect --help)\n",
        ),
        (
            ["detect", "a.tif", "--max-cloud"],
            "scenesweep detect: argument --max-cloud: expected one argument "
            "(see scenesweep detect --help)\n",
        ),
    ],
)
def test_a_wrong_option_has_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err == said


def test_an_unknown_command_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["detekt"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("scenesweep: argument COMMAND: invalid choice: 'detekt'")
    assert "detect" in said
    assert said.count("\n") == 1
