"""`scenesweep verify`: check that what was published, and what is staged, is whole."""

from __future__ import annotations

import argparse
import json
import sys

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import Exit, OutputInUse, UsageError
from scenesweep.pipeline.results.verify import Verified, verify
from scenesweep.pipeline.runs.lock import lock_state
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.paths import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out", metavar="OUT", help="what scenesweep detect wrote: a folder or s3://..."
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check an output; print a line for each problem and return the exit code."""
    found = _verified(arguments.out)
    print(json.dumps(found.facts(), indent=2) if arguments.json else _text(found))
    return Exit.SOME_FAILED if found.problems else Exit.DONE


def _verified(name: str) -> Verified:
    """Check an output while no run is writing it.

    The lock is looked at before and after, and never taken: a run may start meanwhile. Then what
    was read is of two publications, and nothing is said of it.

    Raises:
        OutputInUse: when a run is writing, or began to while files were read.
        UsageError: when no run ever wrote there.
    """
    out = location_of(name)
    if not out.is_dir():
        raise UsageError(f"{name}: expected the output folder of a run, found none")
    before = lock_state(out)
    if before.holder is not None:
        raise OutputInUse(f"{name}: a run is writing there: {before.holder}; verify again after it")
    if not Output(out).is_written():
        raise UsageError(
            f"{name}: no scenesweep output here: expected checksums/ and detections/, "
            "as scenesweep detect --out writes them"
        )
    found = verify(out)
    after = lock_state(out)
    if after != before:
        raise OutputInUse(
            f"{name}: a run wrote there while it was verified"
            f"{f': {after.holder}' if after.holder else ''}; verify again after it"
        )
    return found


def _text(found: Verified) -> str:
    lines = [f"{problem.path}: {problem.what}" for problem in found.problems]
    end = f"{len(found.problems)} problems" if found.problems else "all whole"
    if not found.problems and not found.scenes:
        end = "no scene is published"
    lines.append(
        f"{found.scenes:,} scenes, {found.files:,} files, {found.parts:,} parts, "
        f"{found.bytes / 1e6:,.1f} MB: {end}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_job("verify"))
