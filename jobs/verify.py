"""`scenesweep verify`: check published files, and the parts of unfinished scenes, for damage."""

from __future__ import annotations

import argparse
import json
import sys

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import Exit, OutputInUse, UsageError
from scenesweep.pipeline.results.verify import Verified, verify
from scenesweep.pipeline.runs.writers import output_state
from scenesweep.pipeline.storage.location import location_of
from scenesweep.pipeline.storage.paths import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check an output; print a line for each problem and return the exit code."""
    result = _verified(arguments.out)
    print(json.dumps(result.facts(), indent=2) if arguments.json else _text(result))
    return Exit.SOME_FAILED if result.problems else Exit.DONE


def _verified(name: str) -> Verified:
    """Check an output while no run writes to it.

    This looks at the runs before and after the check, and takes no lock. If a run started in
    between, the files may be of two publications, so there is no result.

    Raises:
        OutputInUse: when a run is writing, or started while the files were read.
        UsageError: when no run ever wrote to this output.
    """
    out = location_of(name)
    if not out.is_dir():
        raise UsageError(f"{name}: expected the --out of scenesweep detect, found no such folder")
    before = output_state(out)
    if before.holder is not None:
        raise OutputInUse(
            f"{name}: a run is writing to it: {before.holder}; run verify again when it has ended"
        )
    if not Output(out).is_written():
        raise UsageError(
            f"{name}: no scenesweep output here: expected checksums/ and detections/, "
            "as scenesweep detect --out writes them"
        )
    result = verify(out)
    after = output_state(out)
    if after != before:
        raise OutputInUse(
            f"{name}: a run wrote to it during the check"
            f"{f': {after.holder}' if after.holder else ''}; run verify again when it has ended"
        )
    return result


def _text(result: Verified) -> str:
    lines = [f"{problem.path}: {problem.what}" for problem in result.problems]
    summary = f"{len(result.problems)} problems" if result.problems else "all complete"
    if not result.problems and not result.scenes:
        summary = "no scene is published"
    lines.append(
        f"{result.scenes:,} scenes, {result.files:,} files, {result.parts:,} parts, "
        f"{result.bytes / 1e6:,.1f} MB: {summary}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_job("verify"))
