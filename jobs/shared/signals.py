"""How a run is asked to stop: Ctrl-C, SIGTERM or `ray job stop`. Once: in order; twice: at once."""

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
"""A person who does not want to wait for the current piece presses Ctrl-C again."""
_RAY_WAITS_S = 3.0  # from SIGTERM to SIGKILL, by itself
_REPORT_S = 3.0  # after the grace: for the report; then the process ends, whatever it does
_LAST_AFTER_SECOND_S = 2.0


def grace_for(number: int, asked_s: float | None, environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that the current piece has to end after a signal.

    `asked_s` is `engine.stop_grace_s`. Without it Ctrl-C gives a minute. SIGTERM gives half the
    time after which `ray job stop` kills (`RAY_JOB_STOP_WAIT_TIME_S`): the report needs the rest.
    """
    if asked_s is not None:
        return asked_s
    if number == signal.SIGINT:
        return CTRL_C_GRACE_S
    try:
        return float(environ.get("RAY_JOB_STOP_WAIT_TIME_S", _RAY_WAITS_S)) / 2
    except ValueError:
        return _RAY_WAITS_S / 2


@dataclass(slots=True)
class Stopping:
    """Whether the run was asked to stop; as a function, what the sweep asks."""

    grace_s: float | None = None
    asked: int = 0
    _timers: list[threading.Timer] = field(default_factory=list)

    def __call__(self) -> bool:
        return self.asked > 0

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Take note of the first request; break off what runs at the second."""
        self.asked += 1
        if self.asked == 1:
            grace_s = grace_for(number, self.grace_s)
            said = (
                f"Stopping after the current piece, in {grace_s:g} s at the latest; "
                "press Ctrl-C again to stop now.\n"
            )
            os.write(2, said.encode())  # a handler may have interrupted the log
            self._after(grace_s, _interrupt)
            self._after(grace_s + _REPORT_S, _end)
        elif self.asked == 2:
            self._after(_LAST_AFTER_SECOND_S, _end)
            raise KeyboardInterrupt

    def over(self) -> None:
        """Forget the time limits: the run has ended in order."""
        for timer in self._timers:
            timer.cancel()

    def _after(self, seconds: float, act: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)


@contextmanager
def stop_on_signals(grace_s: float | None = None) -> Iterator[Stopping]:
    """Take SIGINT and SIGTERM as requests to stop, within the block.

    The current piece has the time of `grace_for` to end; then KeyboardInterrupt is raised, as it
    is at the second signal. A process that hangs even so is ended 3 s later.
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
    """Signal the main thread once more; a real signal, so that it also ends a sleep."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)


def _end() -> None:
    os._exit(Exit.STOPPED)
