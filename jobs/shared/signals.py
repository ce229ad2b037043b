"""Stop a run by Ctrl-C, SIGTERM or `ray job stop`.

The first signal lets the current piece end; the second stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from scenesweep.pipeline.errors import Exit

CTRL_C_GRACE_S = 60.0
"""Long enough for a piece to end; whoever does not want to wait presses Ctrl-C again."""
_RAY_WAITS_S = 3.0  # Ray's default time from SIGTERM to SIGKILL
_REPORT_S = 3.0  # to write the report after the grace; then the process exits in any case
_LAST_AFTER_SECOND_S = 2.0


def grace_for(number: int, grace_s: float | None, environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that the current piece may take after a signal.

    `grace_s` is `engine.stop_grace_s`. Without it, Ctrl-C gives a minute. SIGTERM gives half of
    the time after which `ray job stop` kills the process (`RAY_JOB_STOP_WAIT_TIME_S`), because
    writing the report needs the rest.
    """
    if grace_s is not None:
        return grace_s
    if number == signal.SIGINT:
        return CTRL_C_GRACE_S
    try:
        return float(environ.get("RAY_JOB_STOP_WAIT_TIME_S", _RAY_WAITS_S)) / 2
    except ValueError:
        return _RAY_WAITS_S / 2


@dataclass(slots=True)
class Stopping:
    """Counts the requests to stop. The sweep calls it to learn whether there was one."""

    grace_s: float | None = None
    requests: int = 0
    _timers: list[threading.Timer] = field(default_factory=list)

    def __call__(self) -> bool:
        return self.requests > 0

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Start the timers at the first request; raise KeyboardInterrupt at the second."""
        self.requests += 1
        if self.requests == 1:
            grace_s = grace_for(number, self.grace_s)
            message = (
                f"Stopping after the current piece, in {grace_s:g} s at the latest; "
                "press Ctrl-C again to stop now.\n"
            )
            os.write(2, message.encode())  # not through the log: the signal may have interrupted it
            self._after(grace_s, _interrupt)
            self._after(grace_s + _REPORT_S, _end)
        elif self.requests == 2:
            self._after(_LAST_AFTER_SECOND_S, _end)
            raise KeyboardInterrupt

    def over(self) -> None:
        """Cancel the timers, because the run has ended."""
        for timer in self._timers:
            timer.cancel()

    def _after(self, seconds: float, act: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)


@contextmanager
def stop_on_signals(grace_s: float | None = None) -> Iterator[Stopping]:
    """Treat SIGINT and SIGTERM as requests to stop inside the block.

    The current piece may take the seconds of `grace_for`. After them, and at a second signal,
    KeyboardInterrupt is raised. A process that still hangs 3 s later exits.
    """
    stopping = Stopping(grace_s)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stopping.on_signal) for number in signals}
    try:
        yield stopping
    finally:
        stopping.over()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt() -> None:
    """Send a real signal to the main thread, because that also interrupts a sleep."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)


def _end() -> None:
    os._exit(Exit.STOPPED)
