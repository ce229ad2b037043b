"""How long the current piece has to end after a signal."""

from __future__ import annotations

import signal

import pytest

from scenesweep.jobs.shared.signals import CTRL_C_GRACE_S, grace_for


@pytest.mark.parametrize(
    ("number", "asked_s", "environ", "grace_s"),
    [
        (signal.SIGINT, None, {"RAY_JOB_STOP_WAIT_TIME_S": "6"}, CTRL_C_GRACE_S),
        (signal.SIGINT, 5.0, {}, 5.0),
        (signal.SIGTERM, None, {}, 1.5),  # Ray kills after 3 s
        (signal.SIGTERM, None, {"RAY_JOB_STOP_WAIT_TIME_S": "30"}, 15.0),
        (signal.SIGTERM, None, {"RAY_JOB_STOP_WAIT_TIME_S": "long"}, 1.5),
        (signal.SIGTERM, 20.0, {"RAY_JOB_STOP_WAIT_TIME_S": "6"}, 20.0),
    ],
)
def test_the_grace_is_what_was_asked_for_or_what_the_sender_allows(
    number: int, asked_s: float | None, environ: dict[str, str], grace_s: float
) -> None:
    assert grace_for(number, asked_s, environ) == grace_s
