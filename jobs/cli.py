"""`scenesweep`: one command with a subcommand a job, and what all jobs share."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from types import FrameType
from typing import NoReturn

from scenesweep import __version__
from scenesweep.pipeline.errors import UNWRITABLE, Exit, ScenesweepError, exit_for
from scenesweep.pipeline.storage.network import unsigned

COMMANDS = {
    "detect": "sweep a model over scenes and publish what it finds",
    "inspect": "say what scenes are and how they would be cut",
    "train": "train a model on labelled chips",
    "evaluate": "judge a model on labelled chips, or a sweep against truth",
    "verify": "check published files against their checksums",
    "view": "write HTML pages that show the detections",
    "models": "list, show, import and export models",
    "query": "find published detections, and print or write them",
    "compact": "join the tables of each date into one, and mark duplicates",
    "demo": "make a synthetic scene, sweep it and compare with its truth",
}
log = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: the usage of a command with many options hides them."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, which options have such a name, and where all of them are named."""
        unknown = message.split() if message.startswith("unrecognized arguments") else []
        words = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        close = {
            option: None
            for word in words
            for option in get_close_matches(word, self._option_string_actions, n=2, cutoff=0.7)
        }
        guess = f"; is {' or '.join(close)} meant?" if close else ""
        self.exit(Exit.USAGE, f"{self.prog}: {message}{guess} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand named first and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="scenesweep",
        description=f"Detect objects in satellite and aerial scenes of any size.\n\n{listing}",
        epilog="`scenesweep COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"scenesweep {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return run_job(parser.parse_args(argv[:1]).command, argv[1:])


def run_job(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one job with its arguments and return the exit code.

    Errors that the user can fix become one line, without a traceback.
    """
    job = importlib.import_module(f"scenesweep.jobs.{name}")
    parser = Parser(prog=f"scenesweep {name}", description=COMMANDS[name])
    job.add_arguments(parser)
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Unsigned("%(asctime)s %(levelname)s %(message)s"))
    for chatty in (
        "botocore",
        "rasterio",
        "pyogrio",
        "faster_coco_eval",
        "stac_geoparquet",
    ):  # their errors are raised
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(job.run(arguments))
    except ScenesweepError as error:
        _tell(f"scenesweep {name}: {error}")
        return exit_for(error)
    except OSError as error:
        if error.errno in UNWRITABLE:
            _tell(
                f"scenesweep {name}: cannot write: {error}; fix this and run the same command again"
            )
            return Exit.OUTPUT
        _tell(f"scenesweep {name}: {type(error).__name__}: {error}")  # a missing permission, say
        return Exit.USAGE
    except KeyboardInterrupt:
        _tell(f"scenesweep {name}: stopped")
        return Exit.STOPPED
    except Exception:
        log.exception("scenesweep %s: this is a bug of ours; please report it with this text", name)
        return Exit.BUG


def _tell(line: str) -> None:
    """Put a line on stderr; where that is a file on a full disk, the exit code alone tells."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class _Unsigned(logging.Formatter):
    """Keeps signed addresses out of the log, also where a traceback shows them."""

    def format(self, record: logging.LogRecord) -> str:
        return unsigned(super().format(record))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
