"""How a run ends: by itself, or cut short, with a report in either case."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from scenesweep.pipeline.engine.steps import Stop, one_line
from scenesweep.pipeline.errors import Exit, OutputError, ScenesweepError, exit_for

log = logging.getLogger(__name__)

STOPPED = "stopped on request: the same command goes on from what is staged"


@dataclass(frozen=True, slots=True)
class CutShort:
    """Why a run ended before all its scenes had, and its exit code.

    `error` is what a caller of `pipeline.sweep` is to see raised: KeyboardInterrupt or a bug.
    """

    why: str
    code: Exit
    error: BaseException | None = field(default=None, compare=False)


def cut_short(
    sweep: Callable[[], None], stop: Stop, *, results: Callable[[], int]
) -> CutShort | None:
    """Run a sweep to its end; say why it ended early, if it did.

    Raises:
        ScenesweepError: when it ended before it had a result: then there is nothing to report.
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
        log.exception("this is a bug of ours; please report it with this text")
        return CutShort(one_line(error), Exit.BUG, error)
    return CutShort(STOPPED, Exit.STOPPED) if stop() else None
