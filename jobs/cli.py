"""The command `scenesweep`: its subcommands, and the error handling that they share."""

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
from scenesweep.model.private_apis.torch_compiler import postpone_compiler_import
from scenesweep.pipeline.errors import UNWRITABLE, Exit, ScenesweepError, exit_for
from scenesweep.pipeline.storage.network import unsigned

COMMANDS = {
    "detect": "run a model over scenes and publish the detections",
    "inspect": "describe scenes, and how a model would cut them into windows",
    "train": "train a model on labelled chips",
    "evaluate": "measure a model on labelled chips, or published detections against labels",
    "verify": "check that published files are complete and unchanged",
    "view": "write HTML pages that show scenes and detections",
    "review": "write a page to check the detections that the model is least sure of",
    "crops": "cut a small picture of each detection out of its scene",
    "models": "list, show, import, shrink and export models",
    "metrics": "print or serve the figures of the last runs for Prometheus",
    "query": "search published detections, and print or write them",
    "count": "count detections in polygons or H3 cells",
    "track": "link the detections of all dates to objects: which are new, which are gone",
    "compact": "join the tables of each day into one, and mark duplicates",
    "demo": "paint a scene on two dates, detect on both and compare with the known objects",
}
log = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, because a long usage text would hide them."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, options with a similar name, and where the help is."""
        unknown = message.split() if message.startswith("unrecognized arguments") else []
        words = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        close = {
            option: None
            for word in words
            for option in get_close_matches(word, self._option_string_actions, n=2, cutoff=0.7)
        }
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        self.exit(Exit.USAGE, f"{self.prog}: {message}{hint} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the first argument names and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="scenesweep",
        description=f"Detect objects in satellite and aerial scenes of any size.\n\n{listing}",
        epilog="Run `scenesweep COMMAND --help` for the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"scenesweep {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return run_job(parser.parse_args(argv[:1]).command, argv[1:])


def run_job(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command with its arguments and return the exit code.

    An error that the user can fix is printed as one line, without a traceback.
    """
    postpone_compiler_import()
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
        "rasterio",
        "pyogrio",
        "faster_coco_eval",
        "stac_geoparquet",
    ):  # they raise their errors; below warnings their logs are noise
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(job.run(arguments))
    except ScenesweepError as error:
        _print_error(f"scenesweep {name}: {error}")
        return exit_for(error)
    except OSError as error:
        if error.errno in UNWRITABLE:
            _print_error(
                f"scenesweep {name}: cannot write: {error}; fix the cause and rerun the command"
            )
            return Exit.OUTPUT
        _print_error(f"scenesweep {name}: {type(error).__name__}: {error}")  # such as a permission
        return Exit.USAGE
    except KeyboardInterrupt:
        _print_error(f"scenesweep {name}: stopped")
        return Exit.STOPPED
    except Exception:
        log.exception(
            "scenesweep %s: this is a bug in scenesweep; please report it with this text", name
        )
        return Exit.BUG


def _print_error(line: str) -> None:
    """Print a line to stderr; if that fails (disk full), the exit code must be enough."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class _Unsigned(logging.Formatter):
    """Removes secrets of signed addresses from the log, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return unsigned(super().format(record))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
