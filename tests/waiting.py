"""Wait for something to happen, for as long as a busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, most_s: float = 60.0) -> None:
    """Return as soon as the condition holds.

    Raises:
        AssertionError: if it does not hold within `most_s`.
    """
    deadline = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {most_s:.0f} s"
        time.sleep(0.01)
