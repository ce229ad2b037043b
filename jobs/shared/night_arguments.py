"""Options of `detect` for runs on a schedule."""

from __future__ import annotations

import argparse


def add_night_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that limit a run, check it, and report it."""
    parser.add_argument(
        "--canary",
        choices=("off", "warn", "stop"),
        help="sweep a painted scene with known detections first; if they differ, warn, or stop "
        "with exit code 7; default: warn for runs with a `name` in --config",
    )
    parser.add_argument(
        "--expected",
        action="append",
        metavar="SCENE",
        help="scenes that should be published, named like SCENE, for example @list.txt; the "
        "report says which are done, failed, late or missing",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="sweep only the I-th of N parts of the scenes"
    )
    parser.add_argument(
        "--only-new",
        action="store_true",
        help="keep scenes that any model or version published; without it, scenes are swept again "
        "if model, settings or version changed",
    )
    parser.add_argument(
        "--newest-first",
        action="store_true",
        help="sweep the scenes that were acquired last first, by the time in the catalog or list, "
        "otherwise by the modification time of the file",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="sweep at most N scenes that are not up to date"
    )
    parser.add_argument(
        "--deadline",
        metavar="HH:MM",
        help="stop at this time of the machine's clock; scenes that are left do not change the "
        "exit code, and the same command resumes",
    )
    parser.add_argument(
        "--notify",
        metavar="URL",
        help="post the summary to this address as JSON; default: SCENESWEEP_NOTIFY",
    )
