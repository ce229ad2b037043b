"""How a run ends: after all its scenes, or early. There is a report in both cases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from scenesweep.pipeline.engine.steps import Stop, one_line
from scenesweep.pipeline.errors import Exit, OutputError, ScenesweepError, exit_for

log = logging.getLogger(__name__)

STOPPED = "stopped on request: rerun the same command to resume"


@dataclass(frozen=True, slots=True)
class CutShort:
    """Why a run ended before all its scenes ended, and its exit code.

    `error` is what `pipeline.sweep` raises to its caller: KeyboardInterrupt or a bug.
    """

    why: str
    code: Exit
    error: BaseException | None = field(default=None, compare=False)


def cut_short(
    sweep: Callable[[], None], stop: Stop, *, results: Callable[[], int]
) -> CutShort | None:
    """Run a sweep; return why it ended early, or None if it did not.

    Raises:
        ScenesweepError: if it ended before its first result: then there is nothing to report.
    """
    try:
        sweep()
    except KeyboardInterrupt as error:
        return CutShort(STOPPED, Exit.STOPPED, error)
    except ScenesweepError as error:
        if not results() and not isinstance(error, OutputError):
            raise
        return CutShort(str(error), exit_for(error))
    except Exception as error:
        log.exception("this is a bug in scenesweep: please report it with this traceback")
        return CutShort(one_line(error), Exit.BUG, error)
    return CutShort(STOPPED, Exit.STOPPED) if stop() else None
