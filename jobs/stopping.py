"""How a run is asked to stop: Ctrl-C, SIGTERM or `ray job stop`. Once: in order; twice: at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from pipeline.errors import Exit

GRACE_S = 1.5  # for the shard in hand; `ray job stop` kills after 3 s
LAST_S = 4.5  # after which the process ends, whatever it is at
_LAST_AFTER_SECOND_S = 2.0
_SAID = b"stopping: what is in hand is finished; once more stops at once\n"


@dataclass(slots=True)
class Stopping:
    """Whether the run was asked to stop; as a function, what the sweep asks."""

    asked: int = 0
    _timers: list[threading.Timer] = field(default_factory=list)

    def __call__(self) -> bool:
        return self.asked > 0

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Take note of the first request; break off what runs at the second."""
        self.asked += 1
        if self.asked == 1:
            os.write(2, _SAID)  # a handler may have interrupted the log
            self._after(GRACE_S, _interrupt)
            self._after(LAST_S, _end)
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
def stop_on_signals() -> Iterator[Stopping]:
    """Take SIGINT and SIGTERM as requests to stop, within the block.

    The shard in hand has `GRACE_S` to end; then KeyboardInterrupt is raised, as it is at the
    second signal. A process that hangs even so is ended after `LAST_S`.
    """
    stopping = Stopping()
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
